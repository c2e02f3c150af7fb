"""What only the model and the data can tell about a scenario, found out before any device starts."""

from __future__ import annotations

from emulation.scenario.schema import Scenario
from peers import plugins
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.models.loader import load_model, pick_device
from peers.protocol.send_allocation import codecs
from peers.tasks import encode, tasks
from transport.wire.codec_names import payload_bytes
from transport.wire.limits import CURVE_BYTES, FRAME_BYTES, HEADER_BYTES


def check_against_model(scenario: Scenario) -> None:
    """Do once what every device will do at its start: model, slots for the rank, each device's data.

    Raises InputError: an unknown model or task, a rank that the narrowest module has no room for (method 2),
    data that cannot be read or encoded.
    """
    plugins.load(scenario.plugins)
    config = scenario.device_config()
    pick_device(config.model.device)
    # On the CPU: this process only looks, the devices need the GPU's memory.
    loaded = load_model(config.model.model_copy(update={"device": "cpu"}))
    task = tasks.get(config.data.kind)(config.data, config.seed)
    shards = [
        encode(task.train_examples(device), loaded.tokenizer, config.data.max_length)
        for device in scenario.all_devices
    ]
    for device, shard in zip(scenario.all_devices, shards, strict=True):
        if not len(shard):
            raise InputError(f"data: {device} has no examples; allowed: one or more for each device")
    learner = Learner(loaded, config, shards[0], scenario.all_devices[0])
    _check_budget(scenario, learner)


def _check_budget(scenario: Scenario, learner: Learner) -> None:
    """A round's data share must hold the largest matrix: it is sent whole or not at all."""
    radio, layout = scenario.radio, learner.layout
    codec = min(codecs(radio), key=lambda codec: payload_bytes(codec, 128, 8))
    sizes = {g: payload_bytes(codec, layout.rows(g), layout.rank(g)) for g in layout.groups}
    group = max(sizes, key=lambda g: sizes[g])
    parts = -(-sizes[group] // FRAME_BYTES)
    needed = sizes[group] + parts * (HEADER_BYTES + scenario.keys.enabled * CURVE_BYTES)
    if needed > radio.budget_bytes * (1 - radio.control_share):
        least = int(needed / (1 - radio.control_share)) + 1
        raise InputError(
            f"radio.budget_bytes: {radio.budget_bytes} a round cannot carry the group {group!r}, "
            f"{needed} bytes as {codec}; allowed: {least} or more, a lower rank or a coarser codec"
        )

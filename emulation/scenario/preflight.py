"""Checks of a scenario that need its model and its data. They run before any device starts."""

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
from transport.wire.messages import Envelope, Hello, Manifest, Message
from transport.wire.packing import pack, wire_bytes

ADDRESS_BYTES = 64  # of an endpoint, for planning


def check_against_model(scenario: Scenario) -> None:
    """Load the model, encode the data of each device and build one learner, as every device will do.

    Raises InputError for an unknown model or task, for a rank that is too large for the narrowest module
    (method 2), and for data that cannot be read or encoded.
    """
    plugins.load(scenario.plugins)
    config = scenario.device_config()
    pick_device(config.model.device)
    # On the CPU: the devices need the memory of the GPU.
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
    _check_control(scenario, learner)


def _check_budget(scenario: Scenario, learner: Learner) -> None:
    """The data share of a round must hold the largest matrix, which is sent whole or not at all."""
    radio, layout = scenario.radio, learner.layout
    codec = min(codecs(radio), key=lambda codec: payload_bytes(codec, 128, 8))
    sizes = {g: payload_bytes(codec, layout.rows(g), layout.rank(g)) for g in layout.groups}
    group = max(sizes, key=lambda g: sizes[g])
    fragments = -(-sizes[group] // FRAME_BYTES)
    needed = sizes[group] + fragments * (HEADER_BYTES + scenario.keys.enabled * CURVE_BYTES)
    if needed > radio.budget_bytes * (1 - radio.control_share):
        least = int(needed / (1 - radio.control_share)) + 1
        raise InputError(
            f"radio.budget_bytes: {radio.budget_bytes} bytes in a round cannot carry the group {group!r}, "
            f"{needed} bytes in {codec}; allowed: {least} or more, a lower rank or a coarser codec"
        )


def _check_control(scenario: Scenario, learner: Learner) -> None:
    """A round must hold the largest single control messages, or their rounds would exceed the budget."""
    radio, slots = scenario.radio, scenario.adapter.max_devices
    longest = max(scenario.all_devices, key=len)
    item = (longest, 0, max(learner.layout.groups, key=len), scenario.round.count, "unchanged")
    messages: dict[str, Message] = {
        "a hello": Hello("x" * ADDRESS_BYTES, learner.fingerprint.to_dict(), True, [], 0),
        "a manifest": Manifest(0, "correction", bytes(16), [item] * slots * len(learner.layout.groups)),
    }
    room = radio.budget_bytes - int(radio.budget_bytes * radio.control_share) // 2
    for name, message in messages.items():
        size = wire_bytes(pack(Envelope(longest, 0), message), scenario.keys.enabled)
        if size > room:
            least = int(size / (1 - radio.control_share / 2)) + 2
            raise InputError(
                f"radio.budget_bytes: {radio.budget_bytes} bytes in a round cannot carry {name}, {size} "
                f"bytes; allowed: {least} or more"
            )

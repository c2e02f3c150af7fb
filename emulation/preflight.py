"""What only the model and the data can tell about a scenario, found out before any device starts."""

from __future__ import annotations

from emulation.scenario import Scenario
from peers import plugins
from peers.errors import InputError
from peers.learner import Learner
from peers.models import load_model, pick_device
from peers.tasks import encode, tasks


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
    Learner(loaded, config, shards[0], scenario.all_devices[0])

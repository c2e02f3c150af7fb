"""Checks of a scenario that need its model and its data. They run before any device starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

from coordinator_free.correction.policies import SCHEDULES
from coordinator_free.ranges import NAME_BYTES
from emulation.scenario.first_round import first_round_notes
from emulation.scenario.metric_checks import check_metrics
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.learning.privacy_account import check_delta
from peers.lora.layout import ModelLayout
from peers.models.data_limits import check_data
from peers.models.loader import load_model, pick_device
from peers.protocol.connections import most_names
from peers.protocol.send_allocation import codecs
from peers.tasks import AnyExample, HasFiles, HasUtility, Task, make_task
from transport.wire.codec_names import payload_bytes
from transport.wire.limits import CURVE_BYTES, FRAME_BYTES, HEADER_BYTES
from transport.wire.messages import Envelope, Hello, Manifest, Message
from transport.wire.packing import pack, wire_bytes

CONTROL = "nobody (control)"
ADDRESS_BYTES = 64  # of an endpoint, for planning
UNUSED = 8  # the most files or rows of no device that are listed


def check_against_model(scenario: Scenario) -> Learner:
    """Load the model, encode the data of each device and build one learner, as every device will do.

    Returns the learner of the first device, without blocks.

    Prints a line on stderr if examples are cut, if no end is learnt, or if files belong to no device. Raises
    InputError for an unknown model or task, for a rank that is too large for the narrowest module (method 2),
    for a model that is no causal language model, and for data that cannot be read or encoded or that exceed
    the model's limits.
    """
    plugins.load(scenario.plugins)
    config = scenario.device_config()
    pick_device(config.model.device)
    # On the CPU: the devices need the memory of the GPU.
    loaded = load_model(config.model.model_copy(update={"device": "cpu"}))
    task = make_task(config)
    examples = _examples(task, scenario.all_devices)
    parts = {whose: loaded.encode(some, config.data.max_length) for whose, some in examples.items()}
    unused = _unused(task, scenario.all_devices)
    _check_listeners(scenario, [d for d in scenario.all_devices if not len(parts[d])], unused)
    check_data(loaded, parts.items())
    check_delta(scenario.privacy, {device: len(parts[device]) for device in scenario.all_devices})
    shards = [examples[device] for device in scenario.all_devices]
    check_metrics(scenario.eval, shards, examples[CONTROL])
    pairs = {whose: (some, parts[whose]) for whose, some in examples.items()}
    for note in loaded.notes(pairs, config.data.max_length):
        say(note)
    if unused:
        say(f"data.path: files or rows of no device, which nobody trains on: {unused}")
    first = next(device for device in scenario.all_devices if len(parts[device]))
    layout = ModelLayout.from_model(loaded.model, loaded.target_modules, config.adapter.rank)
    learner = Learner(loaded, config, parts[first], first)
    _say_narrow(layout, learner, config.adapter.max_devices)
    _check_budget(scenario, learner)
    _check_control(scenario, learner)
    measure = pick_device(config.model.device).type == "cpu"
    for note in first_round_notes(scenario, learner, first, measure):
        say(note)
    return learner


def _say_narrow(targets: ModelLayout, learner: Learner, slots: int) -> None:
    adapted = learner.layout.by_name
    narrow = [f"{m.name} (d = {m.in_features})" for m in targets.modules if m.name not in adapted]
    if narrow:
        names = ", ".join(narrow)
        say(f"adapter.rank: too narrow for {slots} slots, these convolutions stay frozen: {names}")


def _examples(task: Task, devices: Sequence[str]) -> dict[str, Sequence[AnyExample]]:
    """All examples of a run, those of the evaluator too, by whose they are."""
    found: dict[str, Sequence[AnyExample]] = {device: task.train_examples(device) for device in devices}
    found |= {f"{device} in other words": task.other_wording(device) for device in devices}
    if isinstance(task, HasUtility):
        found |= {f"nobody ({name})": some for name, some in task.utility_examples().items()}
    return found | {CONTROL: task.control_examples()}


def _unused(task: Task, devices: Sequence[str]) -> str:
    """Files, or rows of a file, that belong to no device: a list of the first ones."""
    unused = task.unused(devices) if isinstance(task, HasFiles) else []
    more = f" and {len(unused) - UNUSED} more" if len(unused) > UNUSED else ""
    return ", ".join(unused[:UNUSED]) + more


def _check_listeners(scenario: Scenario, listeners: Sequence[str], unused: str) -> None:
    """A device without examples trains nothing. It cannot measure gradients for a policy either."""
    if not listeners:
        return
    correction, who = scenario.correction, ", ".join(listeners)
    if len(listeners) == len(scenario.all_devices):
        instead = f", which has {unused}" if unused else ""
        raise InputError(f"data: no device ({who}) has an example in the data{instead}; allowed: one or more")
    if scenario.data.empty == "error":
        raise InputError(f"data: {who} has no examples; allowed: one or more for each device")
    measures = (
        correction.policy not in SCHEDULES or correction.fisher or correction.refit or correction.projection
    )
    if measures:
        raise InputError(
            f"data.empty: 'listen' with {who}, who cannot measure gradients; allowed: a schedule as "
            "correction.policy, correction.fisher = correction.projection = false and correction.refit = 0"
        )
    say(f"data: {who} has no examples and trains nothing")


@cache
def say(note: str) -> None:
    """Print a line once in a process: an experiment checks many scenarios."""
    print(f"unweft: note: {note}", file=sys.stderr)


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
    names = bytes(most_names(slots) * NAME_BYTES)
    messages: dict[str, Message] = {
        "a hello": Hello("x" * ADDRESS_BYTES, learner.fingerprint.to_dict(), True, [], 0, names),
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

"""Checks of a scenario across its sections. Types and ranges of single values are checked by the schema.

A check yields a pair for each problem: the key path, and a text with the value and the allowed values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coordinator_free.averaging.mixing import MODES
from coordinator_free.averaging.rate_allocation import ALLOCATORS
from coordinator_free.averaging.topology import TOPOLOGIES
from coordinator_free.correction.policies import POLICIES, SCHEDULES
from coordinator_free.ranges import DEVICE_ID_ALLOWED, valid_device_id
from emulation.radio.wireless import channel
from emulation.scenario.adapter_checks import adapter_problems
from emulation.scenario.events import EventConfig, Population, event_problems, names
from emulation.scenario.mask_checks import mask_problems
from emulation.scenario.privacy_checks import privacy_problems
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.errors import InputError
from peers.radio_config import FIFO, PRICED, MobilityConfig, PricingConfig, RadioConfig, WirelessConfig

Problems = Iterator[tuple[str, str]]


def scenario_problems(scenario: Scenario) -> Problems:
    """The problems of a scenario that passed the schema. Loads the plugins of the scenario first."""
    plugins.load(scenario.plugins)
    yield from _unknown_names(scenario)
    for device in scenario.all_devices:
        if not valid_device_id(device):
            yield "devices.prefix", f"{device!r} is no device id; allowed: {DEVICE_ID_ALLOWED}"
            break
    yield from _size_problems(scenario)
    yield from _mixing_problems(scenario)
    yield from adapter_problems(scenario)
    yield from _lookahead_problems(scenario)
    yield from _radio_kind_problems(scenario)
    yield from _position_problems(scenario)
    yield from _channel_problems(scenario)
    yield from _allocator_problems(scenario)
    population = Population(scenario.initial_devices, scenario.on_crash)
    yield from event_problems(
        in_order(scenario.event), population, scenario.round.count, scenario.adapter.max_devices
    )
    if scenario.eval.devices == "one" and scenario.representative is None:
        yield "eval.devices", "'one' needs an initial device that no event removes or stalls; allowed: 'all'"
    yield from _checkpoint_problems(scenario)
    yield from privacy_problems(scenario)
    yield from mask_problems(scenario)


def check_device_id(device: str) -> None:
    """Raises InputError if the text is not a device id."""
    if not valid_device_id(device):
        raise InputError(f"--id: {device!r} is no device id; allowed: {DEVICE_ID_ALLOWED}")


def in_order(events: tuple[EventConfig, ...]) -> list[tuple[int, EventConfig]]:
    """The events by round, each with its index in the file."""
    return sorted(enumerate(events), key=lambda numbered: numbered[1].round)


def _unknown_names(scenario: Scenario) -> Problems:
    """Names that are in no registry."""
    for where, name, known in (
        ("mixing.mode", scenario.mixing.mode, MODES),
        ("topology.kind", scenario.topology.kind, TOPOLOGIES),
        ("correction.policy", scenario.correction.policy, {*POLICIES, *SCHEDULES}),
        ("radio.allocator", scenario.radio.allocator, {FIFO, *ALLOCATORS}),
    ):
        if name not in known:
            yield where, f"{name!r} is not available; allowed: {', '.join(sorted(known))}"


def _size_problems(scenario: Scenario) -> Problems:
    """Sizes of devices that are neither in the run nor among those to which a pool is dealt."""
    known = {*scenario.all_devices, *scenario.data.devices}
    unknown = [device for device in scenario.data.sizes if device not in known]
    if unknown:
        yield "data.sizes", f"{unknown[0]!r} is no device of the run; allowed: {names(known)}"


def _mixing_problems(scenario: Scenario) -> Problems:
    leak, refit = scenario.isolation.leak, scenario.correction.refit
    if scenario.mixing.mode == "newest" and leak > 0:
        yield (
            "isolation.leak",
            f"{leak} with mixing.mode = 'newest', in which a block has one writer; "
            "allowed: 0, or mixing.mode = 'average'",
        )
    if scenario.correction.interference and not scenario.correction.fisher:
        yield (
            "correction.interference",
            "true without correction.fisher, whose steps it changes; allowed: false, or "
            "correction.fisher = true",
        )
    if refit and scenario.mixing.mode == "paper-literal":
        yield (
            "correction.refit",
            f"{refit} with mixing.mode = 'paper-literal', which has no foreign blocks in the model; "
            "allowed: 0, or another mode",
        )
    if scenario.correction.projection and (refit or scenario.mixing.mode == "paper-literal"):
        yield (
            "correction.projection",
            "true with correction.refit, which takes over the deleted output, or with mixing.mode = "
            "'paper-literal', which has no foreign blocks in the model; allowed: false, or neither of them",
        )


def _lookahead_problems(scenario: Scenario) -> Problems:
    """A trial round of `lookahead` must not change the state of the device."""
    if scenario.correction.policy != "lookahead":
        return
    if scenario.correction.fisher:
        yield (
            "correction.fisher",
            "true with correction.policy = 'lookahead', whose trials would change the optimiser's moments; "
            "allowed: false, or another policy",
        )
    if scenario.isolation.leak:
        yield (
            "correction.policy",
            f"'lookahead' with isolation.leak = {scenario.isolation.leak}: a trial would change foreign "
            "blocks; allowed: isolation.leak = 0, or another policy",
        )


def _radio_kind_problems(scenario: Scenario) -> Problems:
    """Settings that another `radio.kind` uses."""
    radio = scenario.radio
    for table, kind, given in (
        ("trace", "trace", radio.trace is not None),
        ("wireless", "wireless", radio.wireless != WirelessConfig()),
        ("mobility", "wireless", radio.mobility != MobilityConfig()),
    ):
        if given and radio.kind != kind:
            yield f"radio.{table}", f"has no meaning with radio.kind = {radio.kind!r}; allowed: with {kind!r}"
    if radio.kind == "trace" and radio.trace is None:
        yield "radio.trace", "is missing; allowed: a CSV file, which radio.kind = 'trace' replays"


def _position_problems(scenario: Scenario) -> Problems:
    side_m = scenario.radio.wireless.area_m
    for device, position_m in scenario.radio.wireless.positions.items():
        where = f"radio.wireless.positions.{device}"
        if device not in scenario.all_devices:
            yield where, f"is no device of the run; allowed: {names(scenario.all_devices)}"
        if not all(0 <= coordinate_m <= side_m for coordinate_m in position_m):
            allowed = f"0 to {side_m}, radio.wireless.area_m"
            yield where, f"{list(position_m)} is outside the area; allowed: {allowed}"


def _channel_problems(scenario: Scenario) -> Problems:
    """A trace that cannot be read or that misses a device."""
    try:
        channel(scenario, scenario.all_devices)
    except InputError as error:
        yield "radio.trace", str(error)


def _allocator_problems(scenario: Scenario) -> Problems:
    """An allocator compares copies of one block and chooses a codec for each neighbour.

    In `newest` the owner signs a version in one codec. `paper-literal` averages different blocks.
    """
    radio, mode = scenario.radio, scenario.mixing.mode
    if radio.allocator != PRICED and radio.pricing != PricingConfig():
        yield (
            "radio.pricing",
            f"has no meaning with radio.allocator = {radio.allocator!r}; allowed: with {PRICED!r}",
        )
    if radio.allocator == FIFO:
        if radio.codecs != RadioConfig().codecs:
            yield "radio.codecs", f"has no meaning with radio.allocator = {FIFO!r}, which sends radio.codec"
        return
    mixing = MODES[mode]() if mode in MODES else None
    if mixing is not None and (mixing.shared_versions or mixing.foreign_basis):
        yield (
            "radio.allocator",
            f"{radio.allocator!r} with mixing.mode = {mode!r}; allowed: {FIFO!r}, or mixing.mode = 'average'",
        )
    if len(set(radio.codecs)) < len(radio.codecs):
        yield "radio.codecs", f"{list(radio.codecs)} names one twice; allowed: each once"


def _checkpoint_problems(scenario: Scenario) -> Problems:
    from peers.storage import checkpoint  # imports torch: a scenario with another error fails without it

    resume = scenario.checkpoint.resume
    if resume is None:
        return
    if not any(checkpoint.path_of(Path(resume), device).is_file() for device in scenario.all_devices):
        yield (
            "checkpoint.resume",
            f"{resume!r} has no checkpoint of a device of this run; allowed: the folder of a run with "
            "checkpoint.save = true that has ended, or with checkpoint.every",
        )

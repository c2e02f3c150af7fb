"""The sections of a scenario: the settings of the devices (`peers.config`) and those of the testbed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Literal

from coordinator_free.ranges import DEVICE_ID
from emulation.scenario.events import LOST, ChurnConfig, EventConfig, Population, draw_churn
from peers.config import DeviceConfig
from peers.section import Section, about


class DevicesConfig(Section):
    """The devices that start together. Their ids are `prefix` and a number from 0 on."""

    count: Annotated[int, about("Devices at the start.", unit="devices", ge=1)] = 6
    prefix: Annotated[str, about("The beginning of their ids.", pattern=DEVICE_ID)] = "d"


Metric = Literal[
    "probability",
    "rouge",
    "truth_ratio",
    "forget_quality",
    "model_utility",
    "extraction_strength",
    "exact_memorization",
    "mia_loss",
    "mia_min_k",
    "mia_zlib",
    "mia_reference",
]


class EvalConfig(Section):
    """How often the evaluator measures the devices, and what beside accuracy (docs/metrics.md)."""

    every: Annotated[
        int, about("From one snapshot of a device to the next. 0: no accuracies.", unit="rounds", ge=0)
    ] = 5
    examples: Annotated[
        int, about("The most examples of a shard: a fixed random choice.", unit="examples", ge=1)
    ] = 256
    devices: Annotated[
        Literal["all", "one"],
        about("one: the first device that no event removes, and all at the end (docs/metrics.md)."),
    ] = "all"
    metrics: Annotated[
        tuple[Metric, ...], about("Measured before and after events, and at the end (docs/metrics.md).")
    ] = ()
    samples: Annotated[
        int, about("Generated answers of each shard, of the same snapshots.", unit="answers", ge=0)
    ] = 0


class Scenario(DeviceConfig):
    """All settings of one run. `emulation.scenario.loading.load` reads a scenario from a file."""

    name: Annotated[
        str, about("Name of the run. Without it: the name of the file.", pattern=r"^[\w.-]+$")
    ] = "scenario"
    devices: DevicesConfig = DevicesConfig()
    eval: EvalConfig = EvalConfig()
    event: Annotated[tuple[EventConfig, ...], about("Events in a list. TOML: [[event]] for each.")] = ()
    churn: ChurnConfig = ChurnConfig()

    @property
    def initial_devices(self) -> tuple[str, ...]:
        """The devices that start together."""
        return tuple(f"{self.devices.prefix}{i}" for i in range(self.devices.count))

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The initial devices, then the newcomers. Each device appears once."""
        newcomers = (event.device for event in self.events if event.kind == "join" and event.device)
        return tuple(dict.fromkeys([*self.initial_devices, *newcomers]))

    @cached_property
    def events(self) -> tuple[EventConfig, ...]:
        """The listed events and the drawn ones, by round."""
        events = list(self.event)
        if self.churn.rate:
            population, slots = Population(self.initial_devices, self.on_crash), self.adapter.max_devices
            events += draw_churn(self.churn, self.seed, self.round.count, slots, population, events)
        return tuple(sorted(events, key=lambda event: event.round))

    @cached_property
    def representative(self) -> str | None:
        """The first initial device that no event removes or stalls; None if there is none."""
        gone = {event.device for event in self.events if event.kind in LOST}
        return next((device for device in self.initial_devices if device not in gone), None)

    def evaluates(self, device: str, tag: str) -> bool:
        """Whether the evaluator examines the snapshots of a device with this tag."""
        return self.eval.devices == "all" or tag == "end" or device == self.representative

    def without_late_churn(
        self, pending: Iterable[EventConfig], rounds: Mapping[str, int]
    ) -> list[EventConfig]:
        """Leave out the drawn events once the run is past the middle of the time from churn.stop to its end.

        No device could recover from them before the run ends. rounds: the last round of each live device.
        """
        end = (self.churn.last_round(self.round.count) + self.round.count) / 2
        late = max(rounds.values(), default=0) > end
        return [event for event in pending if not late or event in self.event]

    def device_config(self) -> DeviceConfig:
        """The settings that every device receives. Pooled data are dealt to all devices of the scenario."""
        config = DeviceConfig(**{name: getattr(self, name) for name in DeviceConfig.model_fields})
        if self.data.partition == "own" or self.data.devices:
            return config
        return config.model_copy(update={"data": self.data.model_copy(update={"devices": self.all_devices})})

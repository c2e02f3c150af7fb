"""The interface of a backend, which is one way to launch devices.

A new backend needs one file, and one line in BACKENDS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from rich.console import Console

from emulation.launch.run_state import DeviceStatus, RunState

SignalKind = Literal["leave", "retire", "crash", "stall", "resume", "partition", "end"]


class Backend(Protocol):
    """Starts the devices of one run and sends signals to them. The run loop makes all decisions."""

    poll_s: float  # seconds between two looks at the devices

    def start_initial(self) -> None:
        """Start the devices that are there from the beginning. Raises RunFailed."""

    def start(self, device: str) -> None:
        """Start a device that joins or returns now. Raises RunFailed."""

    def signal(self, device: str, kind: SignalKind) -> None:
        """Send a running device the signal for an event. Raises RunFailed.

        `partition`: the device reads its partition file again. `end`: the run is over for all devices; each
        exports and says goodbye. A device that has ended is ignored.
        """

    def running(self) -> Mapping[str, DeviceStatus]:
        """The status of each device that was started, by id. Raises RunFailed."""

    def end(self, succeeded: bool) -> Mapping[str, DeviceStatus]:
        """End all devices, remove all that the backend made, and return the last statuses.

        Called once after `prepare`, also after an error or an interrupt.
        `succeeded`: the run came to its end without an error.
        """


Prepare = Callable[[RunState, Console], Backend]


class BackendEntry(NamedTuple):
    """A row of the table of backends."""

    module: str  # has `prepare(state: RunState, console: Console) -> Backend`
    help: str


BACKENDS = {
    "local": BackendEntry("emulation.launch.local", "each device is a process on this machine"),
    "compose": BackendEntry("emulation.launch.compose", "each device is a container of Docker Compose"),
    "slurm": BackendEntry("emulation.launch.slurm", "each device is a task of a Slurm job array"),
}


def prepare(name: str, state: RunState, console: Console) -> Backend:
    """Make a backend ready to start devices. Imports its module only now: it may import torch.

    Raises InputError if the backend cannot run this scenario, RunFailed if the preparation fails.
    """
    module: Any = importlib.import_module(BACKENDS[name].module)
    backend: Backend = module.prepare(state, console)
    return backend

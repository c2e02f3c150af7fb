"""A run whose devices a fake engine has started, for tests of backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from emulation.launch.backend import Backend
from emulation.launch.run_loop import inject_due
from emulation.launch.run_state import RunState

AnyBackend = TypeVar("AnyBackend", bound=Backend)


@dataclass
class Started(Generic[AnyBackend]):
    """A run, and its backend."""

    state: RunState
    backend: AnyBackend

    def look(self) -> None:
        """Ask the backend again, as the run loop does some time later."""
        self.state.see_devices(self.backend.running())

    def inject(self) -> None:
        inject_due(self.state, self.backend)

    def running(self) -> list[str]:
        return list(self.state.running())

    def pending(self) -> list[str]:
        return [event.kind for event in self.state.pending]

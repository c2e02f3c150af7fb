"""Events from outside the device's clock: signals of the operating system and failures of the learner."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque

from peers.errors import describe
from peers.protocol.actions import Action, Exit
from peers.runtime.event_queue import Event
from transport.clocks.real import Clock

log = logging.getLogger("unweft")

END_SIGNAL = signal.SIGUSR2  # from the launcher to all devices: the run ends now


class ExternalEvents:
    """A queue that the driver empties before it handles other events. Create it in the running event loop."""

    def __init__(self, clock: Clock) -> None:
        self._loop, self._clock = asyncio.get_running_loop(), clock
        self._queue: deque[Event] = deque()

    def on_signal(self, number: int, event: Event) -> None:
        """Queue `event` whenever the process gets this signal."""
        self._loop.add_signal_handler(number, self._post, event)

    def on_learner_failure(self, error: BaseException) -> None:
        """Queue the end of the device with exit status 1. Called in the learner thread."""
        log.error("the learner failed", exc_info=error)
        actions: list[Action] = [Exit(1, describe(error))]
        self._loop.call_soon_threadsafe(self._post, lambda now: actions)

    def pop(self) -> Event | None:
        """Remove the oldest event and return it; None: there is none."""
        return self._queue.popleft() if self._queue else None

    def _post(self, event: Event) -> None:
        self._queue.append(event)
        self._clock.poke()

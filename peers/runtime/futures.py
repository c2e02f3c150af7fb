"""Results of the learner thread in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def call_when_done(future: Future[Result], then: Callable[[Result], None]) -> None:
    """Call `then` with the result in the running event loop.

    A failure is ignored here, because `LearnerThread` reports it.
    """
    loop = asyncio.get_running_loop()

    def done(future: Future[Result]) -> None:
        if not future.cancelled() and future.exception() is None:
            loop.call_soon_threadsafe(then, future.result())

    future.add_done_callback(done)

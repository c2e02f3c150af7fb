"""The checkpoint file of one device while the run goes on (docs/checkpoints.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from peers.config import CheckpointConfig


class Writer(Protocol):
    """The learner thread: it writes and removes files after all work that was queued before."""

    def checkpoint(self, path: Path, closed: int) -> object: ...

    def remove(self, path: Path) -> object: ...


class RunCheckpoints:
    """Decides when the file is written and removed. `path`: of this device.

    `closed`: gives the last round that the device has closed. `last`: the last round of the run. A device
    whose run ends before it writes its file in any case, so that the run can go on.
    """

    def __init__(
        self, config: CheckpointConfig, path: Path, writer: Writer, closed: Callable[[], int], last: int
    ) -> None:
        self._config, self._path, self._writer = config, path, writer
        self._closed, self._last = closed, last
        self._written = path.exists()  # by an earlier process of the device

    def on_round(self, round_: int) -> None:
        """A round is closed."""
        if self._config.every and (round_ + 1) % self._config.every == 0:
            self._write()

    def on_block_dropped(self) -> None:
        """A block is deleted: the file must not keep it until the next round that is due."""
        if self._written:
            self._write()

    def on_export(self, run_over: bool) -> None:
        """The device ends. One that retires from a run that goes on leaves no file."""
        if run_over and (self._config.writes or 0 <= self._closed() < self._last):
            self._write()
        else:
            self._remove()

    def on_leave(self) -> None:
        """The device asks to be forgotten: its own file holds its block."""
        self._remove()

    def _remove(self) -> None:
        if self._written:
            self._written = False
            self._writer.remove(self._path)

    def _write(self) -> None:
        self._written = True
        self._writer.checkpoint(self._path, self._closed())

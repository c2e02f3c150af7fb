"""The results of a run as Python values: `unweft.load`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from emulation.analysis import records, summary, tables
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.schema import Scenario


@dataclass(frozen=True)
class Run:
    """A run in a folder. The files are read when they are first asked for.

    A table is a pandas DataFrame if pandas is installed, and otherwise a list of dicts.
    """

    folder: Path

    @cached_property
    def _records(self) -> RunRecords:
        return records.load(self.folder)

    @property
    def scenario(self) -> Scenario:
        """The resolved scenario."""
        return self._records.scenario

    @cached_property
    def summary(self) -> Record:
        """summary.json (docs/records.md); of a run that has not ended, the summary so far."""
        path = self.folder / "summary.json"
        found: Record = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else summary.summarise(self._records)
        )
        return found

    @cached_property
    def devices(self) -> Any:
        """A table of the devices: slot, rounds, bytes, memory, hash of the adapter."""
        return self._table("devices")

    @cached_property
    def rounds(self) -> Any:
        """A table with a row for each device and round: loss, steps, seconds, bytes."""
        return self._table("rounds")

    @cached_property
    def links(self) -> Any:
        """A table with a row for each direction of a link: bytes and latencies."""
        return self._table("links")

    @cached_property
    def events(self) -> Any:
        """A table of the events that happened, with their outcomes."""
        return self._table("events")

    @cached_property
    def accuracy(self) -> Any:
        """A table with a row for each evaluation of a device on the data of a device (`shard`)."""
        return self._table("accuracy")

    def adapter(self, device: str) -> Path:
        """The folder of an exported adapter, for `unweft.load_adapter` and `unweft.forget`."""
        return self.folder / "adapters" / device

    def _table(self, name: str) -> Any:
        rows = tables.TABLES[name](self._records, self.summary)
        if find_spec("pandas") is None:
            return rows
        from pandas import DataFrame

        return DataFrame(rows)


def load(folder: str | Path) -> Run:
    """The run in a folder that `unweft run` wrote. Raises InputError for another folder."""
    found = Run(Path(folder))
    found.scenario  # noqa: B018  read now, so that a wrong folder is an error here
    return found

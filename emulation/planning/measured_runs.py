"""The measured runs that the model is fitted to: their form, and how they are read from files.

`unweft bench scale --json FILE` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from peers.errors import InputError
from peers.section import Section

BENCHMARK = "unweft bench scale"
DATA = ("own_bytes", "foreign_bytes")
MOST = 10**15  # so that all products of figures are floats
Count = Annotated[int, Field(ge=1, le=MOST)]
Positive = Annotated[float, Field(ge=1e-9, le=MOST)]
Figure = Annotated[float, Field(ge=0, le=MOST)]


class Settings(Section):
    """All runs of one fit have the same values. `block_bytes`: of one block in `codec`, without headers."""

    model: str
    rank: Count
    input_width: Count  # d of the narrowest adapted module
    groups: Count
    block_bytes: Count
    codec: str
    mode: str
    tolerance: Figure
    topology: Literal["regular"]  # the one whose limits are known
    seed: Annotated[int, Field(ge=-MOST, le=MOST)]
    step_s: Positive  # emulated time of a local step
    latency_s: Positive
    rate_Bps: Positive
    probe_s: Positive


class MeasuredRun(Section):
    """One run. Figures are means over devices and rounds, except the first round of each device."""

    clock: Literal["real", "virtual"]
    devices: Annotated[int, Field(ge=2, le=MOST)]
    degree: Annotated[int, Field(ge=2, le=MOST, multiple_of=2)]  # as `regular` has it
    churn: Figure  # events a round, in the whole network
    budget_bytes: Count
    local_steps: Count
    rounds: Count  # that were measured
    settings: Settings
    figures: dict[str, Figure]  # by name (quantities.py); a figure that was not measured is left out

    def value(self, name: str) -> float | None:
        """A figure; None if it was not measured.

        Own and foreign bytes are counted as the budget plans them, which is a little more than what the links
        send. They are scaled to the bytes of the links.
        """
        found, sent = self.figures.get(name), self.figures.get("sent_bytes")
        if name not in DATA or found is None or sent is None:
            return found
        planned = sum(self.figures.get(part, 0.0) for part in DATA)
        others = sum(self.figures.get(part, 0.0) for part in ("control_bytes", "transfer_bytes"))
        return found * (sent - others) / planned if planned else found


def shipped() -> list[Path]:
    """The files of this version. Each has the revision at which it was measured in its name."""
    return sorted((Path(__file__).parent / "measured").glob("*.json"))


def read(paths: Sequence[Path]) -> list[MeasuredRun]:
    """All runs in these files, the longest one of each configuration.

    Raises InputError if a file has no run, or if the settings differ.
    """
    if not paths:
        raise InputError(f"--fit: no file; allowed: a file of `{BENCHMARK} --json`, as this version has none")
    found = [run for path in paths for run in _read_one(path)]
    first = found[0].settings.model_dump()
    for run in found[1:]:
        for key, value in run.settings.model_dump().items():
            if value != first[key]:
                raise InputError(
                    f"--fit: {key} is {first[key]!r} in one run and {value!r} in another; allowed: runs of"
                    " the same settings"
                )
    return _longest(found)


def _longest(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Of runs of one configuration, the longest one: the others are its beginnings and would count twice."""
    by_configuration: dict[tuple[object, ...], MeasuredRun] = {}
    for run in runs:
        links = min(run.degree, run.devices - 1)  # above that, the graph is complete
        key = run.clock, run.devices, links, run.churn, run.budget_bytes, run.local_steps
        if key not in by_configuration or by_configuration[key].rounds < run.rounds:
            by_configuration[key] = run
    return list(by_configuration.values())


def _read_one(path: Path) -> list[MeasuredRun]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--fit: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"--fit: {path} is no JSON; allowed: a file of `{BENCHMARK} --json`") from None
    lines = list(_lines(data))
    if not lines:
        raise InputError(f"--fit: {path} has no measured runs; allowed: a file of `{BENCHMARK} --json`")
    try:
        return [MeasuredRun.model_validate(line) for line in lines]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"--fit: {path}: {key}: {first['input']!r}: {first['msg']}") from None


def _lines(data: Any) -> Iterable[Any]:
    """The runs of all benchmarks in a file. Whatever has another form has no runs."""
    benchmarks = data if isinstance(data, list) else []
    found = (one.get("runs") for one in benchmarks if isinstance(one, dict))
    return (run for runs in found if isinstance(runs, list) for run in runs)

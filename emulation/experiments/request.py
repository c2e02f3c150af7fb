"""What all experiments share: the options of the command, names of arms, and the lines after the tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from emulation.analysis.records import Record
from emulation.experiments import publication
from emulation.experiments.catalogue import SMOKE, Scale, Setting, listed
from emulation.experiments.seeds import PUBLISHED
from peers.errors import InputError


@dataclass(frozen=True)
class Request:
    """The options of the command.

    changes: key path -> value, for all arms. publish: folder for rows.csv of a published table.
    """

    scale: Scale
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    jobs: int = 1
    changes: Mapping[str, object] = field(default_factory=dict)
    publish: Path | None = None

    def changed(self, setting: Setting) -> Setting:
        """The setting with the values of `--set`."""
        return replace(setting, changes={**setting.changes, **self.changes})

    def check(self, least: int = PUBLISHED) -> None:
        """Raises InputError, before anything starts, for a publication that is not possible.

        least: the fewest seeds of a published table.
        """
        if self.publish is not None and self.changes:
            changed = ", ".join(sorted(self.changes))
            raise InputError(
                f"--publish: with --set of {changed}; allowed: without --set, since the name of the file is "
                "that of the workload without changes"
            )
        if self.publish is not None:
            publication.check_before(self.seeds, least)

    def finish(self, name: str, measures: Sequence[Record], files: str, console: Console) -> None:
        """Say which files were written, that the scale smoke has no meaning, and what was published."""
        console.print(f"written: {self.out}/{files}", highlight=False, soft_wrap=True)
        say_smoke(self.scale, console)
        if self.publish is not None:
            rows, name = self.out / "rows.csv", f"{name}-{self.scale.name}"
            copy = publication.publish(measures, rows, self.publish, name)
            console.print(f"published: {copy}", highlight=False, soft_wrap=True)


def arm_names(names: str, known: Collection[str], experiment: str = "") -> list[str]:
    """The names of a list with commas. Raises InputError for a name that is not known."""
    wanted = listed(names)
    for name in wanted:
        if name not in known:
            of = f" of {experiment}" * bool(experiment)
            raise InputError(f"--arms: {name!r} is no arm{of}; allowed: {', '.join(known)}")
    return wanted


def say_smoke(scale: Scale, console: Console) -> None:
    """Say that results of the scale smoke have no meaning."""
    if scale.name == SMOKE:
        console.print(f"scale {SMOKE}: too short to learn anything; its results have no meaning")

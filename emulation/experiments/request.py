"""What the commands of all experiments share: options, names of arms, and the note of the scale smoke."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.experiments.catalogue import SMOKE, Scale
from peers.errors import InputError


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    scale: Scale
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    jobs: int = 1


def arm_names(names: str, known: Collection[str], experiment: str = "") -> list[str]:
    """The names of a list with commas. Raises InputError for a name that is not known."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            of = f" of {experiment}" * bool(experiment)
            raise InputError(f"--arms: {name!r} is no arm{of}; allowed: {', '.join(known)}")
    return wanted


def say_smoke(scale: Scale, console: Console) -> None:
    """Say that results of the scale smoke have no meaning."""
    if scale.name == SMOKE:
        console.print(f"scale {SMOKE}: too short to learn anything; its results have no meaning")

"""The revision that made a table, and the rules and the file of a published one (docs/experiments.md)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from emulation.analysis.records import Record
from emulation.experiments import seeds as of_seeds
from peers.errors import InputError

ROOT = Path(__file__).parents[2]
PACKAGES = ("coordinator_free", "transport", "peers", "emulation")
DIRTY = "-dirty"


@cache
def revision() -> str:
    """The commit of the code, with "-dirty" if it was changed since; "unknown" outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


@cache
def code_sha256() -> str:
    """Hash of all modules. Commits that change only documents or tests leave it as it is."""
    digest = sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def origin() -> Record:
    """What a cell records of the code that ran it."""
    return {"revision": revision(), "code_sha256": code_sha256()}


def header(measures: Sequence[Record]) -> str:
    """The line above the tables: seeds and revision. Cells of different code are named as such."""
    found = [int(m["seed"]) for m in measures]
    revisions = list(dict.fromkeys(str(m.get("revision", "unknown")) for m in measures))
    made = "revision" if not is_mixed(measures) else "DIFFERENT CODE, revisions"
    return f"{of_seeds.kind(found)} {of_seeds.ranges(found)}; {made} {', '.join(revisions)}"


def is_mixed(measures: Sequence[Record]) -> bool:
    """Whether the cells were run by different code."""
    return len({m.get("code_sha256") for m in measures}) > 1


def check_before(seeds: Sequence[int], least: int = of_seeds.PUBLISHED) -> None:
    """Raises InputError if a run with these seeds and this code cannot be published.

    least: the fewest seeds.
    """
    if len(seeds) < least or min(seeds) < of_seeds.JUDGING:
        raise InputError(
            f"--publish: {len(seeds)} {of_seeds.kind(seeds)}; allowed: at least {least} "
            f"seeds, all {of_seeds.JUDGING} or above"
        )
    if revision() == "unknown" or revision().endswith(DIRTY):
        raise InputError(
            f"--publish: the code is of revision {revision()}; allowed: a commit without changes"
        )


def publish(measures: Sequence[Record], rows: Path, folder: Path, name: str) -> Path:
    """Copy rows.csv to FOLDER/NAME.csv. Raises InputError if the cells are not all of one clean revision."""
    revisions = {str(m.get("revision", "unknown")) for m in measures}
    if is_mixed(measures) or any(text == "unknown" or text.endswith(DIRTY) for text in revisions):
        raise InputError(
            f"--publish: the cells are of revisions {', '.join(sorted(revisions))}; allowed: one, without "
            "changes: use a new --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(rows, folder / f"{name}.csv"))

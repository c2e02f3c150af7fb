"""The scenarios that unweft contains: `unweft run demo` runs scenarios/demo.toml, in any folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).with_name("packaged")  # in the repository a link to scenarios/


def paths() -> Mapping[str, Path]:
    """The file of each scenario, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find(scenario: Path) -> Path:
    """The file that a user means: a file of this path, or else the scenario of this name."""
    found = paths().get(str(scenario))
    return found if found is not None and not scenario.is_file() else scenario


def description(path: Path) -> str:
    """The comment at the head of a scenario file, as one line of text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head)

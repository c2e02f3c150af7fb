"""The seeds of an experiment. Judging seeds serve published figures alone, and never the development."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peers.errors import InputError

JUDGING = 100  # the first judging seed; smaller seeds are for development
PUBLISHED = 10  # fewest judging seeds of a published table
PUBLISHED_LONG = 5  # the same, of the experiments with many long arms: wireless, baselines, sequence
MOST = 1000  # in one experiment
ALLOWED = "allowed: a number of judging seeds (10: 100 to 109), a range (0-3), or a list (0,1)"


def parse(text: str) -> tuple[int, ...]:
    """Seeds from "10" (so many judging seeds), "100-109" or "0,1,5". Raises InputError."""
    if re.fullmatch(r"\d{1,4}", text):
        return _checked(range(JUDGING, JUDGING + int(text)), text)
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*,?", text):
        raise InputError(f"--seeds: {text!r} names no seeds; {ALLOWED}")
    found: list[int] = []
    for part in text.rstrip(",").split(","):
        first, _, last = part.partition("-")
        found += _checked(range(int(first), int(last or first) + 1), text)
    return _checked(list(dict.fromkeys(found)), text)


def _checked(found: Sequence[int], text: str) -> tuple[int, ...]:
    if not found or len(found) > MOST:
        raise InputError(f"--seeds: {text!r} names {len(found)} seeds; {ALLOWED}, at most {MOST}")
    return tuple(found)


def kind(seeds: Sequence[int]) -> str:
    """ "judging seeds", "development seeds", or both, for the header of a table."""
    judging = [seed for seed in seeds if seed >= JUDGING]
    if len(judging) == len(seeds):
        return "judging seeds"
    return "development and judging seeds" if judging else "development seeds"


def ranges(seeds: Sequence[int]) -> str:
    """The seeds as text: 100-109, or 0, 2."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and runs[-1][-1] == seed - 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

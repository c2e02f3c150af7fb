"""The command line called in this process, and the scenario that tests run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emulation import cli

QUICK = str(Path(__file__).parents[2] / "scenarios" / "quick.toml")


def unweft(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `unweft` with these arguments and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["unweft", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)

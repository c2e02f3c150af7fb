"""The package names of unweft belong to this installation, whatever else is on the path.

A project on PYTHONPATH may have a package `transport` or `peers` of its own. It comes first on the path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAMES = ("coordinator_free", "emulation", "peers", "transport", "unweft")
ROOT = str(Path(__file__).resolve().parents[1])


class OwnPackages:
    """Finds the packages of unweft beside this one. No other package can have their names."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = name.partition(".")[0]
        if top not in NAMES:
            return None
        spec = PathFinder.find_spec(name, [ROOT] if name == top else path)
        if spec is None and path is not None:
            reason = f"the name {top!r} is a package of unweft ({ROOT}); no other package can have it"
            raise ModuleNotFoundError(f"No module named {name!r}: {reason}", name=name)
        return spec


def pin() -> None:
    """Use these packages from now on, also in place of another one that was imported already."""
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in NAMES and not str(getattr(module, "__file__", None)).startswith(ROOT):
            del sys.modules[name]

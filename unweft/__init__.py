"""Run scenarios, read their results and delete contributions from Python (docs/python.md).

A script calls `run` inside `if __name__ == "__main__":`, because device processes import the script again.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path


def _import_own_emulation() -> None:
    """Import the package `emulation` beside this one, whatever else on the path has its name."""
    root = str(Path(__file__).resolve().parents[1])
    loaded = sys.modules.get("emulation")
    if loaded is not None and str(getattr(loaded, "__file__", None)).startswith(root):
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "emulation"]:
        del sys.modules[name]
    spec = PathFinder.find_spec("emulation", [root])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"unweft: the package emulation is not in {root}", name="emulation")
    sys.modules["emulation"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_import_own_emulation()

from emulation.launch.errors import RunFailed  # noqa: E402
from emulation.scenario.schema import Scenario  # noqa: E402
from peers.errors import InputError  # noqa: E402
from unweft.results import Run, load  # noqa: E402
from unweft.running import forget, load_adapter, resume, run, scenario  # noqa: E402

__version__ = version("unweft")
__all__ = [
    "InputError",
    "Run",
    "RunFailed",
    "Scenario",
    "forget",
    "load",
    "load_adapter",
    "resume",
    "run",
    "scenario",
]

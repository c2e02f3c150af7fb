"""The protocol loads no torch, no socket library and no event loop, also not through its own imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOM = sorted(path.stem for path in (ROOT / "peers/protocol").glob("*.py"))
LOADED = """
import json, sys
import peers.protocol.state_machine
print(json.dumps(sorted(sys.modules)))
"""
OURS = ("peers", "transport", "coordinator_free")
FORBIDDEN = {"torch", "zmq", "asyncio", "socket", "transformers"}


def loaded_modules() -> list[str]:
    """The modules that importing the protocol loads into a new process."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules: list[str] = json.loads(done.stdout)
    return modules


@pytest.fixture(scope="module")
def modules() -> list[str]:
    return loaded_modules()


def imported_by(module: str) -> set[str]:
    """The top-level names of all imports in a module of this project, for type checking too."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse((path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py").read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_protocol_loads_no_torch_no_zmq_and_no_asyncio(modules: list[str]) -> None:
    assert not {"torch", "zmq", "asyncio"} & {*modules}


def test_every_module_of_the_room_is_loaded(modules: list[str]) -> None:
    """So that the other tests see the whole room."""
    assert {f"peers.protocol.{name}" for name in ROOM if name != "__init__"} <= {*modules}


def test_no_module_behind_the_protocol_imports_a_forbidden_one(modules: list[str]) -> None:
    """networkx loads the standard library's socket itself, so this test reads the project's own modules."""
    own = [module for module in modules if module.split(".")[0] in OURS]
    found = {module: sorted(imported_by(module) & FORBIDDEN) for module in own}
    assert {module: names for module, names in found.items() if names} == {}


def test_the_protocol_loads_no_runtime_learning_or_links(modules: list[str]) -> None:
    rooms = ("peers.runtime", "peers.learning", "peers.storage", "transport.links", "transport.clocks")
    assert [module for module in modules if module.startswith(rooms)] == []

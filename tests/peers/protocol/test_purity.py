"""A process that imports the protocol loads no torch, no zmq and no asyncio.

tests/test_imports.py reads the imports of the source; this test looks at a real process. networkx loads the
standard library's socket module, so this test cannot forbid it.
"""

from __future__ import annotations

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


def test_the_protocol_loads_no_torch_no_zmq_and_no_asyncio(modules: list[str]) -> None:
    assert not {"torch", "zmq", "asyncio"} & {*modules}


def test_every_module_of_the_room_is_loaded(modules: list[str]) -> None:
    """So that the other tests see the whole room."""
    assert {f"peers.protocol.{name}" for name in ROOM if name != "__init__"} <= {*modules}


def test_the_protocol_loads_no_runtime_learning_or_links(modules: list[str]) -> None:
    rooms = ("peers.runtime", "peers.learning", "peers.storage", "transport.links", "transport.clocks")
    assert [module for module in modules if module.startswith(rooms)] == []

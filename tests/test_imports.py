"""The layers of the code (docs/architecture.md), read from the syntax of every module; nothing is imported.

An import counts at any depth: in a function, for type checking only, or through `importlib.import_module`.
"""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import pytest

from docs.imports import LAYER, circles, crowded, imports, modules, names_used, room, rooms, upward

# What no module of a package or room may use, besides what the layers below forbid.
FORBIDDEN = {
    "coordinator_free": (
        *("transport", "peers", "emulation"),
        *("transformers", "peft", "zmq", "socket", "asyncio", "time.sleep", "torch"),
    ),
    "transport": (
        *("coordinator_free.membership", "coordinator_free.averaging", "coordinator_free.correction"),
        *("peers", "emulation", "transformers", "peft"),
    ),
    "peers": ("emulation",),
    "peers.protocol": ("torch", "zmq", "asyncio", "socket"),
}

# Rooms that know nothing of what a device decides, nor of how it talks: also not through other modules.
APART = ("learning", "unlearning", "storage", "lora", "models", "tasks")
APART_FROM = ("peers.protocol", "peers.runtime", "transport.links", "transport.clocks")

MODULES = modules()


def breaches(source: str, module: str) -> set[str]:
    """Forbidden names that the source of `module` uses."""
    banned = [name for room, names in FORBIDDEN.items() if _inside(module, room) for name in names]
    return {name for used in names_used(source, module) for name in banned if _inside(used, name)}


def reached(graph: nx.DiGraph[str], start: str, targets: Iterable[str]) -> list[str]:
    """Modules in `targets`' rooms that `start` imports, also through other modules."""
    found = nx.descendants(graph, start)
    return sorted(m for m in found if any(_inside(m, target) for target in targets))


def _inside(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph[str]:
    return imports({name: path.read_text(encoding="utf-8") for name, path in MODULES.items()})


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_no_name_that_its_room_forbids(module: str) -> None:
    assert breaches(MODULES[module].read_text(encoding="utf-8"), module) == set()


def test_imports_lead_down_the_layers(graph: nx.DiGraph[str]) -> None:
    assert upward(graph) == []


def test_no_modules_import_each_other_in_a_circle(graph: nx.DiGraph[str]) -> None:
    assert circles(graph) == []


@pytest.mark.parametrize("name", APART)
def test_rooms_that_learn_and_store_know_no_protocol(graph: nx.DiGraph[str], name: str) -> None:
    inside = [module for module in MODULES if _inside(module, f"peers.{name}")]
    assert inside
    assert {module: reached(graph, module, APART_FROM) for module in inside} == {m: [] for m in inside}


def test_the_protocol_reaches_no_module_that_uses_torch_or_sockets(graph: nx.DiGraph[str]) -> None:
    inside = [module for module in MODULES if _inside(module, "peers.protocol")]
    below = {m for module in inside for m in nx.descendants(graph, module)} | set(inside)
    used = {m: set(names_used(MODULES[m].read_text(encoding="utf-8"))) for m in below}
    banned = FORBIDDEN["peers.protocol"]
    assert {m: b for m, names in used.items() for b in banned if any(_inside(n, b) for n in names)} == {}


def test_no_folder_has_too_many_rooms_and_no_rooms_import_each_other(graph: nx.DiGraph[str]) -> None:
    assert crowded(rooms(graph)) == []
    assert circles(rooms(graph)) == []


def test_every_room_holds_a_module_and_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} == set(LAYER)


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("coordinator_free.x", "import time\ntime.sleep(1)", {"time.sleep"}),
        ("coordinator_free.x", "from time import sleep", {"time.sleep"}),
        ("coordinator_free.x", "import torch\nx: torch.nn.Module", {"torch"}),
        ("coordinator_free.x", "from torch import nn", {"torch"}),
        ("coordinator_free.x", "import time, torches", set()),
        ("transport.x", "from coordinator_free.identifiers import Part", set()),
        ("transport.x", "from coordinator_free.averaging import mixing", {"coordinator_free.averaging"}),
        ("peers.protocol.x", "if TYPE_CHECKING:\n    from torch import Tensor", {"torch"}),
        ("peers.protocol.x", "importlib.import_module('zmq.asyncio')", {"zmq"}),
        ("peers.runtime.x", "import torch, zmq, asyncio", set()),
    ],
)
def test_a_forbidden_name_is_found_in_every_form(module: str, source: str, found: set[str]) -> None:
    assert breaches(source, module) == found


@pytest.mark.parametrize(
    "source",
    [
        "import emulation.cli as c",
        "def f():\n    from emulation import cli",
        "if TYPE_CHECKING:\n    from emulation.cli import main",
        "importlib.import_module('emulation.cli')",
    ],
)
def test_an_upward_import_is_found_in_every_form(source: str) -> None:
    made = imports({"peers.runtime.x": source, "emulation.cli": "", "emulation": ""})
    assert "peers.runtime.x -> emulation.cli" in upward(made)


def test_a_circle_and_a_way_round_are_found() -> None:
    made = imports(
        {
            "peers.lora.a": "from peers.lora import b",
            "peers.lora.b": "from peers.lora.c import x",
            "peers.lora.c": "def f():\n    from peers.lora.a import y",
            "peers.storage.d": "from peers.lora.a import y",
            "peers.lora": "",
        }
    )
    assert circles(made) == [["peers.lora.a", "peers.lora.b", "peers.lora.c"]]
    assert reached(made, "peers.storage.d", ["peers.lora"]) == [
        "peers.lora.a",
        "peers.lora.b",
        "peers.lora.c",
    ]

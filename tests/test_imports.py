"""The layers of the code (docs/architecture.md), read from the syntax of every module; nothing is imported.

An import counts at any depth: in a function, for type checking only, or through `importlib.import_module`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator_free", "transport", "peers", "emulation")

# What no module of a package or room may use, besides what the layers below forbid.
FORBIDDEN = {
    "coordinator_free": ("transformers", "peft", "zmq", "socket", "asyncio", "time.sleep", "torch"),
    "transport": ("transformers", "peft"),
    "peers.protocol": ("torch", "zmq", "asyncio", "socket"),
}

# Rooms from the ground up. A room may import itself and rooms of lower layers. Rooms of one layer do not
# import each other. A module that is not in a listed room belongs to the room of its nearest listed parent.
LAYERS = (
    ("coordinator_free", "transport"),  # identifiers, seeded random numbers
    ("coordinator_free.membership", "transport.wire"),
    ("coordinator_free.averaging", "transport.shaping", "transport.security"),
    ("coordinator_free.correction", "transport.links"),
    ("transport.clocks",),
    ("peers",),  # config, errors, registry, plugins
    ("peers.tasks",),
    ("peers.models", "peers.protocol"),
    ("peers.lora",),
    ("peers.storage",),
    ("peers.unlearning",),
    ("peers.learning",),
    ("peers.runtime",),
    ("emulation.radio",),
    ("emulation.scenario",),
    ("emulation.analysis",),
    ("emulation.report", "emulation.testbed"),
    ("emulation.launch",),
    ("emulation.bench", "emulation.experiments"),
    ("emulation.commands",),
    ("emulation",),  # cli
)
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}

# Rooms that know nothing of what a device decides, nor of how it talks: also not through other modules.
APART = ("learning", "unlearning", "storage", "lora", "models", "tasks")
APART_FROM = ("peers.protocol", "peers.runtime", "transport.links", "transport.clocks")


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def names_used(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that a module imports, or reaches by attribute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [package] * bool(node.level) + [node.module] * bool(node.module)
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def breaches(source: str, module: str) -> set[str]:
    """Forbidden names that the source of `module` uses."""
    banned = [name for room, names in FORBIDDEN.items() if _inside(module, room) for name in names]
    return {name for used in names_used(source, module) for name in banned if _inside(used, name)}


def imports(sources: Mapping[str, str]) -> nx.DiGraph[str]:
    """An edge from each module to each module of the project that it imports."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sources)
    for module, source in sources.items():
        for name in names_used(source, module.rpartition(".")[0]):
            target = name if name in sources else name.rpartition(".")[0]
            if target in sources and target != module:
                graph.add_edge(module, target)
    return graph


def room(module: str) -> str:
    """The listed room that holds a module."""
    while module and module not in LAYER:
        module = module.rpartition(".")[0]
    return module


def upward(graph: nx.DiGraph[str]) -> list[str]:
    """Imports that lead to another room that is not on a lower layer."""
    rooms = ((a, b, room(a), room(b)) for a, b in graph.edges)
    return sorted(f"{a} -> {b}" for a, b, of_a, of_b in rooms if of_a != of_b and LAYER[of_a] <= LAYER[of_b])


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    """Groups of modules that import each other."""
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


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

"""Draw which room imports which, and check the layers of the code (docs/architecture.md).

Run `python docs/imports.py [imports.svg]` from any folder. The picture shows one box for each room
and one row for each layer. The exit status is 1 in three cases: an import does not lead down, modules
import each other in a circle, or a folder has more than MOST_ROOMS rooms. Imports inside functions and
for type checking count too. The script reads the modules and imports none.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator_free", "transport", "peers", "emulation", "unweft")
MOST_ROOMS = 12

# Rooms from the ground up. A room may import itself and rooms of lower layers. Rooms of one layer do not
# import each other. A module that is not in a listed room belongs to the room of its nearest listed parent.
LAYERS = (
    ("coordinator_free", "transport"),  # identifiers, seeded random numbers
    ("coordinator_free.membership", "transport.wire"),
    ("coordinator_free.averaging", "transport.shaping", "transport.security"),
    ("coordinator_free.correction", "transport.links"),
    ("transport.clocks",),
    ("peers",),  # config, section, errors, registry, plugins
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
    ("emulation.testbed", "emulation.verification", "emulation.planning"),
    ("emulation.watch",),
    ("emulation.report",),
    ("emulation.launch",),
    ("emulation.bench", "emulation.experiments"),
    ("emulation.commands",),
    ("emulation",),  # cli
    ("unweft",),  # the Python API
)
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def names_used(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that a module imports, or reaches by attribute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [package] * bool(node.level) + ([node.module] if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


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


def rooms(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """The same graph with one node for each room."""
    drawn: nx.DiGraph[str] = nx.DiGraph()
    drawn.add_nodes_from(sorted({room(name) for name in graph}))
    pairs = ((room(a), room(b)) for a, b in graph.edges)
    drawn.add_edges_from((a, b) for a, b in pairs if a != b)
    return drawn


def crowded(house: nx.DiGraph[str]) -> list[str]:
    """Folders with more than MOST_ROOMS rooms."""
    parents = [name.rpartition(".")[0] for name in house]
    return sorted(p for p in set(parents) if parents.count(p) > MOST_ROOMS)


def faults(graph: nx.DiGraph[str]) -> Iterator[str]:
    """One line for each breach of the rules."""
    house = rooms(graph)
    for kind, tested in (("modules", graph), ("rooms", house)):
        yield from (f"{kind} in a circle: {', '.join(group)}" for group in circles(tested))
    yield from (f"not downward: {edge}" for edge in upward(graph))
    yield from (f"{parent} has more than {MOST_ROOMS} rooms" for parent in crowded(house))


def draw(house: nx.DiGraph[str], path: Path) -> None:
    """Write the picture: a row a layer, the lowest at the bottom; upward arrows are red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted({LAYER[name] for name in house})
    members = {row: [name for name in house if LAYER[name] == row] for row in rows}
    places = {
        name: (1.5 * (at - (len(inside) - 1) / 2) + 0.3 * (height % 2), float(height))
        for height, inside in enumerate(members.values())
        for at, name in enumerate(inside)
    }
    figure, axes = plt.subplots(figsize=(9, 0.8 * len(rows) + 1))
    for source, target in house.edges:
        up = LAYER[source] <= LAYER[target]
        style = {"arrowstyle": "->", "color": "red" if up else "0.6", "connectionstyle": "arc3,rad=0.15"}
        axes.annotate(
            "", xy=places[target], xytext=places[source], arrowprops={**style, "shrinkA": 9, "shrinkB": 9}
        )
    for name, (x, y) in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"}
        axes.text(x, y, name, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    width = max(abs(x) for x, _ in places.values())
    axes.set(xlim=(-width - 1, width + 1), ylim=(-0.7, len(rows) - 0.3))
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    graph = imports({name: path.read_text(encoding="utf-8") for name, path in modules().items()})
    found, house = list(faults(graph)), rooms(graph)
    print(f"{len(graph)} modules in {len(house)} rooms, {graph.number_of_edges()} imports")
    print("\n".join(found) or "no circle, no import that does not lead down")
    if len(sys.argv) > 1:
        draw(house, Path(sys.argv[1]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw which package imports which, and check that no import goes up or round in a circle.

Run `python docs/imports.py [imports.svg]` from any folder. The picture shows one box for each package and one
row for each layer. The exit status is 1 in each of these cases: a package imports a higher layer; modules or
packages import each other in a circle; a folder has more than MOST_ROOMS packages. Imports inside functions
and for type checking count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
MOST_ROOMS = 12
# From the lowest layer to the highest. The packages of one layer do not import each other.
# A name covers the modules and packages below it that have no entry of their own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("coordinator_free", "transport"),
    ("coordinator_free.membership",),
    ("coordinator_free.averaging",),
    ("coordinator_free.correction", "transport.wire", "transport.shaping"),
    ("transport.security",),
    ("transport.links",),
    ("transport.clocks",),
    ("peers",),
    ("peers.tasks", "peers.models", "peers.lora", "peers.protocol"),
    ("peers.learning",),
    ("peers.unlearning", "peers.storage"),
    ("peers.runtime",),
    ("emulation",),
    ("emulation.radio",),
    ("emulation.scenario",),
    ("emulation.analysis",),
    ("emulation.report", "emulation.testbed"),
    ("emulation.launch",),
    ("emulation.bench.harness",),
    ("emulation.bench", "emulation.experiments"),
    ("emulation.commands",),
    ("emulation.cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the four packages."""
    tops = sorted({name.split(".")[0] for name in LEVEL})
    paths = (path for top in tops for path in sorted((ROOT / top).rglob("*.py")))
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(names: dict[str, Path]) -> nx.DiGraph[str]:
    """Edges from each module to the modules that it imports."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    for name, path in names.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = _imported(ast.parse(path.read_text(encoding="utf-8")), package, names)
        graph.add_edges_from((name, target) for target in targets if target != name)
    return graph


def _imported(tree: ast.Module, package: str, names: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in names or base in names:
                    yield inner if inner in names else base


def room(module: str, names: dict[str, Path]) -> str:
    """The package that a module is in. A module that LAYERS lists is a room of its own."""
    if module in LEVEL or names[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0]


def level(of: str) -> int:
    """The layer of a room: its own entry in LAYERS, or that of the nearest folder above."""
    while of not in LEVEL:
        of = of.rpartition(".")[0]
    return LEVEL[of]


def rooms(graph: nx.DiGraph[str], names: dict[str, Path]) -> nx.DiGraph[str]:
    """Edges between rooms. `count`: the number of imports."""
    drawn: nx.DiGraph[str] = nx.DiGraph()
    drawn.add_nodes_from(sorted({room(name, names) for name in names}))
    for source, target in graph.edges:
        a, b = room(source, names), room(target, names)
        if a != b:
            count = drawn.get_edge_data(a, b, {"count": 0})["count"]
            drawn.add_edge(a, b, count=count + 1)
    return drawn


def faults(graph: nx.DiGraph[str], names: dict[str, Path]) -> Iterator[str]:
    """One line for each circle, each import of a higher layer, and each folder with too many rooms."""
    house = rooms(graph, names)
    for kind, tested in (("modules", graph), ("rooms", house)):
        for circle in nx.strongly_connected_components(tested):
            if len(circle) > 1:
                yield f"{kind} in a circle: {', '.join(sorted(circle))}"
    for source, target in sorted(graph.edges):
        a, b = room(source, names), room(target, names)
        if level(a) < level(b):
            yield f"upward: {source} imports {target}"
        elif level(a) == level(b) and a in LEVEL and b in LEVEL and a != b:
            yield f"sideways: {source} imports {target}"
    for parent in sorted(house):
        inner = [name for name in house if name.rpartition(".")[0] == parent]
        if len(inner) > MOST_ROOMS:
            yield f"{parent} has {len(inner)} rooms; at most {MOST_ROOMS}"


def draw(house: nx.DiGraph[str], path: Path) -> None:
    """Write the picture: a row a layer, the lowest at the bottom; upward arrows are red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted({level(name) for name in house})
    members = {row: [name for name in house if level(name) == row] for row in rows}
    places = {
        name: (1.5 * (at - (len(inside) - 1) / 2) + 0.3 * (height % 2), float(height))
        for height, inside in enumerate(members.values())
        for at, name in enumerate(inside)
    }
    figure, axes = plt.subplots(figsize=(9, 0.8 * len(rows) + 1))
    for source, target in house.edges:
        up = level(source) < level(target)
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
    names = modules()
    graph = imports(names)
    found = list(faults(graph, names))
    house = rooms(graph, names)
    print(f"{len(names)} modules in {len(house)} rooms, {graph.number_of_edges()} imports")
    print("\n".join(found) or "no circle, no upward import")
    if len(sys.argv) > 1:
        draw(house, Path(sys.argv[1]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

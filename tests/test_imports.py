"""Who may import whom (docs/design.md), read off the syntax of every module: nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "transport": ("peers", "coordinator_free", "emulation", "transformers", "peft"),
    "coordinator_free": (
        *("peers", "transport", "emulation", "transformers", "peft"),
        *("zmq", "socket", "asyncio", "time.sleep", "torch.nn"),
    ),
    "peers": ("emulation",),
}
MODULES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def names_used(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that a module imports, at any depth and for type checking too, or reaches by attribute."""
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


def breaches(source: str, package: str) -> set[str]:
    """Forbidden names that a module of `package` uses."""
    return {
        banned
        for name in names_used(source, package)
        for banned in FORBIDDEN[package]
        if name == banned or name.startswith(f"{banned}.")
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_imports_only_what_its_package_may(path):
    assert breaches(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parts[0]) == set()


def test_every_package_has_modules():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(FORBIDDEN)


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("peers", "import emulation.launcher as l", {"emulation"}),
        ("peers", "def f():\n    from emulation import cli", {"emulation"}),
        ("peers", "if TYPE_CHECKING:\n    from emulation.cli import main", {"emulation"}),
        ("peers", "importlib.import_module('emulation.cli')", {"emulation"}),
        ("transport", "from peers.blocks import BlockKey", {"peers"}),
        ("coordinator_free", "import time\ntime.sleep(1)", {"time.sleep"}),
        ("coordinator_free", "from time import sleep", {"time.sleep"}),
        ("coordinator_free", "import torch\nx: torch.nn.Module", {"torch.nn"}),
        ("coordinator_free", "from torch import nn", {"torch.nn"}),
        ("coordinator_free", "import time, torch\ntorch.zeros(1)", set()),
        ("peers", "from . import blocks\nfrom .tasks import facts\nimport emulations", set()),
    ],
)
def test_the_rule_sees_every_way_of_importing(package, source, found):
    assert breaches(source, package) == found

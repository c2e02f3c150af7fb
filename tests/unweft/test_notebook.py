"""docs/quickstart.ipynb runs from the first cell to the last.

The cells run in this process. A Jupyter kernel would add 25 packages and a process to do the same. The
notebook starts two devices, since a notebook that shows `run` must call it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def execute(notebook: Path) -> list[Any]:
    """Run all code cells in one namespace; returns the value of the last expression of each cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    space: dict[str, Any] = {"__name__": "__main__"}
    return [run_cell("".join(cell["source"]), space) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, space: dict[str, Any]) -> Any:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), space)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), space)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, rounds, final, table, accuracy, survivors = execute(NOTEBOOK)
    assert rounds.count == 6 and 0 <= final["accuracy_all"] <= 1
    assert len(table) == 2 * 6 and len(accuracy) > 0
    assert survivors == ("d0@0",)

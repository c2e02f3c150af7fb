"""A project on the path with packages that are named as unweft's are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.package_names import NAMES, ROOT


def python(code: str, project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code with the project first on the path and unweft last, as an ordinary installation is."""
    head = "import sys; sys.path = [p for p in sys.path if p != sys.argv[1]]; sys.path.append(sys.argv[1])\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, ROOT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in NAMES:
        if name != "emulation":  # who has this one runs another program
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text('BROKER = "mqtt"\n')
    (tmp_path / "ours.py").write_text("import transport.mqtt\n")
    return tmp_path


def test_the_names_are_those_of_this_installation(project: Path, tmp_path: Path) -> None:
    code = (
        "import transport; assert transport.BROKER\n"  # it was imported before unweft was
        "import emulation, transport, peers, coordinator_free\n"
        "from transport.links import interface\n"
        f"for module in (emulation, transport, peers, coordinator_free):\n"
        f"    assert module.__file__.startswith({ROOT!r}), module\n"
    )
    done = python(code, project, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_plugin_that_uses_a_name_gets_one_clear_line(project: Path, tmp_path: Path) -> None:
    code = (
        "import emulation; from peers import plugins\n"
        "try:\n    plugins.load(['ours'])\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = python(code, project, tmp_path)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert "plugins: 'ours' cannot be imported" in done.stdout
    assert "the name 'transport' is a package of unweft" in done.stdout

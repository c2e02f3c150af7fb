"""Names of modules and packages in files that no import checks: setup.cfg, Dockerfile, deploy/, strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator_free", "emulation", "peers", "transport", "unweft")
FILE_NAMES = ("unweft.json", "unweft.run")  # texts that look like modules
NAME = rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)*"
AS_TEXT = (
    re.compile(rf"""-m["',\s]+({NAME})\b"""),  # python -m NAME, ["python", "-m", "NAME"]
    re.compile(rf"\bfrom ({NAME}) import\b"),
)
DEPLOYMENT = [
    ROOT / "Dockerfile",
    ROOT / "docker-compose.yml",
    *(path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()),
]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
EXAMPLES = (Path(__file__), ROOT / "tests" / "test_imports.py")  # their strings name modules that never were
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path not in EXAMPLES]
FILES = [*DEPLOYMENT, *SOURCES, *TESTS]


def modules_in_text(text: str) -> set[str]:
    return {name for pattern in AS_TEXT for name in pattern.findall(text)}


def modules_in_strings(source: str) -> Iterator[str]:
    """String constants that are a dotted name, such as a module to preload."""
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and "." in text and text not in FILE_NAMES and re.fullmatch(NAME, text):
            yield text


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def named_modules(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    return modules_in_text(text) | (set(modules_in_strings(text)) if path in SOURCES else set())


def test_every_module_that_a_text_names_exists() -> None:
    named = {(path.relative_to(ROOT).as_posix(), name) for path in FILES for name in named_modules(path)}
    assert len(named) > 500  # most are imports
    assert [(path, name) for path, name in sorted(named) if not exists(name)] == []


@pytest.mark.parametrize(
    "text",
    [
        'CMD ["python", "-m", "peers.gone"]',
        "command: [python, -m, peers.gone]",
        "python -m peers.gone",
        "READ = 'import os; from peers.gone import x'",
    ],
)
def test_a_module_that_is_gone_is_found_in_every_notation(text: str) -> None:
    assert modules_in_text(text) == {"peers.gone"} and not exists("peers.gone")


def test_strings_with_a_dotted_name_are_found() -> None:
    assert list(modules_in_strings('PRELOAD = ["torch", "peers.gone", "see peers.gone"]')) == ["peers.gone"]


# -- setup.cfg -----------------------------------------------------------------------------------------


def config() -> ConfigParser:
    found = ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def folders_with_code() -> set[Path]:
    return {path.parent for path in SOURCES}


def test_setup_cfg_lists_exactly_the_packages_of_the_repository() -> None:
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders_with_code()}
    assert set(config()["options"]["packages"].split()) == on_disk


def test_every_folder_with_code_is_a_package() -> None:
    assert [folder for folder in folders_with_code() if not (folder / "__init__.py").is_file()] == []


def package_data() -> dict[str, set[Path]]:
    """The files that each pattern of setup.cfg matches."""
    return {
        f"{package} = {pattern}": set(ROOT.joinpath(*package.split(".")).glob(pattern))
        for package, patterns in config()["options.package_data"].items()
        for pattern in patterns.split()
    }


def test_every_pattern_of_package_data_matches_a_file() -> None:
    assert [pattern for pattern, files in package_data().items() if not files] == []


def test_every_data_file_of_a_package_is_package_data() -> None:
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    data = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert data <= set().union(*package_data().values())

"""`unweft list`: the names that a scenario can use, with one line about each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from emulation.scenario import library
from peers.errors import InputError

EXAMPLE = "Example: unweft list policies"
Names = Mapping[str, str]  # the description by name


def _policies() -> Names:
    from coordinator_free.correction import dominant, policies

    del dominant  # its import registers a policy
    return _described({**policies.POLICIES, **policies.SCHEDULES})


def _topologies() -> Names:
    from coordinator_free.averaging.topology import TOPOLOGIES

    return _described(TOPOLOGIES)


def _mixing() -> Names:
    from coordinator_free.averaging.mixing import MODES

    return _described(MODES)


def _allocators() -> Names:
    from coordinator_free.averaging.rate_allocation import ALLOCATORS
    from peers.radio_config import FIFO

    return {FIFO: "The update that waited longest first, all in radio.codec.", **_described(ALLOCATORS)}


def _tasks() -> Names:
    from peers.tasks import tasks

    return _described({name: tasks.get(name) for name in tasks.names()})


def _models() -> Names:
    from peers.models.loader import models

    other = {"FOLDER or NAME": "A causal language model in a local folder, or of Hugging Face."}
    return {**_described({name: models.get(name) for name in models.names()}), **other}


def _events() -> Names:
    from emulation.scenario.events import KINDS

    return KINDS


def _scenarios() -> Names:
    return {name: library.description(path) for name, path in library.paths().items()}


KINDS: Mapping[str, tuple[str, Callable[[], Names]]] = {  # by name: the key that takes the names, the names
    "policies": ("correction.policy", _policies),
    "topologies": ("topology.kind", _topologies),
    "mixing": ("mixing.mode", _mixing),
    "allocators": ("radio.allocator", _allocators),
    "tasks": ("data.kind", _tasks),
    "models": ("model.name", _models),
    "events": ("event.N.kind", _events),
    "scenarios": ("unweft run NAME", _scenarios),
}


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar=f"[{'|'.join(KINDS)}]", help="Without it: all of them.", autocompletion=lambda: [*KINDS]
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(help="A module to import first, as in `plugins`; may be repeated.")
    ] = None,
) -> None:
    """List the names that a scenario can use."""
    from peers import plugins

    if kind is not None and kind not in KINDS:
        raise InputError(f"list: {kind!r} is not known; allowed: {', '.join(KINDS)}")
    plugins.load(plugin or ())
    console = Console()
    for name in KINDS if kind is None else (kind,):
        console.print(_table(name))


def _table(name: str) -> Table:
    key, names = KINDS[name]
    table = Table(title=f"{name} ({key})", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for entry, text in sorted(names().items()):
        table.add_row(entry, text)
    return table


def _described(entries: Mapping[str, object]) -> Names:
    """Each entry with the first paragraph of its docstring."""
    return {
        name: " ".join((inspect.getdoc(entry) or "").partition("\n\n")[0].split())
        for name, entry in entries.items()
    }

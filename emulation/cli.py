"""The command line. What is heavy (torch, matplotlib) is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from emulation.commands import bench as bench_cli
from emulation.commands import churn, device, experiment, keys
from peers.errors import InputError

app = typer.Typer(
    name="unweft",
    help="Devices that fine-tune a language model together, with nobody in charge, and forget who leaves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(keys.app, name="keys")
app.command(epilog=device.EXAMPLE)(device.device)
app.command(epilog=experiment.EXAMPLE)(experiment.experiment)
app.command(epilog=churn.EXAMPLE)(churn.churn)
app.command(epilog=bench_cli.EXAMPLE)(bench_cli.bench)

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=V", help="Puts a value over the scenario's; may be repeated."),
]


def main() -> None:
    """Entry point: exit status 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    try:
        app()
    except InputError as error:
        _say(str(error))
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)


def _say(message: str) -> None:
    print(f"unweft: {' '.join(message.split())}", file=sys.stderr)


@app.command(epilog="Example: unweft run scenarios/demo.toml --set round.count=60 --seed 1 --out runs/first")
def run(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="What is to happen.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for all that the run writes; default: runs/<time>-<scenario>.")
    ] = None,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option(help="Puts another seed over the scenario's.")] = None,
    clock: Annotated[
        Literal["real", "virtual"] | None, typer.Option(help="Which time devices live by.")
    ] = None,
    on: Annotated[
        Literal["local", "compose"],
        typer.Option(help="local: each device is a process here; compose: a container."),
    ] = "local",
) -> None:
    """Run a scenario: start its devices, inject its events, report what happened."""
    from emulation.scenario.loading import load

    loaded = load(scenario, set_ or (), seed, clock)
    folder = out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{loaded.name}"
    _refuse_unusable(folder)
    from emulation.scenario.preflight import check_against_model

    check_against_model(loaded)
    from emulation.launch import compose, local

    console = Console()
    try:
        status = (compose if on == "compose" else local).run(loaded, folder, console)
    except local.RunFailed as error:
        _say(str(error))
        raise typer.Exit(FAILED) from None
    finish(folder, console)
    raise typer.Exit(status)


def _refuse_unusable(folder: Path) -> None:
    """Raises InputError for a folder that cannot be made or holds something: two runs would mix figures."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be made in {there}; allowed: a new or empty folder")
    if there == folder.absolute() and any(there.iterdir()):
        raise InputError(f"--out: {folder} is not empty; allowed: a new or empty folder")


def finish(folder: Path, console: Console) -> None:
    """Summary, report and pictures of a run that is over; prints the result and where the report is."""
    from emulation.analysis import summary
    from emulation.report import html, text
    from emulation.testbed import reconstruction

    reconstruction.complete(folder)
    found = summary.write(folder)
    page = html.write(folder)
    console.print(text.table(found))
    for story in text.stories(found):
        console.print(f"• {story}", highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: unweft report runs/first")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `unweft run` wrote.")],
) -> None:
    """Write DIR/report.html, one page that holds everything, and bring DIR/summary.json up to date."""
    finish(folder, Console())


@app.command(epilog="Example: unweft forget runs/first/adapters/d0 --device d3 --out without-d3")
def forget(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="An adapter that a run exported.")],
    device_id: Annotated[str, typer.Option("--device", help="Whose contribution goes.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter without it; new or empty.")],
) -> None:
    """Delete one device's contribution from a saved adapter. Needs no training data and no run."""
    from peers.unlearning.forget import forget as delete

    _refuse_unusable(out)
    console = Console()
    console.print(_receipt(f"{device_id} is deleted", delete(adapter, device_id, out)))
    console.print(f"adapter: {out}", highlight=False, soft_wrap=True)


def _receipt(title: str, receipt: object) -> Table:
    """What a deletion did, one row for each field of its receipt."""
    fields = asdict(receipt) if is_dataclass(receipt) and not isinstance(receipt, type) else {}
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), str(value))
    return table

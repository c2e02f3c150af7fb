"""All commands. Each imports heavy modules (torch, matplotlib) only when it needs them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from emulation.commands import (
    ask,
    bench,
    churn,
    compare,
    device,
    experiment,
    export,
    forget,
    keys,
    plan,
    report,
    run,
    schema,
    verify,
    watch,
)
from emulation.commands import list as list_command

app = typer.Typer(
    name="unweft",
    help="Devices that fine-tune a language model together, with nobody in charge, and forget who leaves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unweft {version('unweft')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of `unweft` itself. `_print_version` handles the only one."""


app.add_typer(keys.app, name="keys")
app.command(epilog=run.EXAMPLE)(run.run)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=watch.EXAMPLE)(watch.watch)
app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=forget.EXAMPLE)(forget.forget)
app.command(epilog=verify.EXAMPLE)(verify.verify)
app.command(epilog=ask.EXAMPLE)(ask.ask)
app.command("list", epilog=list_command.EXAMPLE)(list_command.list_names)
app.command(epilog=schema.EXAMPLE)(schema.schema)
app.command(epilog=device.EXAMPLE)(device.device)
app.command(epilog=churn.EXAMPLE)(churn.churn)
app.command(epilog=experiment.EXAMPLE)(experiment.experiment)
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command(epilog=plan.EXAMPLE)(plan.plan)

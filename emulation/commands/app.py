"""All commands. Each imports heavy modules (torch, matplotlib) only when it needs them."""

from __future__ import annotations

import typer

from emulation.commands import bench, churn, device, experiment, forget, keys, report, run, watch

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
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command(epilog=run.EXAMPLE)(run.run)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=watch.EXAMPLE)(watch.watch)
app.command(epilog=forget.EXAMPLE)(forget.forget)

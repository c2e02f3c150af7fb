"""`unweft plan`: the cost of a run among very many devices, by a model of measured runs (docs/plan.md)."""

from __future__ import annotations

import json as json_
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from emulation.commands.output_folder import check_file
from emulation.planning.measured_runs import MOST
from emulation.report.formatting import UNKNOWN, megabytes, plain, plural
from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.planning.checks import Check
    from emulation.planning.forecast import Forecast, Row, Wanted
    from emulation.planning.measured_runs import MeasuredRun
    from emulation.planning.model import Model

EXAMPLE = "Example: unweft plan --devices 10000 --degree 4 --plot plan.png"
MOST_DEVICES = 10**7
LEAST_SETTING = 1e-9
PICTURES = (".png", ".svg", ".pdf")


def plan(
    devices: Annotated[
        list[int], typer.Option(metavar="N", help="Number of devices; may be repeated for several plans.")
    ],
    degree: Annotated[
        int, typer.Option(metavar="K", help="Neighbours of a device in the graph `regular`.")
    ] = 4,
    churn: Annotated[
        float, typer.Option(metavar="RATE", help="Events a round in the whole network: departures, arrivals.")
    ] = 0.0,
    budget: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="C_t of a device. Default: that of the measured runs."),
    ] = None,
    local_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Local steps in a round. Default: as measured."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="BYTES", help="Bytes a second of a radio. Default: as measured.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Latency of a link. Default: as measured.")
    ] = None,
    fit: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MEASURED.json",
            help="A file of `unweft bench scale --json`; may be repeated. Default: those of this version.",
        ),
    ] = None,
    hold_out: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The size that checks the model. Default: the largest that the others determine.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures.")] = None,
) -> None:
    """Bytes, times and memory of a run among very many devices, with 95 % prediction intervals.

    The model is fitted to measured runs. First it predicts a measured size from the other sizes.
    """
    _check(devices, degree, churn, {"--budget": budget, "--local-steps": local_steps})
    _check_settings({"--rate": rate, "--latency": latency})
    for option, path in (("--plot", plot), ("--json", json)):
        check_file(option, path)
    if plot is not None and plot.suffix not in PICTURES:
        raise InputError(f"--plot: {plot} is no name of a picture; allowed: {', '.join(PICTURES)}")
    from emulation.planning import measured_runs
    from emulation.planning.checks import held_out
    from emulation.planning.forecast import Wanted, forecast
    from emulation.planning.model import fit_model

    runs = measured_runs.read(fit or measured_runs.shipped())
    model = fit_model(runs)
    if hold_out is not None and hold_out not in model.sizes:
        raise InputError(f"--hold-out: {hold_out} was not measured; allowed: {_list(model.sizes)}")
    checks = held_out(runs, hold_out)
    reference = max(runs, key=lambda run: (run.budget_bytes, run.local_steps))
    wanted = [
        Wanted(
            *(count, degree, churn, budget or reference.budget_bytes, local_steps or reference.local_steps),
            *(rate, latency),
        )
        for count in devices
    ]
    plans = [forecast(model, one) for one in wanted]
    _show(runs, model, checks, plans)
    if plot is not None:
        from emulation.planning.figure import draw

        draw(model, runs, max(wanted, key=lambda one: one.devices), plot)
    if json is not None:
        _write(json, model, checks, plans)


def _check(devices: Sequence[int], degree: int, churn: float, counts: Mapping[str, int | None]) -> None:
    for count in devices:
        if not 2 <= count <= MOST_DEVICES:
            raise InputError(f"--devices: {count}; allowed: numbers from 2 to {MOST_DEVICES}")
    if not 2 <= degree <= MOST_DEVICES or degree % 2:
        raise InputError(
            f"--degree: {degree}; allowed: an even number of neighbours, 2 or more, up to {MOST_DEVICES}"
        )
    if not 0 <= churn <= MOST_DEVICES:
        raise InputError(f"--churn: {churn:g}; allowed: 0 or more events a round, up to {MOST_DEVICES}")
    for option, given in counts.items():
        if given is not None and not 1 <= given <= MOST:
            raise InputError(f"{option}: {given}; allowed: 1 or more, up to {MOST}")


def _check_settings(settings: Mapping[str, float | None]) -> None:
    for option, value in settings.items():
        if value is not None and not LEAST_SETTING <= value <= MOST:
            raise InputError(f"{option}: {value:g}; allowed: numbers from {LEAST_SETTING:g} to {MOST}")


# -- what is shown -------------------------------------------------------------------------------------------
def _show(
    runs: Sequence[MeasuredRun], model: Model, checks: Sequence[Check], plans: Sequence[Forecast]
) -> None:
    from emulation.planning.quantities import QUANTITIES

    console = Console()
    console.print(_check_table(checks))
    checked = {check.quantity.name for check in checks}
    without = [q.title for q in QUANTITIES if q.name in model.fits and q.name not in checked]
    if without:
        console.print(
            f"no check, since the other sizes do not determine it: {'; '.join(without)}", soft_wrap=True
        )
    console.print(
        f"fitted to {plural(len(runs), 'run')} of {_list(model.sizes)} devices; intervals: 95 %, Student's t",
        highlight=False,
        soft_wrap=True,
    )
    for one in plans:
        console.print(_plan_table(one.wanted, one.rows))
        for note in one.notes:
            console.print(f"• {note}", highlight=False, soft_wrap=True)


def _check_table(checks: Sequence[Check]) -> Table:
    table = Table(
        title="The check: held-out runs, and their whole forecast from the other sizes", title_justify="left"
    )
    for column in ("figure", "devices", "measured", "forecast", "error", "covered"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for check in checks:
        unit, low, middle, high = check.quantity.unit, *check.predicted
        predicted = f"{_value(middle, unit)} [{_value(low, unit)}, {_value(high, unit)}]"
        size = _variant(check.run)
        cells = _value(check.measured, unit), predicted, f"{100 * check.error:+.1f} %"
        table.add_row(check.quantity.title, size, *cells, "yes" if check.covered else "no")
    return table


def _variant(run: MeasuredRun) -> str:
    """The size of a run, and how it differs from the others of this size."""
    churn = f", {run.churn:g} events" if run.churn else ""
    budget = f", budget {megabytes(run.budget_bytes)}" if run.figures.get("withheld") else ""
    return f"{run.devices} ({run.clock}, degree {run.degree}{churn}{budget})"


def _plan_table(wanted: Wanted, rows: Sequence[Row]) -> Table:
    title = (
        f"{wanted.devices:,} devices, degree {wanted.degree}, {wanted.churn:g} events a round,"
        f" budget {megabytes(wanted.budget_bytes)}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("figure", "estimate", "from", "to"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for row in rows:
        low, middle, high = row.estimate or (None, None, None)
        table.add_row(row.title, *(_value(value, row.unit) for value in (middle, low, high)))
    return table


def _value(value: float | None, unit: str) -> str:
    if value is None or math.isinf(value):
        return UNKNOWN if value is None else "no bound"
    if unit == "B" and value < 1e15:
        return megabytes(value)
    return f"{value:.3g} {unit}" if value >= 1e6 else f"{plain(value)} {unit}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _write(path: Path, model: Model, checks: Sequence[Check], plans: Sequence[Forecast]) -> None:
    found = {
        "settings": model.settings.model_dump(),
        "sizes": model.sizes,
        "fits": {
            name: {
                "coefficients": fit.coefficients.tolist(),
                "spread": fit.spread,
                "degrees_of_freedom": fit.freedom,
            }
            for name, fit in model.fits.items()
        },
        "checks": [
            {
                "figure": check.quantity.name,
                "devices": check.run.devices,
                "clock": check.run.clock,
                "measured": check.measured,
                "predicted": check.predicted,
                "covered": check.covered,
            }
            for check in checks
        ],
        "plans": [
            {
                "devices": one.wanted.devices,
                "degree": one.wanted.degree,
                "churn": one.wanted.churn,
                "budget_bytes": one.wanted.budget_bytes,
                "local_steps": one.wanted.local_steps,
                "rate_Bps": one.wanted.rate_Bps or model.settings.rate_Bps,
                "latency_s": one.wanted.latency_s or model.settings.latency_s,
                "figures": [
                    {"title": row.title, "unit": row.unit, "estimate": _finite(row)} for row in one.rows
                ],
                "notes": one.notes,
            }
            for one in plans
        ],
    }
    path.write_text(json_.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(row: Row) -> list[float | None] | None:
    """Low, middle and high; null where there is no number."""
    return row.estimate and [value if abs(value) < float("inf") else None for value in row.estimate]

"""The charts of a report, from the records and the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from emulation.analysis.records import Record, RunRecords
from emulation.report import series
from emulation.report.formatting import megabytes, number, percent
from emulation.report.line_chart import Chart, Drawn, Line, draw
from emulation.report.palette import style
from emulation.report.series import Curve
from emulation.scenario.events import GONE

BANDS = 8  # with more lines, bands hide each other
PANELS = 24  # shards at most that have a panel of their own
RESIDUALS = {"local": "R_loc", "consensus": "R_con", "heterogeneity": "R_het"}  # logged name -> symbol
SHARE_TOP = 1.06  # of an axis for shares: a line at 100 % is seen whole
seconds = partial(number, form="{:,.3g} s")


def all_charts(run: RunRecords, summary: Record) -> dict[str, list[Drawn]]:
    """By section of the page, the charts for which the run has values."""
    decisions = series.decisions(run)
    found: dict[str, list[Chart]] = {
        "headline": [headline(run)],
        "accuracy": accuracy(run),
        "training": training(run, summary),
        "correction": [*residuals(run, decisions), priorities(run, decisions)],
        "budget": [budget(run)],
        "codecs": codecs(run),
    }
    return {name: [d for d in map(draw, charts) if d] for name, charts in found.items()}


# -- accuracy --------------------------------------------------------------------------------------------
def headline(run: RunRecords) -> Chart:
    """For each shard the mean accuracy over live devices, and a band down to the worst device."""
    gone = {str(e["device"]) for e in run.injected if e["kind"] in GONE}
    lines = []
    shards = series.shards(run)
    for shard in shards:
        curves = [series.accuracy(run, device, shard) for device in run.devices]
        worst = series.over_devices(curves, min) if len(shards) <= BANDS else ()
        look = style(series.number(run, shard))
        lines.append(Line(shard, series.over_devices(curves), look, shard in gone, worst))
    title = "Facts of each device that live devices answer correctly"
    return Chart(title, "mean", lines, series.marks(run), percent, SHARE_TOP, small=False)


def accuracy(run: RunRecords) -> list[Chart]:
    """One chart for each shard, one line for each device that answers."""
    return [
        Chart(
            f"Facts of {shard}",
            "answered correctly",
            _by_device(run, partial(series.accuracy, run, shard=shard), shard),
            series.marks(run),
            percent,
            SHARE_TOP,
        )
        for shard in series.shards(run)[:PANELS]
    ]


def _by_device(run: RunRecords, curve: series.OfDevice, own: str = "") -> list[Line]:
    return [Line(device, curve(device), style(i), device == own) for i, device in enumerate(run.devices)]


# -- training --------------------------------------------------------------------------------------------
def training(run: RunRecords, summary: Record) -> list[Chart]:
    """Loss of each device, times of a round, spectral rho and consensus error."""
    marks, rounds = series.marks(run), summary["rounds"]
    rho = [
        Line("mixing", series.of_summary(rounds, "spectral_rho"), style(0)),
        Line("graph", series.of_summary(rounds, "graph_rho"), style(1)),
    ]
    if rho[0].points == rho[1].points:
        rho = rho[:1]
    error = [Line("all", series.of_summary(rounds, "consensus_error"), style(2))]
    return [
        Chart(
            "Loss of the local steps", "nats per token", _by_device(run, partial(_value, run, "loss")), marks
        ),
        Chart("Time of a round", "mean over devices", _times(run), marks, seconds),
        Chart(
            "Wait for neighbours",
            "in each round",
            _by_device(run, partial(_value, run, "wait_s")),
            marks,
            seconds,
        ),
        Chart(
            "Spectral ρ = ‖W − J‖₂",
            "of the weights in a round; 0 mixes best, 1 not at all",
            rho,
            marks,
            top=SHARE_TOP,
        ),
        Chart("Consensus error", "distance of the copies from their mean, relative", error, marks),
    ]


def _value(run: RunRecords, key: str, device: str) -> Curve:
    return series.of_rounds(run, device, lambda line: line.get(key))


def _times(run: RunRecords) -> list[Line]:
    whole = [series.of_rounds(run, d, lambda line: line["t1_s"] - line["t0_s"]) for d in run.devices]
    steps = [_value(run, "train_s", d) for d in run.devices]
    waits = [_value(run, "wait_s", d) for d in run.devices]
    curves = {"whole": whole, "local steps": steps, "wait": waits}
    return [Line(name, series.over_devices(c), style(i)) for i, (name, c) in enumerate(curves.items())]


# -- correction ------------------------------------------------------------------------------------------
def residuals(run: RunRecords, decisions: list[Record]) -> list[Chart]:
    """One chart for each layer group: what is left to correct, by its cause."""
    return [
        Chart(
            f"Residuals of {group}",
            "in units of the loss, logarithmic",
            _named(values, RESIDUALS),
            series.marks(run),
            log=True,
        )
        for group, values in series.residuals(decisions).items()
    ]


def _named(values: Mapping[str, Curve], names: Mapping[str, str]) -> list[Line]:
    return [Line(names[n], values[n], style(i)) for i, n in enumerate(names) if n in values]


def priorities(run: RunRecords, decisions: list[Record]) -> Chart:
    """The priority p_g of each layer group."""
    lines = [
        Line(group, values.get("p", []), style(i))
        for i, (group, values) in enumerate(series.residuals(decisions).items())
    ]
    return Chart("Priority of each layer group", "p_g", lines, series.marks(run), percent, SHARE_TOP)


# -- bytes -----------------------------------------------------------------------------------------------
def budget(run: RunRecords) -> Chart:
    """Bytes that each device spent in each round, and the budget of a round."""
    granted = series.over_devices([_value(run, "granted_bytes", d) for d in run.devices], max)
    lines = [
        *_by_device(run, partial(_value, run, "spent_bytes")),
        Line("budget", granted, style(len(run.devices)), bold=True),
    ]
    return Chart(
        "Bytes that each device spent", "in a round", lines, series.marks(run), megabytes, small=False
    )


def codecs(run: RunRecords) -> list[Chart]:
    """One chart for each layer group: matrices sent with each codec."""
    found = series.sent_matrices(run)  # groups in the order of the layers
    names = list(dict.fromkeys(codec for own in found.values() for codec in own))
    return [
        Chart(
            f"Matrices of {group} sent",
            "by all devices in a round, by codec",
            [Line(codec, curve, style(names.index(codec))) for codec, curve in own.items()],
            series.marks(run),
        )
        for group, own in found.items()
    ]

"""`unweft experiment forgetting`: attacks on a forgotten contribution (method 10).

The leaver of each run has a random half of one pool of facts, so that each fact is in half of the runs. Each
run is attacked with all others of its event as shadow models. A model that has forgotten completely gives an
AUC of 0.5, whatever a fact's difficulty. The models before the deletion show the power of the attack. Members
and non-members of a run are also relearned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from emulation.analysis.evaluator import KEPT_SNAPSHOTS
from emulation.analysis.records import Record
from emulation.experiments import runner, tables
from emulation.experiments.arms import Arm
from emulation.experiments.attacks import assign, lira, logit_confidence, pooled
from emulation.experiments.catalogue import Scale, Setting
from emulation.experiments.grid import Cell, check_cells
from emulation.experiments.metrics import cell_key
from emulation.experiments.request import Request, arm_names
from emulation.experiments.shadow_models import INT4, MEAN, Attacker
from emulation.experiments.statistics import holm, interval
from emulation.launch import one_process
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.config import DeviceConfig
from peers.errors import InputError
from peers.tasks import Example, make_task, texts

NAME = "forgetting"
SETTING = Setting(NAME, "a complete graph; half of a pool of facts for the leaver")
FEWEST = 6  # runs: two shadow models of each kind beside the attacked one
DEFAULT_RUNS = 16
BEFORE, DELETED, END = "before", "deleted", "end"
WORST = "worst device"
KINDS = {
    "leave": "the leaver asks to be forgotten",
    "crash": "a crash verdict deletes the block",
    "return": "the leaver crashes, returns with a new block, and then asks to be forgotten",
}
ARMS = {name: Arm(name, text, event=None, branches=False) for name, text in KINDS.items()}


class ForgettingCell(Cell):
    """One run; its seed is its number among the shadow models of the experiment."""

    def scenario(self) -> Scenario:
        """The scenario without its data, which `write_data` makes."""
        data = {**self.common(), "correction": {"rounds": self.scale.correct}}
        data["eval"] = {"every": self.scale.every}
        events = sorted(self.events.items())
        return self.checked(data, [{"round": r, "kind": kind, "device": self.leaver} for r, kind in events])

    @property
    def rounds(self) -> int:
        return self.last_event + 1 + self.scale.correct

    @property
    def events(self) -> dict[int, str]:
        """The events of the leaver by round."""
        first, later = self.event_round, self.scale.correct
        if self.arm.name == "return":
            return {first: "crash", first + later: "return", first + 2 * later: "leave"}
        return {first: self.arm.name}

    @property
    def last_event(self) -> int:
        return max(self.events)


def pool(scale: Scale, setting: Setting = SETTING) -> list[Example]:
    """Twice the facts of a device: those of two shards that no device has."""
    config = ForgettingCell(setting, ARMS["leave"], 0, scale).scenario().device_config()
    return [e for i in range(2) for e in _facts(config, f"d{scale.max_devices + i}")]


def _facts(config: DeviceConfig, device: str) -> list[Example]:
    return texts(make_task(config).train_examples(device))


def write_data(cell: Cell, facts: Sequence[Example], had: NDArray[np.bool_], folder: Path) -> None:
    """Write the file of each device. All runs of an experiment have the same survivors' facts."""
    first = ForgettingCell(cell.setting, ARMS["leave"], 0, cell.scale).scenario().device_config()
    files = {device: _facts(first, device) for device in cell.survivors}
    files[cell.leaver] = [fact for fact, own in zip(facts, had, strict=True) if own]
    folder.mkdir(parents=True)
    for device, examples in files.items():
        lines = [json.dumps(_line(e)) for e in examples]
        (folder / f"{device}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(example: Example) -> Record:
    """A line of `data.kind = "jsonl"` that is read as this example, with an end token after the response."""
    if not example.messages:
        return {"prompt": example.prompt, "response": example.response}
    turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
    return {"messages": [*turns, {"role": "assistant", "content": example.response}]}


def choose_arms(names: str) -> tuple[str, ...]:
    """The arms of a list with commas; all for an empty list. Raises InputError."""
    wanted = arm_names(names, ARMS)
    return tuple(name for name in ARMS if name in wanted) or tuple(ARMS)


def parse_runs(text: str | None) -> tuple[int, ...]:
    """The numbers of the shadow runs of `--seeds`. Raises InputError for too few, and for named seeds."""
    runs = str(DEFAULT_RUNS) if text is None else text
    if not runs.isdecimal() or int(runs) < FEWEST:
        raise InputError(f"--seeds: {text!r} shadow runs; allowed: a number, at least {FEWEST}")
    return tuple(range(int(runs)))


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario that is not possible, and for --publish."""
    if request.publish is not None:
        raise InputError(f"--publish: {NAME} has no seeds to judge by; allowed: the other experiments")
    check_cells(_cells(replace(request, seeds=request.seeds[:1])))
    check_texts(request.scale, request.changed(SETTING), NAME)


def check_texts(scale: Scale, setting: Setting, experiment: str) -> None:
    """Raises InputError for a setting whose pool has no texts."""
    if not pool(scale, setting):
        raise InputError(
            f"data.kind: has no texts; allowed for {experiment}: a kind of texts, such as facts or authors"
        )


def _cells(request: Request) -> list[ForgettingCell]:
    setting = request.changed(SETTING)
    return [
        ForgettingCell(setting, ARMS[name], n, request.scale) for name in request.arms for n in request.seeds
    ]


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, attack them, print the table, write OUT/rows.csv and OUT/results.json."""
    facts = pool(request.scale, request.changed(SETTING))
    had = assign(len(request.seeds), len(facts), seed=0)
    work = run_one or RunAndAttack(facts, had)
    found = runner.run_cells(_cells(request), request.out, console, work, request.jobs)
    summary = aggregate(found, had)
    console.print(table(summary))
    console.print(relearning_table(summary))
    tables.write_results(request.out, summary, {"summary": summary})
    request.finish(NAME, found, "rows.csv, results.json", console)


@dataclass(frozen=True)
class RunAndAttack:
    """Runs a cell and measures its models. A class, because child processes get it pickled."""

    facts: list[Example]
    had: NDArray[np.bool_]

    def __call__(self, cell: Cell, folder: Path, console: Console) -> Record:
        own = self.had[cell.seed]
        write_data(cell, self.facts, own, folder / "data")
        scenario, out = cell.scenario(), folder / "run"
        files = scenario.data.model_copy(update={"kind": "jsonl", "path": str(folder / "data")})
        scenario = scenario.model_copy(update={"data": files})
        one_process.load_shared(scenario)
        check_against_model(scenario)
        (out / KEPT_SNAPSHOTS).mkdir(parents=True)
        try:
            one_process.run(scenario, out, ())  # the attacker reads the snapshots itself
            return {**cell_key(cell), "prefix_sha256": None, **self._attack(cell, scenario, out, own)}
        finally:
            for bulky in (KEPT_SNAPSHOTS, "adapters"):  # they may hold blocks that were forgotten
                shutil.rmtree(out / bulky, ignore_errors=True)

    def _attack(self, cell: Cell, scenario: Scenario, out: Path, own: NDArray[np.bool_]) -> Record:
        attacker = Attacker(scenario, self.facts)
        moments = snapshots(cell, out / KEPT_SNAPSHOTS)
        losses = {moment: attacker.losses(files, out) for moment, files in moments.items()}
        mean = out / "mean.safetensors"  # of the last moment
        relearn = {
            name: attacker.relearn(mean, np.flatnonzero(kind)) for name, kind in (("had", own), ("not", ~own))
        }
        mean.unlink()
        return {"losses": losses, "relearn": relearn}


def patterns(leaver: str) -> dict[str, str]:
    """By moment: the names of the snapshots before and after the leaver's deletion, and in rounds."""
    return {
        BEFORE: f"*-before-{leaver}.*",
        DELETED: f"*-deleted-{leaver}.*",
        END: "*-round.safetensors",
    }


def snapshots(cell: Cell, kept: Path) -> dict[str, dict[str, Path]]:
    """By moment: the last of each survivor's snapshots with the names of `patterns`.

    Raises InputError if one lacks.
    """
    found: dict[str, dict[str, Path]] = {}
    for moment, pattern in patterns(cell.leaver).items():
        paths = {device: sorted((kept / device).glob(pattern)) for device in cell.survivors}
        lacking = [device for device, of in paths.items() if not of]
        if lacking:
            raise InputError(f"{kept}: lacks snapshots of {', '.join(lacking)}; allowed: a run that finished")
        found[moment] = {device: of[-1] for device, of in paths.items()}
    return found


def aggregate(found: Sequence[Record], had: NDArray[np.bool_]) -> list[Record]:
    """One entry for each arm, moment and model, with the attack over all runs of the arm."""
    rows: list[Record] = []
    for arm in dict.fromkeys(one["arm"] for one in found):
        runs = [one for one in found if one["arm"] == arm]
        members = had[[one["seed"] for one in runs]]
        for moment in (BEFORE, DELETED, END):
            names = runs[0]["losses"][moment]
            each = {n: _attacked([one["losses"][moment][n] for one in runs], members) for n in names}
            devices = [each[n] for n in names if n not in (MEAN, INT4)]
            worst = max(devices, key=lambda result: result["auc"] or 0.0)
            for model, result in ((MEAN, each[MEAN]), (INT4, each[INT4]), (WORST, worst)):
                last = moment == END and model == MEAN
                rows.append({"arm": arm, "moment": moment, "model": model, **result, **_relearn(runs, last)})
    return _with_holm(rows)


def _attacked(losses: Sequence[Sequence[float]], members: NDArray[np.bool_]) -> Record:
    found = pooled(lira(logit_confidence(np.asarray(losses)), members), members)
    return {**asdict(found), "p": found.p}


def _with_holm(rows: list[Record]) -> list[Record]:
    """The rows with the p of the mean models after the deletion adjusted over all of these claims.

    Other rows have no p: the attack before the deletion is a control, the export is the same model again, and
    the worst device is the largest of several.
    """
    claims = [row["model"] == MEAN and row["moment"] != BEFORE for row in rows]
    adjusted = holm([row["p"] if claim else None for row, claim in zip(rows, claims, strict=True)])
    return [{**row, "p": p} for row, p in zip(rows, adjusted, strict=True)]


def _relearn(runs: Sequence[Record], measured: bool) -> Record:
    """Relearning over the runs: means of facts that the leaver had and had not, and their paired differences.

    steps: until half is relearned. other: the accuracy on the other half then. None: not in all runs.
    """
    row: Record = {}
    for figure in ("steps", "other"):
        had, never = (_relearned(runs, kind, figure) if measured else None for kind in ("had", "not"))
        row[f"{figure}_had"], row[f"{figure}_not"] = (fmean(of) if of else None for of in (had, never))
        pairs = [a - b for a, b in zip(had, never, strict=True)] if had and never else []
        found = interval(pairs)
        for bound in ("mean", "low", "high"):
            row[f"{figure}_difference_{bound}"] = None if found is None else getattr(found, bound)
    return row


def _relearned(runs: Sequence[Record], kind: str, figure: str) -> list[float] | None:
    """A figure of relearning by run. None if a run did not relearn half of the facts of this kind."""
    found = [one["relearn"][kind] for one in runs]
    return None if any(one["steps"] is None for one in found) else [float(one[figure]) for one in found]


def table(summary: Sequence[Record]) -> Table:
    """One row for each arm, moment and model."""
    made = tables.table("attacks on the leaver's facts")
    for head in ("event", "when", "model", "AUC ± s.e.", "p", "TPR ± s.e.", "members"):
        made.add_column(head, justify="left" if head in ("event", "when", "model") else "right")
    for e in summary:
        auc = _with_error(e["auc"], e["deviation"])
        tpr = _with_error(e["tpr"], e["tpr_deviation"])
        made.add_row(e["arm"], e["moment"], e["model"], auc, tables.p_text(e["p"]), tpr, str(e["members"]))
    made.caption = (
        "AUC: LiRA, each run against all others; 0.5: no trace; p: of 0.5, for mean models after the "
        "deletion, adjusted over the table (Holm); worst device: the largest of several; TPR at 1 % FPR"
    )
    return made


def relearning_table(summary: Sequence[Record]) -> Table:
    """One row for each arm: relearning from the mean model at the end."""
    made = tables.table("relearning of half of the facts, from the mean model at the end")
    for head in ("event", "figure", "had", "had not", "difference"):
        made.add_column(head, justify="left" if head in ("event", "figure") else "right")
    for e in summary:
        if e["moment"] == END and e["model"] == MEAN:
            for figure, name, digits in (("steps", "local steps", 1), ("other", "other half known", 3)):
                means = [_show(e[f"{figure}_{kind}"], digits) for kind in ("had", "not")]
                bounds = {name: e[f"{figure}_difference_{name}"] for name in ("mean", "low", "high")}
                found = None if bounds["mean"] is None else bounds
                made.add_row(e["arm"], name, *means, tables.spread(found, " ", digits))
    made.caption = (
        "local steps: until the shown half is known; other half known: accuracy on the half that was not "
        "shown, then; had, had not: facts that the leaver had, or never had; difference: paired by run, "
        "95 % t interval, too wide rather than too narrow, since the runs share facts; a dash: a run did not "
        "relearn them"
    )
    return made


def _with_error(value: float | None, error: float | None) -> str:
    return _show(value) if error is None else f"{_show(value)} ± {_show(error)}"


def _show(value: float | None, digits: int = 3) -> str:
    return tables.DASH if value is None else f"{value:.{digits}f}"

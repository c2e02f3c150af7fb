"""`unweft experiment privacy`: what differential privacy costs, and what it hides (docs/privacy.md).

As in `forgetting`, the leaver of each run has a random half of a pool of examples, so that each example is in
half of the runs, and each run is attacked with all others of its arm as shadow models (LiRA). The attack is
made before the leave, on what a neighbour holds, and after the deletion.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from emulation.analysis.evaluator import KEPT_SNAPSHOTS
from emulation.analysis.records import Record
from emulation.analysis.summary import build
from emulation.experiments import forgetting, listed_images, publication, runner, tables
from emulation.experiments.arms import Arm
from emulation.experiments.attacks import assign, lira, logit_confidence, pooled
from emulation.experiments.catalogue import Scale, Setting
from emulation.experiments.evaluation import write_mean
from emulation.experiments.forgetting import BEFORE, DELETED, END, ForgettingCell
from emulation.experiments.grid import Cell
from emulation.experiments.metrics import cell_key
from emulation.experiments.neighbour_attacks import Reader, Scores, sketch_attack, write_block_alone
from emulation.experiments.request import Request, arm_names
from emulation.launch import one_process
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.tasks import AnyExample, make_task
from peers.tasks.image_files import read_images

NAME = "privacy"
DIGITS, FACTS = "digits", "facts"
SETTINGS = (
    Setting(
        DIGITS,
        "digits: a class can be learnt without any single image",
        {
            "model.name": "small-resnet",
            "adapter.rank": 4,
            "train.lr": 1e-2,
            "train.micro_batch": 64,
            "data.kind": listed_images.KIND,
        },
    ),
    Setting(FACTS, "facts: an answer can be learnt from its own sentence alone"),
)
PLUGIN = "emulation.experiments.listed_images"
OFF = "none"


def _private(epsilon: int) -> Arm:
    changes = {"privacy.epsilon": float(epsilon), "privacy.delta": 1e-3}
    return Arm(f"epsilon-{epsilon}", f"epsilon = {epsilon} at delta = 1e-3", changes, branches=False)


ARMS = {a.name: a for a in (Arm(OFF, "without privacy", {}, branches=False), _private(8), _private(2))}
SCALES = {
    s.name: s
    for s in (
        Scale("full", devices=4, persons=10, learn=24, correct=8, every=4, seeds=0, max_devices=6, batch=64),
        Scale("small", devices=3, persons=10, learn=10, correct=2, every=2, seeds=0, max_devices=6, batch=64),
        Scale("smoke", devices=3, persons=5, learn=2, correct=2, every=2, seeds=0, max_devices=6, batch=8),
    )
}
IMAGES = {"full": 240, "small": 200, "smoke": 20}  # of a device
NEIGHBOUR, ALONE, MEAN = "neighbour", "block alone", "mean"
MODELS = ((BEFORE, NEIGHBOUR), (BEFORE, ALONE), (DELETED, MEAN), (END, MEAN))
FIGURES = ("retain", "test", "forget_before", "others_before", "forget_end", "others_end", "mb", "epsilon")


class PrivacyCell(ForgettingCell):
    """One run; its seed is its number among the shadow models of the experiment. The leaver asks to leave."""

    @property
    def events(self) -> dict[int, str]:
        return {self.event_round: "leave"}

    @property
    def images(self) -> int:
        """Of each device."""
        return IMAGES[self.scale.name]

    def pooled(self) -> list[AnyExample]:
        """Twice the examples of a device, of which the leaver has a random half in each run."""
        if self.setting.name == FACTS:
            return list(forgetting.pool(self.scale, self.setting))
        return list(listed_images.examples(read_images(None).train, self.numbers()[-2 * self.images :]))

    def numbers(self) -> list[int]:
        """Images by number: those of each survivor, then the pool. The same in all runs."""
        wanted = (len(self.survivors) + 2) * self.images
        order = np.random.Generator(np.random.Philox(key=0)).permutation(len(read_images(None).train))
        return [int(n) for n in order[:wanted]]

    def write_data(self, had: NDArray[np.bool_], folder: Path) -> None:
        """Write the file of each device."""
        if self.setting.name == FACTS:
            forgetting.write_data(self, forgetting.pool(self.scale, self.setting), had, folder)
            return
        folder.mkdir(parents=True)
        lists = np.split(np.array(self.numbers()), len(self.survivors) + 2)
        files = dict(zip(self.survivors, lists, strict=False))
        files[self.leaver] = np.concatenate(lists[-2:])[had]
        for device, own in files.items():
            (folder / f"{device}.json").write_text(json.dumps(own.tolist()), encoding="utf-8")

    def scenario(self) -> Scenario:
        """The scenario without its data, which `write_data` makes."""
        found = super().scenario()
        return found.model_copy(update={"plugins": (PLUGIN,)}) if self.setting.name == DIGITS else found


def choose_arms(names: str) -> tuple[str, ...]:
    """Pairs SETTING/ARM of a list of settings and arms with commas; all for an empty list.

    Raises InputError.
    """
    settings = [setting.name for setting in SETTINGS]
    wanted = arm_names(names, (*settings, *ARMS))
    chosen = ([n for n in known if n in wanted] or known for known in (settings, [*ARMS]))
    return tuple(f"{setting}/{arm}" for setting, arm in product(*chosen))


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for options or a scenario that are not possible."""
    if request.publish is not None:
        raise InputError(f"--publish: {NAME} has no seeds to judge by; allowed: the other experiments")
    if request.changes.get("adapter.kind") == "vera":
        raise InputError(
            f"--set adapter.kind: 'vera' with {NAME}, whose attack and noise need the gradient of a "
            "matrix B; allowed: another kind"
        )
    for cell in _cells(replace(request, seeds=request.seeds[:1])):
        scenario = cell.scenario()
        if cell.setting.name == FACTS:  # the digits have no data before `write_data`
            check_against_model(scenario)
            forgetting.check_texts(cell.scale, cell.setting, f"{NAME}, setting {FACTS}")


def _cells(request: Request) -> list[PrivacyCell]:
    if request.scale.name not in SCALES:
        raise InputError(
            f"--scale: {request.scale.name!r} is no scale of {NAME}; allowed: {', '.join(SCALES)}"
        )
    scale = SCALES[request.scale.name]
    return [
        PrivacyCell(request.changed(setting), arm, number, scale)
        for setting in SETTINGS
        for number in request.seeds
        for arm in ARMS.values()
        if f"{setting.name}/{arm.name}" in request.arms
    ]


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, attack them, print the tables, write OUT/rows.csv and results.json."""
    cells = _cells(request)
    pools = {cell.setting.name: len(cell.pooled()) for cell in cells if cell.seed == request.seeds[0]}
    had = {setting: assign(len(request.seeds), size, seed=0) for setting, size in pools.items()}
    found = runner.run_cells(cells, request.out, console, run_one or RunAndAttack(had), request.jobs)
    summary = aggregate(found, had)
    console.print(f"{request.scale.name}, {publication.header(found)}", highlight=False)
    for made in (table(summary), attack_table(summary)):
        console.print(made)
    for line in sketch_lines(found):
        console.print(line, highlight=False, soft_wrap=True)
    rows = [{**cell_key_of(one), **{name: one[name] for name in FIGURES}} for one in found]
    tables.write_results(request.out, rows, {"summary": summary})
    request.finish(NAME, found, "rows.csv, results.json", console)


def cell_key_of(found: Record) -> Record:
    """The identity of a run in rows."""
    return {name: found[name] for name in ("setting", "arm", "seed")}


@dataclass(frozen=True)
class RunAndAttack:
    """Runs a cell and measures its models. A class, because child processes get it pickled.

    had: by setting, which run has which example of the pool.
    """

    had: Mapping[str, NDArray[np.bool_]]

    def __call__(self, cell: Cell, folder: Path, console: Console) -> Record:
        assert isinstance(cell, PrivacyCell)
        own = self.had[cell.setting.name][cell.seed]
        cell.write_data(own, folder / "data")
        scenario, out = cell.scenario(), folder / "run"
        kind = "jsonl" if cell.setting.name == FACTS else listed_images.KIND
        files = scenario.data.model_copy(update={"kind": kind, "path": str(folder / "data")})
        scenario = scenario.model_copy(update={"data": files})
        one_process.load_shared(scenario)
        check_against_model(scenario)
        (out / KEPT_SNAPSHOTS).mkdir(parents=True)
        try:
            one_process.run(scenario, out, ())
            return {**cell_key(cell), "prefix_sha256": None, **measure(cell, scenario, out, own)}
        finally:
            for bulky in (KEPT_SNAPSHOTS, "adapters"):  # they may hold blocks that were forgotten
                shutil.rmtree(out / bulky, ignore_errors=True)


def measure(cell: PrivacyCell, scenario: Scenario, out: Path, own: NDArray[np.bool_]) -> Record:
    """The figures of a run, and the losses of its models on the pool."""
    pool, paths = cell.pooled(), model_files(cell, out)
    task = make_task(scenario.device_config())
    retained = [e for device in cell.survivors for e in task.train_examples(device)]
    fresh = [*task.control_examples()]
    reader = Reader(scenario, [*pool, *retained, *fresh])
    read = {model: reader.read(path) for model, path in paths.items()}
    known = {model: np.split(of, [len(pool), len(pool) + len(retained)]) for model, (_, of) in read.items()}
    summary = build(out)
    spent = summary.get("privacy", {"epsilon": {}})["epsilon"]
    attacked = cell.arm.name == OFF
    others = [e for e, mine in zip(pool, own, strict=True) if not mine]
    mine = [e for e, had in zip(pool, own, strict=True) if had]
    before = paths[BEFORE, NEIGHBOUR]
    record = {
        "retain": float(known[END, MEAN][1].mean()),
        "test": float(known[END, MEAN][2].mean()) if fresh else None,  # no other fact says a fact
        **_known("before", known[BEFORE, ALONE][0], own),
        **_known("end", known[END, MEAN][0], own),
        "mb": sum(d["bytes_sent"] for d in summary["devices"]) / 1e6,
        "epsilon": spent.get(cell.leaver),
        "losses": {f"{moment}/{model}": _listed(read[moment, model][0], pool) for moment, model in MODELS},
        "sketch": sketch_attack(scenario, before, mine, others) if attacked else None,
    }
    for path in paths.values():
        path.unlink()
    return record


def _known(moment: str, known: NDArray[np.bool_], own: NDArray[np.bool_]) -> Record:
    """The accuracy on the examples of the pool that the leaver had, and on those that it had not."""
    return {f"forget_{moment}": float(known[own].mean()), f"others_{moment}": float(known[~own].mean())}


def _listed(losses: Scores, pool: Sequence[AnyExample]) -> list[float]:
    found: list[float] = losses[: len(pool)].tolist()
    return found


def model_files(cell: Cell, out: Path) -> dict[tuple[str, str], Path]:
    """A snapshot for each of MODELS. Raises InputError if a device has none."""
    kept = forgetting.snapshots(cell, out / KEPT_SNAPSHOTS)
    found = {(BEFORE, NEIGHBOUR): kept[BEFORE][cell.survivors[0]]}
    found[BEFORE, ALONE] = out / "block.safetensors"
    write_block_alone(found[BEFORE, NEIGHBOUR], cell.leaver, found[BEFORE, ALONE])
    for moment in (DELETED, END):
        found[moment, MEAN] = out / f"{moment}.safetensors"
        write_mean(kept[moment].values(), found[moment, MEAN])
    return found


def aggregate(found: Sequence[Record], had: Mapping[str, NDArray[np.bool_]]) -> list[Record]:
    """One entry for each setting and arm: means of the figures, and the attacks over all of its runs."""
    summary = []
    for setting, arm in dict.fromkeys((one["setting"], one["arm"]) for one in found):
        runs = [one for one in found if (one["setting"], one["arm"]) == (setting, arm)]
        members = had[setting][[one["seed"] for one in runs]]
        attacks = {
            f"{moment}/{model}": _attacked([one["losses"][f"{moment}/{model}"] for one in runs], members)
            for moment, model in MODELS
        }
        means = {name: _mean([one[name] for one in runs]) for name in FIGURES}
        summary.append({"setting": setting, "arm": arm, "runs": len(runs), **means, "attacks": attacks})
    return summary


def _attacked(losses: Sequence[Sequence[float]], members: NDArray[np.bool_]) -> Record:
    return asdict(pooled(lira(logit_confidence(np.asarray(losses)), members), members))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def table(summary: Sequence[Record]) -> Table:
    """Accuracies and costs: a row for each setting and arm."""
    made = tables.table("privacy: accuracy and cost")
    for head in ("setting", "arm", "runs", "retain", "test", "before:\nhad / not", "end:\nhad / not", "MB"):
        made.add_column(head, justify="left" if head in ("setting", "arm") else "right")
    made.add_column("epsilon", justify="right")
    for e in summary:
        pairs = [f"{_show(e[f'forget_{m}'])} / {_show(e[f'others_{m}'])}" for m in ("before", "end")]
        cells = [_show(e["retain"]), _show(e["test"]), *pairs, _show(e["mb"]), _show(e["epsilon"])]
        made.add_row(e["setting"], e["arm"], str(e["runs"]), *cells)
    made.caption = (
        "retain, test: mean model at the end, on the survivors' examples and on examples of nobody; before: "
        "the leaver's block alone, as a neighbour received it, on examples that the leaver had / had not; "
        "MB: all devices; epsilon: spent by the leaver"
    )
    return made


def attack_table(summary: Sequence[Record]) -> Table:
    """Membership of the leaver's examples: a row for each setting, arm and model."""
    made = tables.table("privacy: likelihood-ratio attack on the leaver's examples")
    for head in ("setting", "arm", "when", "model", "AUC", "± s.e.", "TPR", "members"):
        made.add_column(head, justify="left" if head in ("setting", "arm", "when", "model") else "right")
    for e in summary:
        for moment, model in MODELS:
            of = e["attacks"][f"{moment}/{model}"]
            figures = [
                _show(of["auc"], 3),
                _show(of["deviation"], 3),
                _show(of["tpr"], 3),
                str(of["members"]),
            ]
            made.add_row(e["setting"], e["arm"], moment, model, *figures)
    made.caption = (
        "LiRA, each run against all others of its arm; 0.5: no trace; TPR at 1 % FPR; neighbour: the model "
        "of a survivor; block alone: the base with the leaver's block; mean: mean model of the survivors"
    )
    return made


def sketch_lines(found: Sequence[Record]) -> list[str]:
    """What one report of sketches tells, by setting. Only runs without privacy may send reports."""
    lines = []
    for setting in dict.fromkeys(one["setting"] for one in found):
        runs = [one["sketch"] for one in found if one["setting"] == setting and one["sketch"]]
        if runs:
            parts = (f"AUC {_show(_mean([one[name] for one in runs]), 3)} {name}" for name in runs[0])
            lines.append(f"• {setting}: membership from one sketch of gradients, {', '.join(parts)}")
    return lines


def _show(value: float | None, digits: int = 2) -> str:
    return tables.DASH if value is None else f"{value:.{digits}f}"

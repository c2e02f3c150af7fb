"""`unweft experiment baselines`: the paper's baselines at a leave, with what each stores and sends.

All devices are in one process (network.py), since the baselines need what no device of a run may have: the
leaver's gradient, its steps of distillation, or a history of all moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from emulation.analysis.records import Record
from emulation.experiments import runner, tables, unlearners
from emulation.experiments.aggregate import to_record
from emulation.experiments.arms import BEFORE, EWC, UNIFORM, Arm
from emulation.experiments.catalogue import DEFAULT
from emulation.experiments.evaluation import MeanModelEvaluator
from emulation.experiments.grid import Cell, set_all
from emulation.experiments.network import Change, Moves, Network
from emulation.experiments.request import Request, arm_names, say_smoke
from emulation.experiments.statistics import interval
from emulation.experiments.unlearners import Leave, Unlearn
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.unlearning.federaser import History

NAME = "baselines"
RETRAIN, NAIVE_REMOVE = "retrain", "naive-remove"
HISTORY_EVERY = 2  # rounds between two stored moves of FedEraser
EWC_CHANGES = {"correction.ewc": EWC}
ARMS: dict[str, tuple[Arm, Unlearn, str]] = {
    arm.name: (arm, unlearn, needs)
    for arm, unlearn, needs in (
        (Arm(UNIFORM, "ours: the block is deleted, then rounds"), unlearners.delete, "nothing"),
        (Arm(NAIVE_REMOVE, "the leaver goes, nothing else"), unlearners.keep, "nothing"),
        (Arm("naive-fine-tune", "the block stays, then rounds"), unlearners.keep, "nothing"),
        (
            Arm("ewc-leave", "the block stays, then rounds with EWC", EWC_CHANGES),
            unlearners.keep,
            "F and B* of the own block, in the correction",
        ),
        (Arm("influence", "a Gauss-Newton step, then rounds"), unlearners.influence, "the leaver's gradient"),
        (Arm("kd-unlearn", "distilled by the leaver, then rounds"), unlearners.distil, "the leaver's steps"),
        (Arm("federaser", "training repeated from a history"), unlearners.erase, "own moves of past rounds"),
        (
            Arm(RETRAIN, "from scratch without the leaver", branches=False),
            unlearners.keep,
            "the time of a whole training",
        ),
    )
}
COSTS = ("stored_bytes", "sent_bytes", "steps")
FIGURES = ("retain_0", "forget_0", "retain", "forget", "auc", "loss", "ri", *COSTS)


class BaselineCell(Cell):
    """One arm and seed. BEFORE learns, and leaves checkpoints and the histories of FedEraser."""

    def scenario(self) -> Scenario:
        scale = self.scale
        data: dict[str, Any] = {
            "name": self.name.replace("/", "-"),
            "seed": self.seed,
            "devices": {"count": scale.devices},
            "data": {"persons": scale.persons, "batch": scale.batch},
            "adapter": {"max_devices": scale.max_devices},
            "round": {"count": scale.learn + scale.correct},
            "correction": {"rounds": scale.correct},
        }
        set_all(data, self.setting.changes)
        set_all(data, self.arm.changes)
        return Scenario.model_validate(data)


def choose_arms(names: str) -> tuple[str, ...]:
    """The arms of a list with commas, with `uniform` and `retrain`. An empty list: all. Raises InputError."""
    wanted = arm_names(names, ARMS, NAME)
    return tuple(name for name in ARMS if not wanted or name in {*wanted, UNIFORM, RETRAIN})


def run(request: Request, console: Console) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv and results.json, and print the table."""
    wanted = [
        BaselineCell(DEFAULT, arm, seed, request.scale)
        for seed in request.seeds
        for arm in (BEFORE, *(ARMS[name][0] for name in request.arms))
    ]
    rows = with_ri(runner.run_cells(wanted, request.out, console, run_and_measure, request.jobs))
    summary = aggregate(rows)
    tables.write_results(request.out, rows, {"summary": summary})
    console.print(table(summary))
    for entry in summary:
        console.print(f"• {entry['arm']} needs: {entry['keeps']}", highlight=False)
    console.print(f"written: {request.out}/rows.csv, results.json", highlight=False, soft_wrap=True)
    say_smoke(request.scale, console)


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Learn and save (BEFORE), or unlearn from there and correct, and measure."""
    scenario = cell.scenario()
    key = {"setting": cell.setting.name, "arm": cell.arm.name, "seed": cell.seed, "prefix_sha256": None}
    if cell.arm == BEFORE:
        check_against_model(scenario)
        _learn(cell, scenario, folder)
        return key
    if cell.arm.name == RETRAIN:
        return {**key, **_retrain(cell, scenario, folder)}
    before = folder.parents[1] / BEFORE.name / folder.name
    resumed = scenario.model_copy(
        update={"checkpoint": scenario.checkpoint.model_copy(update={"resume": str(before)})}
    )
    network = Network(resumed, scenario.initial_devices)
    return {**key, **_unlearn(cell, network, _read_histories(before, cell.survivors), folder)}


def _learn(cell: Cell, scenario: Scenario, folder: Path) -> None:
    network = Network(scenario, scenario.initial_devices)
    histories = {device: History(HISTORY_EVERY) for device in scenario.initial_devices}
    steps, devices = scenario.round.local_steps, scenario.initial_devices
    for number in range(cell.scale.learn):
        network.round(number, steps, devices, _recorded(histories, number))
    network.save(folder)
    for device, history in histories.items():
        path = folder / "histories" / f"{device}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({f"{i}/{g}": m for i, moves in enumerate(history.rounds) for g, m in moves.items()}, path)


def _recorded(histories: dict[str, History], number: int) -> Change:
    def change(device: str, move: Moves) -> Moves:
        histories[device].keep(number, move)
        return move

    return change


def _read_histories(before: Path, devices: Sequence[str]) -> dict[str, History]:
    found = {}
    for device in devices:
        moves: dict[int, Moves] = {}
        for name, values in load_file(before / "histories" / f"{device}.safetensors").items():
            place, _, group = name.partition("/")
            moves.setdefault(int(place), {})[group] = values
        found[device] = History(HISTORY_EVERY, [moves[place] for place in sorted(moves)])
    return found


def _unlearn(cell: Cell, network: Network, histories: dict[str, History], folder: Path) -> Record:
    """Scores right after the unlearning (k = 0) and after K rounds, and the costs from the leave on."""
    leave = Leave(network, cell.leaver, cell.survivors, histories)
    evaluator = MeanModelEvaluator(network.scenario, cell.survivors, cell.leaver)
    ARMS[cell.arm.name][1](leave)
    at_once = _score(evaluator, network, cell, folder)
    for device in cell.survivors:
        network.learners[device].set_anchor()
    rounds = 0 if cell.arm.name == NAIVE_REMOVE else cell.scale.correct
    for number in range(cell.scale.learn, cell.scale.learn + rounds):
        network.round(number, network.config.round.local_steps, cell.survivors)
    stored = leave.stored_bytes
    if network.config.correction.ewc:
        stored = 2 * sum(values.numel() * 4 for values in network.own(cell.survivors[0]).values())
    return _measures(at_once, _score(evaluator, network, cell, folder), network, stored)


def _retrain(cell: Cell, scenario: Scenario, folder: Path) -> Record:
    network = Network(scenario, cell.survivors)
    evaluator = MeanModelEvaluator(scenario, cell.survivors, cell.leaver)
    at_once = _score(evaluator, network, cell, folder)
    for number in range(cell.scale.learn + cell.scale.correct):
        network.round(number, scenario.round.local_steps, cell.survivors)
    return _measures(at_once, _score(evaluator, network, cell, folder), network, 0)


def _score(evaluator: MeanModelEvaluator, network: Network, cell: Cell, folder: Path) -> Record:
    path = network.snapshot(cell.survivors[0], folder / "model.safetensors")
    found = evaluator.score_snapshot(path).to_dict()
    path.unlink()
    return dict(found)


def _measures(at_once: Record, end: Record, network: Network, stored: int) -> Record:
    costs = {"stored_bytes": stored, "sent_bytes": network.sent_bytes, "steps": network.steps}
    first = {"retain_0": at_once["retain"], "forget_0": at_once["forget"]}
    return {**first, **{name: end[name] for name in ("retain", "forget", "auc", "loss")}, **costs}


def with_ri(rows: Sequence[Record]) -> list[Record]:
    """Add RI, the reduction of the final loss on survivors' data against `uniform`, in percent."""
    uniform = {row["seed"]: row["loss"] for row in rows if row["arm"] == UNIFORM}
    return [{**row, "ri": 100 * (1 - row["loss"] / uniform[row["seed"]])} for row in rows]


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each arm: means over seeds with intervals."""
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        means = {name: to_record(interval([r[name] for r in own if r[name] is not None])) for name in FIGURES}
        found.append({"arm": arm, "seeds": len(own), "keeps": ARMS[arm][2], **means})
    return found


def table(summary: Sequence[Record]) -> Table:
    """One row for each arm."""
    made = tables.table("baselines at a leave")
    heads = ("arm", "forget\nk = 0", "retain\nk = 0", "forget\nk = K", "retain\nk = K", "AUC", "RI %")
    for head in (*heads, "kept\nKB", "sent\nMB", "steps"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for e in summary:
        spreads = [tables.spread(e[n]) for n in ("forget_0", "retain_0", "forget", "retain", "auc")]
        scaled = [_scaled(e[name], by) for name, by in zip(COSTS, (1e3, 1e6, 1), strict=True)]
        costs = [tables.number(found, digits) for found, digits in zip(scaled, (1, 1, 0), strict=True)]
        made.add_row(e["arm"], *spreads, tables.number(e["ri"], 1), *costs)
    made.caption = (
        "kept: by one device for the baseline alone; sent: payloads of all devices from the leave on; steps: "
        "local steps of all devices from the leave on; retrain: from its start on"
    )
    return made


def _scaled(found: Record | None, by: float) -> Record | None:
    return None if found is None else {"mean": found["mean"] / by}

"""`unweft run --track NAME`: the rounds, accuracies and results of a run in an experiment tracker.

Each tracker is an optional extra of the same name. Its own settings (server, account, offline mode) come from
its own environment variables. A value is sent with the round that it belongs to.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console

from emulation.analysis.link_totals import total_sent
from emulation.analysis.records import Record, Tail
from emulation.scenario.schema import Scenario
from peers.errors import InputError, describe

PROJECT = "unweft"
PERIOD_S, END_S = 1.0, 30.0  # between two looks at the records; longest wait at the end
Values = Mapping[str, float]


class Tracker(Protocol):
    """One run in a tracker."""

    def log(self, values: Values, round_: int) -> None:
        """Send the values of a round. Rounds may come in any order."""

    def finish(self) -> None:
        """The run is over."""


class _StepTracker:
    """wandb and trackio, which share an interface. The round is a value, since their own step only grows."""

    def __init__(self, library: Any, scenario: Scenario, out: Path, **options: object) -> None:
        config = scenario.model_dump(mode="json")
        self._run = library.init(project=PROJECT, name=out.name, config=config, **options)

    def log(self, values: Values, round_: int) -> None:
        self._run.log({**values, "round": round_})

    def finish(self) -> None:
        self._run.finish()


def _wandb(library: Any, scenario: Scenario, out: Path) -> Tracker:
    tracker = _StepTracker(library, scenario, out, dir=str(out))
    library.define_metric("*", step_metric="round")
    return tracker


def _trackio(library: Any, scenario: Scenario, out: Path) -> Tracker:
    # Figures of this machine are not figures of the run.
    return _StepTracker(library, scenario, out, auto_log_cpu=False, auto_log_gpu=False)


class _TensorBoard:
    def __init__(self, library: Any, scenario: Scenario, out: Path) -> None:
        self._writer = library.SummaryWriter(str(out / "tensorboard"))
        self._writer.add_text("scenario", f"```\n{scenario.model_dump_json(indent=1)}\n```")

    def log(self, values: Values, round_: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_)

    def finish(self) -> None:
        self._writer.close()


class _Mlflow:
    def __init__(self, library: Any, scenario: Scenario, out: Path) -> None:
        self._library = library
        library.set_experiment(PROJECT)
        library.start_run(run_name=out.name)
        library.log_dict(scenario.model_dump(mode="json"), "scenario.json")

    def log(self, values: Values, round_: int) -> None:
        self._library.log_metrics(dict(values), step=round_)

    def finish(self) -> None:
        self._library.end_run()


Start = Callable[[Any, Scenario, Path], Tracker]
TRACKERS: Mapping[str, tuple[str, Start]] = {  # the module, and how a run begins in it
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "mlflow": ("mlflow", _Mlflow),
}


def check(name: str) -> None:
    """Raises InputError for an unknown tracker, or one that is not installed."""
    if name not in TRACKERS:
        raise InputError(f"--track: {name!r} is not known; allowed: {', '.join(TRACKERS)}")
    try:
        importlib.import_module(TRACKERS[name][0])
    except ImportError as error:
        raise InputError(
            f"--track: {name} is not installed ({error}); allowed: pip install 'unweft[{name}]'"
        ) from None


class Tracking:
    """Follows the records of a run and sends them, in a thread. Use it as a context manager.

    The thread keeps a slow server from delaying the run. A tracker that fails is given up with one line,
    because it must not end the run. `name`: None: no tracker.
    """

    def __init__(self, name: str | None, scenario: Scenario, out: Path, console: Console) -> None:
        self._name, self._scenario, self._out, self._console = name, scenario, out, console
        self._metrics: dict[str, Tail] = {}
        self._evaluations = Tail(out / "evaluations.jsonl")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> Tracking:
        if self._name is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(END_S)
        if self._thread.is_alive():
            self._say(f"the last values were not sent within {END_S:g} s")

    def _work(self) -> None:
        try:
            tracker = self._start()
            while not self._over.wait(PERIOD_S):
                self._send(tracker)
            self._send(tracker)
            tracker.finish()
        except Exception as error:  # a tracker may raise anything
            self._say(describe(error))

    def _start(self) -> Tracker:
        module, start = TRACKERS[self._name or ""]
        return start(importlib.import_module(module), self._scenario, self._out)

    def _send(self, tracker: Tracker) -> None:
        """Send the new records."""
        for folder in sorted((self._out / "devices").glob("*")):
            tail = self._metrics.setdefault(folder.name, Tail(folder / "metrics.jsonl"))
            for line in tail.read():
                tracker.log(round_values(folder.name, line), int(line["round"]))
        for line in self._evaluations.read():
            values = evaluation_values(line)
            if values:
                tracker.log(values, int(line["round"]))

    def _say(self, why: str) -> None:
        self._console.print(f"tracking with {self._name} ended: {why}", highlight=False, markup=False)


def round_values(device: str, line: Record) -> Values:
    """The values of a closed round of a device."""
    values = {
        "loss": line["loss"],
        "round_s": line["t1_s"] - line["t0_s"],
        "wait_s": line["wait_s"],
        "spent_bytes": line["spent_bytes"],
        "sent_bytes": total_sent(line["links"]),
    }
    return {f"{device}/{name}": float(value) for name, value in values.items() if value is not None}


def evaluation_values(line: Record) -> Values:
    """The values of an evaluation of a device, or the consensus error of a round."""
    if "consensus_error" in line:
        return {"consensus_error": float(line["consensus_error"])}
    known = [float(value) for value in line["accuracy"].values()]
    if line["tag"] not in ("round", "end") or not known:
        return {}
    own = line["accuracy"].get(line["device"])
    values = {"accuracy_mean": fmean(known), "accuracy_min": min(known)}
    values |= {} if own is None else {"accuracy_own": float(own)}
    return {f"{line['device']}/{name}": value for name, value in values.items()}

"""A device that fails records its exception, which the launcher and the report name."""

from __future__ import annotations

import json
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from emulation.analysis import evaluator, records
from emulation.launch.errors import RunFailed
from emulation.launch.evaluator_process import EvaluatorProcess
from emulation.launch.run_state import RunState
from emulation.report import text
from emulation.scenario.schema import Scenario
from peers.config import DeviceConfig
from peers.runtime import main
from peers.runtime.child_process import failure_recorded
from peers.runtime.spec import DeviceSpec


def test_the_reason_is_the_exception_and_not_the_last_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: Any) -> int:
        raise RuntimeError("train: loss is nan\nin round 3")

    monkeypatch.setattr(main, "_run", run)
    address = "tcp://127.0.0.1:1"
    spec = DeviceSpec("d0", DeviceConfig(), address, address, (), str(tmp_path))
    with pytest.raises(RuntimeError):
        main.run_device(spec)
    folder = tmp_path / "devices" / "d0"
    (folder / "log.txt").write_text("Traceback …\n[W] a warning of a library at exit\n")
    assert records.failure(folder) == "RuntimeError: train: loss is nan in round 3"
    (line,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert line["event"] == "failed" and line["round"] == -1


def test_a_device_without_a_record_has_no_reason(tmp_path: Path) -> None:
    assert records.failure(tmp_path) is None


def test_the_reason_of_any_process_is_its_exception(tmp_path: Path) -> None:
    log = tmp_path / "evaluator.log"
    with pytest.raises(ZeroDivisionError), failure_recorded(log):
        raise ZeroDivisionError("no\nexamples")
    log.write_text("Traceback …\n[W] a warning of a library at exit\n")
    assert records.reason(log) == "ZeroDivisionError: no examples"
    with failure_recorded(log):  # the next process with this log does not fail
        pass
    assert records.reason(log).endswith("the last line of its output: [W] a warning of a library at exit")
    assert records.reason(tmp_path / "none.log").endswith("output: none")


def test_the_evaluator_fails_with_its_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(out: Path, scenario: object) -> None:
        raise OSError("a snapshot cannot be read")

    ended: list[int] = []
    monkeypatch.setattr(evaluator, "main", main)
    for name in ("guard", "redirect_output"):
        monkeypatch.setattr(evaluator, name, lambda _: None)
    monkeypatch.setattr(evaluator, "end_process", ended.append)
    evaluator.process_main(tmp_path, cast(Scenario, None))
    (tmp_path / evaluator.LOG).write_text("a later line\n")
    process = EvaluatorProcess(RunState(scenario=Scenario(), out=tmp_path))
    process._process = cast(ForkServerProcess, SimpleNamespace(exitcode=ended[0]))
    with pytest.raises(RunFailed, match="ended with 1: OSError: a snapshot cannot be read; its log: "):
        process.check()


def test_the_report_names_the_reason() -> None:
    final = dict.fromkeys(("accuracy_all", "accuracy_min", "loss"))
    budget = dict.fromkeys(("spent_bytes", "granted_bytes", "violations"), 0)
    devices = [{"id": "d0", "failure": None}, {"id": "d1", "failure": "OSError: no space"}]
    forgotten = {"unconfirmed_leaves": [], "forgotten": {"corrected": [], "holding": []}}
    summary = {"events": [], "devices": devices, "final": final, "budget": budget, "unfinished": True}
    summary |= {**forgotten, "links": []}
    assert "d1 failed: OSError: no space" in text.sentences(summary)

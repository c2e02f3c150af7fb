"""All devices of a run in one process. test_virtual.py compares such runs with those of processes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from emulation.launch import interrupts, one_process
from emulation.launch.errors import RunFailed
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.runtime.spec import DeviceSpec


def scenario(**changes: object) -> Scenario:
    return Scenario.model_validate({"name": "one", "devices": {"count": 2}, "clock": "virtual", **changes})


def test_a_real_clock_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clock: 'real' does not fit"):
        one_process.run(scenario(clock="real"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_cannot_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: DeviceSpec) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(one_process, "build_learner", broken)
    with pytest.raises(RunFailed, match="d0: RuntimeError: no memory"):
        one_process.run(scenario(), tmp_path)
    assert "no memory" in (tmp_path / "devices" / "d0" / "events.jsonl").read_text()
    assert (tmp_path / "run.json").exists()


def test_an_interrupt_ends_the_run_without_a_word_of_asyncio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The state of interrupts is that of the whole process, so this test has its own."""
    monkeypatch.setattr(interrupts, "_state", interrupts._State())
    interrupts.set_mode("raise")

    async def endless(spec: DeviceSpec, links: object, make_learner: object) -> int:
        interrupts._on_signal(signal.SIGINT, None)
        await asyncio.sleep(60)
        return 0

    monkeypatch.setattr(one_process, "_run_device", endless)
    with pytest.raises(interrupts.Interrupted):
        one_process.run(scenario(), tmp_path)
    assert (tmp_path / "run.json").exists() and not caplog.records

"""`unweft bench memory`: a small measurement, and scenarios that are refused."""

from __future__ import annotations

import pytest

from emulation.bench import memory
from emulation.cli import main
from emulation.scenario.loading import from_table
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.lora import adapted_model


def scenario(clock: str = "real") -> Scenario:
    event = {"round": 1, "kind": "leave", "device": "d1"}
    table = {"clock": clock, "devices": {"count": 2}, "adapter": {"rank": 2}, "data": {"persons": 1}}
    return from_table({**table, "round": {"count": 4, "local_steps": 1}, "event": [event]})


def test_memory_and_steps_are_measured() -> None:
    found = memory.run(scenario(), rounds=2, timed=2)
    by_name = {measure.name: measure for measure in found.measures}
    own, shared = by_name[memory.OWN], by_name[memory.SHARED]
    assert len(own.samples) == len(shared.samples) == 2  # the event of the scenario does not happen
    assert all(
        1 < mine < with_shared < 2000 for mine, with_shared in zip(own.samples, shared.samples, strict=True)
    )
    (weights,) = by_name["its weights, which all devices share"].samples
    assert 1 < weights < 10  # `tiny` in fp32
    factors, folded = by_name[memory.FACTORS], by_name[memory.FOLDED]
    assert len(factors.samples) == len(folded.samples) == 2 and min(factors.samples) > 0
    assert found.ratio(factors) is not None


def test_a_virtual_clock_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="clock: 'virtual'; allowed: 'real'"):
        memory.run(scenario("virtual"))
    options = ["--set", "clock=virtual", "--set", "model.name=tiny", "--set", "data.kind=facts"]
    monkeypatch.setattr("sys.argv", ["unweft", "bench", "memory", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "clock: 'virtual'" in capsys.readouterr().err


def test_the_threshold_of_factors_is_as_before_after_the_measurement() -> None:
    times = memory.StepTimes(scenario())
    weights, folded, factors = times.measure(1)
    assert weights > 1 and len(folded) == len(factors) == 1
    assert adapted_model.LARGE == 1 << 16  # as before

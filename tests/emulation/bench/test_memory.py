"""`unweft bench memory`: a small measurement, and scenarios that are refused."""

from __future__ import annotations

import pytest

from emulation.bench import memory
from emulation.cli import main
from emulation.scenario.loading import from_table
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.lora import adapted_model
from peers.lora.bases import Recipe
from peers.models.loader import load_model


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


def test_the_threshold_of_factors_is_as_before_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(times: memory.StepTimes, number: int) -> float:
        raise RuntimeError(f"round {number}")

    monkeypatch.setattr(memory.StepTimes, "_round", fail)
    with pytest.raises(RuntimeError, match="round 0"):
        memory.StepTimes(scenario()).measure(1)
    assert adapted_model.LARGE == 1 << 16  # as before


def test_one_of_the_two_ways_folds_and_the_other_keeps_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted_model, "LARGE", 1)  # `tiny` has no module that is large enough
    monkeypatch.setattr(adapted_model, "SHARE", 0)
    train, seen = memory.StepTimes._round, list[bool]()
    widest = Recipe.make(load_model(scenario().model), scenario().device_config()).modules[0]

    def watch(times: memory.StepTimes, number: int) -> float:
        seen.append(adapted_model.keeps_factors(widest, 2))
        return train(times, number)

    monkeypatch.setattr(memory.StepTimes, "_round", watch)
    _, folded, factors = memory.StepTimes(scenario()).measure(1)
    assert seen == [False, True, False, True]  # the first two warm up
    assert len(folded) == len(factors) == 1

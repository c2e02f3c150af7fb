"""The learner thread: mixing, and the moves that mixing records for the diagnosis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coordinator_free.averaging.mixing import Mix
from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.learning.local_steps import TrainResult
from peers.protocol import actions as do
from peers.protocol.signed_versions import Versions
from peers.runtime.host import Inline
from peers.runtime.learner_thread import LearnerThread
from peers.runtime.recorder import Recorder
from peers.unlearning.deletion_receipt import DeletionReceipt

EARLY, LATE = (Part(BlockKey("d1", 0), group) for group in ("early", "late"))


class FakeLearner:
    """Two groups of one block, of two numbers each."""

    groups = ("early", "late")

    def __init__(self) -> None:
        self.blocks = {group: torch.zeros(2, 1) for group in self.groups}
        self.reported: dict[Part, list[float]] = {}  # the moves of the last mixing

    def has(self, key: BlockKey) -> bool:
        return True

    def read(self, key: BlockKey, group: str) -> torch.Tensor:
        return self.blocks[group].clone()

    def write(self, key: BlockKey, group: str, values: torch.Tensor) -> None:
        self.blocks[group] = values.clone()

    def close_round(self) -> None: ...

    def diagnose(self, round_: int, sketch: int, options: object, mixed: dict[Part, torch.Tensor]) -> Any:
        self.reported = {part: values.flatten().tolist() for part, values in mixed.items()}
        return SimpleNamespace(groups={})


@pytest.fixture
def learner() -> FakeLearner:
    return FakeLearner()


@pytest.fixture
def learner_thread(learner: FakeLearner, monkeypatch: pytest.MonkeyPatch) -> Iterator[LearnerThread]:
    monkeypatch.setattr("peers.runtime.learner_thread.pack", list)
    config = DeviceConfig.model_validate({"correction": {"policy": "dominant"}})
    raised: list[BaseException] = []
    made = LearnerThread(
        cast(Learner, learner), cast(Recorder, None), config, raised.append, Versions("d0", lambda data: b"")
    )
    yield made
    made.close()
    assert not raised


def mix(part: Part, *values: float) -> Mix:
    return Mix(part, ((0.25, torch.tensor(values).view(2, 1)),))


def test_a_quarter_of_a_copy_is_mixed_in(learner: FakeLearner, learner_thread: LearnerThread) -> None:
    learner_thread.mix((mix(EARLY, 4.0, 8.0),)).result()
    assert learner.blocks["early"].flatten().tolist() == [1.0, 2.0]
    assert learner.blocks["late"].flatten().tolist() == [0.0, 0.0]


def test_a_diagnosis_gets_the_moves_of_the_last_mixing(
    learner: FakeLearner, learner_thread: LearnerThread
) -> None:
    learner_thread.mix((mix(EARLY, 2.0, 0.0), mix(LATE, 4.0, 0.0)), True).result()
    learner_thread.mix((mix(EARLY, 0.5, 2.0),), True).result()
    learner_thread.diagnose(do.Diagnose(7)).result()
    assert learner.reported == {EARLY: [0.0, 0.5]}  # 0.75 * 0.5 + 0.25 * 0.5 - 0.5, and 0.25 * 2


def test_the_metrics_of_a_round_have_the_cpu_time_of_its_work() -> None:
    written: list[dict[str, float]] = []
    recorder = cast(Recorder, SimpleNamespace(metrics=written.append))
    learner = cast(Learner, SimpleNamespace(norms=dict))
    made = LearnerThread(
        learner,
        recorder,
        DeviceConfig(),
        lambda error: None,
        Versions("d0", lambda data: b""),
        worker=Inline(),
    )

    def work() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    made.submit(work)
    made.record_metrics({"round": 0})
    made.record_metrics({"round": 1})
    made.close()
    assert [line["round"] for line in written] == [0, 1]
    assert 0.02 <= written[0]["cpu_s"] < 0.1 and written[1]["cpu_s"] < 0.01


def test_a_failure_of_work_that_is_done_at_once_is_reported() -> None:
    raised: list[BaseException] = []
    none = cast(Any, None)
    made = LearnerThread(none, none, DeviceConfig(), raised.append, none, worker=Inline())
    made.submit(lambda: 1 // 0)
    assert [type(error) for error in raised] == [ZeroDivisionError]


class AnchoredLearner(FakeLearner):
    """It keeps the anchor that a correction begins with."""

    anchor: dict[str, list[float]]

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None, resume: bool = False) -> None:
        """The own block is the only one."""

    def set_anchor(self, consensus: dict[str, torch.Tensor]) -> None:
        self.anchor = {group: values.flatten().tolist() for group, values in consensus.items()}

    def begin_round(self) -> None: ...

    def train(self, *_: object) -> TrainResult:
        return TrainResult((), 0.0)

    def own_move(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("rounds", "anchor"), [(5, {"early": [2.0, 4.0]}), (0, {})])
def test_the_anchor_of_a_correction_is_the_mean_of_the_copies(rounds: int, anchor: object) -> None:
    learner, raised = AnchoredLearner(), list[BaseException]()
    config = DeviceConfig.model_validate({"correction": {"rounds": rounds}})
    made = LearnerThread(
        *(cast(Learner, learner), cast(Recorder, None), config, raised.append),
        Versions("d1", lambda data: b""),
        worker=Inline(),
    )
    made.own_block(do.OwnBlock(EARLY.block, 0, None))
    made.mix((mix(EARLY, 4.0, 8.0),)).result()
    made.train(do.Train(0, 1, True, 1.0, {}, anchor=True)).result()
    assert learner.anchor == anchor and not raised


class MeasuringLearner(AnchoredLearner):
    """Two steps a round, whose loss above the floor falls to a quarter of its value: eta mu = 1/2."""

    def add_block(self, key: BlockKey, slot: int, resume: bool = False) -> None:
        """The held blocks do not matter here."""

    def train(self, *_: object) -> TrainResult:
        return TrainResult((2.0, 1.25), 0.0, gaps=(1.0, 0.25))

    def delete_block(self, *_: object) -> DeletionReceipt:
        return DeletionReceipt("", "")

    def diagnose(self, round_: int, sketch: int, options: object, mixed: dict[Part, torch.Tensor]) -> Any:
        def observables(gap: float, rate: float | None, *_: object) -> float | None:
            return rate

        group = SimpleNamespace(blocks={}, observables=observables)
        return SimpleNamespace(groups={"early": group}, gap=1.0, copies={"early": []})


@pytest.mark.parametrize("event", ["deletion", "newcomer"])
def test_an_event_discards_the_losses_from_before_it(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first diagnosis after an event has no slope of losses that belong to another sum of blocks."""
    monkeypatch.setattr("peers.runtime.learner_thread.pack", list)
    config = DeviceConfig.model_validate({"correction": {"policy": "dominant"}})
    raised = list[BaseException]()
    made = LearnerThread(
        *(cast(Learner, MeasuringLearner()), cast(Recorder, None), config, raised.append),
        Versions("d1", lambda data: b""),
        worker=Inline(),
    )

    def rate() -> float | None:
        (found,) = made.diagnose(do.Diagnose(0)).result()[0]
        return found

    made.train(do.Train(0, 2, True, 1.0, {})).result()
    assert rate() == pytest.approx(0.5)
    if event == "deletion":
        made.drop_block(do.DropBlock(BlockKey("d2", 0), "leave")).result()
    else:
        made.add_block(do.AddBlock(BlockKey("d2", 0), 2)).result()
    assert rate() is None
    made.train(do.Train(1, 2, True, 1.0, {})).result()
    assert rate() == pytest.approx(0.5) and not raised

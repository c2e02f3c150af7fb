"""`unweft experiment baselines`: the network in one process, the unlearners, and the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console

from emulation.experiments import baselines, unlearners
from emulation.experiments.arms import BEFORE
from emulation.experiments.baselines import ARMS, BaselineCell
from emulation.experiments.catalogue import DEFAULT, SCALES
from emulation.experiments.network import Moves, Network
from emulation.experiments.unlearners import Leave
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.models.loader import load_model
from peers.tasks import predictions
from peers.unlearning.federaser import History
from peers.unlearning.kd_unlearn import distillation_loss

DEVICES = ("d0", "d1", "d2")


def network(**sections: object) -> Network:
    """Three devices with two rounds of training behind them."""
    data = {"data": {"persons": 1, "batch": 4}, "adapter": {"rank": 4, "max_devices": 4}, **sections}
    made = Network(Scenario.model_validate({"devices": {"count": 3}, **data}), DEVICES)
    for number in range(2):
        made.round(number, 2, DEVICES)
    return made


def leave(made: Network, histories: Mapping[str, History] | None = None) -> Leave:
    return Leave(made, "d2", ("d0", "d1"), histories or {})


def test_a_round_moves_all_copies_by_the_share_of_the_owners_move() -> None:
    made = network()
    seen: dict[str, Moves] = {}
    before = made.own("d1")
    made.round(2, 2, DEVICES, lambda device, move: seen.setdefault(device, move))
    for group, values in made.own("d1").items():
        assert torch.allclose(values, before[group] + seen["d1"][group] / 3, atol=1e-7)
        for holder in DEVICES:
            assert torch.equal(made.learners[holder].read(made.keys["d1"], group), values)
    assert made.steps == 3 * 3 * 2 and made.sent_bytes == 3 * 3 * 2 * made.block_bytes()


def test_a_checkpoint_goes_on_as_the_network_would_have(tmp_path: Path) -> None:
    made = network()
    made.save(tmp_path)
    again = Network(
        made.scenario.model_copy(
            update={"checkpoint": made.scenario.checkpoint.model_copy(update={"resume": str(tmp_path)})}
        ),
        DEVICES,
    )
    made.round(2, 2, DEVICES)
    again.round(2, 2, DEVICES)
    assert all(torch.equal(values, again.own("d0")[group]) for group, values in made.own("d0").items())


def test_delete_leaves_no_copy_and_keep_leaves_all() -> None:
    made = network()
    unlearners.keep(leave(made))
    assert made.keys["d2"] in made.learners["d0"].held()
    unlearners.delete(leave(made))
    assert made.keys["d2"] not in made.learners["d0"].held() + made.learners["d1"].held()


def test_an_influence_step_raises_the_leavers_loss_and_counts_its_bytes() -> None:
    made = network()
    learner, data = made.learners["d0"], made.data["d2"]

    def loss() -> float:
        with torch.no_grad():
            return float(learner._adapter.loss(data)) if learner.model is not None else 0.0

    before, sent = loss(), made.sent_bytes
    unlearners.influence(leave(made))
    assert loss() > before
    assert (
        made.sent_bytes - sent == (2 * 3 + 3) * made.block_bytes()
    )  # the gradients, then three moved blocks


def test_distillation_brings_the_leavers_outputs_to_the_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network()
    learner, data = made.learners["d0"], made.data["d2"]

    def kl() -> float:
        with torch.no_grad():
            logits, wanted = predictions(learner.model, data)
            base = load_model(made.scenario.model).model
            return float(distillation_loss(logits, predictions(base, data)[0], wanted))

    before = kl()
    monkeypatch.setattr(unlearners, "KD_STEPS", 5)
    unlearners.distil(leave(made))
    assert kl() < before


def test_federaser_repeats_the_stored_rounds_without_the_leaver() -> None:
    made = network()
    histories = {device: History(1) for device in DEVICES}

    def keep(device: str, move: Moves) -> Moves:
        histories[device].keep(0, move)
        return move

    made.round(2, 2, DEVICES, keep)
    found = leave(made, histories)
    unlearners.erase(found)
    assert found.stored_bytes == histories["d0"].stored_bytes > 0
    for group, values in made.own("d0").items():  # one stored round, from B = 0, of which 1 / 2 counts
        assert float(values.norm()) == pytest.approx(
            float(histories["d0"].rounds[0][group].norm()) / 2, rel=1e-3
        )


def test_every_arm_says_what_it_needs_and_runs_from_one_checkpoint() -> None:
    assert all(needs for _, _, needs in ARMS.values())
    cell = BaselineCell(DEFAULT, ARMS["federaser"][0], 0, SCALES["smoke"])
    assert cell.before is not None and cell.before.arm == BEFORE
    assert BaselineCell(DEFAULT, ARMS["ewc-leave"][0], 0, SCALES["smoke"]).scenario().correction.ewc > 0
    with pytest.raises(InputError, match="--arms: 'oracle' is no arm of baselines; allowed: uniform"):
        baselines.choose_arms("oracle")
    assert baselines.choose_arms("federaser") == ("uniform", "federaser", "retrain")


def test_the_table_has_costs_beside_accuracies() -> None:
    row = {"arm": "uniform", "seed": 0, **dict.fromkeys(("retain_0", "forget_0", "retain", "forget"), 0.5)}
    row |= {"auc": None, "loss": 2.0, "stored_bytes": 1000, "sent_bytes": 2e6, "steps": 30}
    rows = baselines.with_ri([row, {**row, "arm": "federaser", "loss": 1.0}])
    assert [r["ri"] for r in rows] == [0.0, 50.0]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(baselines.table(baselines.aggregate(rows)))
    assert "federaser" in shown.get() and "1.0" in shown.get()

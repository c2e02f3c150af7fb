"""Interference-aware steps: second moments of other devices' inputs, on the wire and in the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.learning.foreign_inputs import moments_bytes, pack_moments, unpack_moments
from peers.learning.kfac import RIDGE, _right_basis
from tests.support.learners import OTHERS, OWN, block, joined, same

CPU = torch.device("cpu")
LEARNER = joined(adapter={"rank": {"early": 1, "mid": 2, "late": 3}})
LAYOUT = LEARNER.layout


def measured() -> bytes:
    return LEARNER.second_moments([OWN], 0)[OWN]


def test_the_moments_are_those_of_the_inputs_in_the_basis_of_the_block():
    found = unpack_moments(measured(), LAYOUT, CPU)
    assert found is not None
    captured: dict[str, torch.Tensor] = {}
    name = LAYOUT.modules[-1].name
    module = LEARNER.model.base_model.model.get_submodule(name)
    hook = module.register_forward_hook(lambda m, args, y: captured.update(x=args[0]))
    data = LEARNER._local._data
    LEARNER.model(**data.inputs())
    hook.remove()
    z = captured["x"][data.counted(captured["x"].shape[1])] @ LEARNER._blocks[OWN].bases[name]
    expected = (z.T @ z).double()
    assert torch.allclose(found[name], expected * len(expected) / expected.trace(), atol=1e-4)


def test_packed_moments_come_back():
    packed = measured()
    assert len(packed) == moments_bytes(LAYOUT)
    found = unpack_moments(packed, LAYOUT, CPU)
    assert found is not None
    assert np.allclose(
        np.frombuffer(pack_moments(found, LAYOUT), "<f4"), np.frombuffer(packed, "<f4"), rtol=1e-4
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_of_another_device_are_refused_or_usable(data):
    size = moments_bytes(LAYOUT) // 4
    numbers = data.draw(
        st.lists(st.floats(width=32) | st.floats(0, 2, width=32), min_size=size, max_size=size)
    )
    found = unpack_moments(np.array(numbers, "<f4").tobytes(), LAYOUT, CPU)
    for matrix in (found or {}).values():
        assert float(matrix.trace()) == pytest.approx(len(matrix), rel=1e-6)
        assert torch.isfinite(_right_basis(torch.eye(len(matrix), dtype=torch.float64), [matrix])).all()


def test_moments_that_do_not_fit_are_refused():
    packed = measured()
    assert unpack_moments(packed[:-4], LAYOUT, CPU) is None
    assert unpack_moments(bytes(len(packed)), LAYOUT, CPU) is None
    negative = -np.frombuffer(packed, "<f4")
    assert unpack_moments(negative.astype("<f4").tobytes(), LAYOUT, CPU) is None


def test_a_basis_relative_to_others_moves_less_where_they_have_large_inputs():
    own, theirs = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([8.0, 1.0, 0.5]).double())
    basis = _right_basis(own, [theirs])
    assert float(basis.square().sum()) == pytest.approx(3, rel=1e-5)
    reach = basis.square().sum(dim=1)  # of a step of one length in all coordinates
    assert reach[0] < 0.3 * reach[1] < reach[2]


@pytest.mark.parametrize("rank", [1, 2, 8, 16])
@pytest.mark.parametrize("blocked", [1, 3, 7])
def test_a_false_message_changes_the_reach_of_steps_within_bounds(rank: int, blocked: int):
    """What a hostile member gains (docs/security.md): short or long steps in directions of its choice."""
    false = torch.zeros(rank, dtype=torch.float64)
    false[: min(blocked, rank)] = rank / min(blocked, rank)  # the trace that every message has
    own = torch.diag(torch.linspace(1, 9, rank).double())

    def reach(*others: torch.Tensor) -> torch.Tensor:
        basis = _right_basis(own, list(others)).double()
        return torch.linalg.eigvalsh(basis @ basis.T).sqrt()  # of steps of one length, by direction

    alone = reach(torch.diag(false))
    assert alone.min() >= (RIDGE / (rank + RIDGE)) ** 0.5 - 1e-4
    assert alone.max() <= rank**0.5 + 1e-4
    beside = reach(torch.diag(false), *[torch.eye(rank, dtype=torch.float64)] * 3)
    assert beside.min() >= 0.3  # of four neighbours, one alone shortens no step to less than this
    assert beside.max() <= 1.5


def test_a_false_message_changes_no_loss_and_no_gradient_but_resets_the_moments():
    def begun(told: bool):
        learner = joined(correction={"fisher": True})
        if told:
            assert learner.know_inputs(OTHERS[0], learner.second_moments([OWN], 0)[OWN])
        return learner, learner.train(0, 1, rehearse=False, fisher=True)

    (plain, without), (learner, told) = begun(False), begun(True)
    assert told.losses == without.losses
    pairs = zip(plain._adapter.gradients.values(), learner._adapter.gradients.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    fisher = learner._local.fisher
    assert fisher is not None
    first = fisher._optimizer
    learner.train(1, 1, rehearse=False, fisher=True)
    assert fisher._optimizer is first
    assert learner.know_inputs(OTHERS[0], learner.second_moments([OWN], 1)[OWN])  # sent again
    learner.train(2, 1, rehearse=False, fisher=True)
    assert fisher._optimizer is not first


def test_steps_know_the_inputs_of_others_until_their_block_is_deleted():
    def trained(*sources) -> dict[str, torch.Tensor]:
        learner = joined(correction={"fisher": True})
        packed = {key: learner.second_moments([OWN], n)[OWN] for n, key in enumerate(OTHERS)}
        for key in sources:
            assert learner.know_inputs(key, packed[key])
        learner.train(0, 2, rehearse=False, fisher=True)
        return block(learner, OWN)

    plain, aware = trained(), trained(OTHERS[0])
    assert not same(plain, aware)
    assert same(trained(OTHERS[0], OTHERS[1]), trained(OTHERS[1], OTHERS[0]))
    learner = joined()
    assert learner.know_inputs(OTHERS[0], learner.second_moments([OWN], 0)[OWN])
    learner.delete_block(OTHERS[0])
    assert not learner._local._inputs
    assert not learner.know_inputs(OTHERS[0], learner.second_moments([OWN], 0)[OWN])

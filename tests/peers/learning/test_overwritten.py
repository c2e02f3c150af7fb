"""After a deletion the memory of a block holds zeros: a view of the storage is kept across the deletion."""

from __future__ import annotations

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.learning.neighbour_copies import NeighbourCopies
from peers.protocol.signed_versions import SignedCopy
from peers.runtime.learner_thread import overwrite_copies
from tests.support.learners import OTHERS, OWN, joined

GONE, STAYS = OTHERS


def gone(views: list[Tensor]) -> bool:
    return bool(views) and not any(view.any() for view in views)


def test_the_values_of_a_deleted_block() -> None:
    learner = joined()
    views = [values.detach().view(-1) for values in learner._blocks[GONE].data.values()]
    kept = [values.detach().clone() for values in learner._blocks[STAYS].data.values()]
    learner.delete_block(GONE)
    assert gone(views)
    assert all(map(torch.equal, kept, learner._blocks[STAYS].data.values()))


def test_the_weights_into_which_a_deleted_block_was_folded() -> None:
    learner = joined()
    assert learner.model is not None  # folds the foreign blocks
    folded = [module.weight.detach() for module in learner._adapter._dense._modules.values()]
    bases = [base.detach().clone() for base in learner._adapter._dense._base.values()]
    learner.delete_block(GONE)
    assert gone(folded)
    assert all(map(torch.equal, bases, learner._adapter._dense._base.values()))


def test_the_moments_of_a_block_that_trained_here_by_a_leak() -> None:
    learner = joined(isolation={"leak": 0.5})
    learner.train(0, 2, rehearse=False)
    state = learner._local._optimizers[GONE].state
    moments = [m for named in state.values() for m in named.values() if m.dim()]
    assert any(m.any() for m in moments)
    learner.delete_block(GONE)
    assert gone(moments)


def test_the_own_block_with_its_moments_and_copies() -> None:
    learner = joined()
    learner.train(0, 2, rehearse=False)
    learner.set_anchor()
    local = learner._local
    state = local._optimizers[OWN].state
    views = [m for named in state.values() for m in named.values() if m.dim()]
    views += [*local.before.values(), *local._anchor.values(), *learner._adapter.gradients.values()]
    views += [values.detach() for values in learner._blocks[OWN].data.values()]
    learner.delete_block(OWN)
    assert gone(views)


def test_copies_of_neighbours() -> None:
    copies = NeighbourCopies()
    doomed, kept = torch.ones(2, 2), torch.ones(2, 2)
    copies.store_copy("d1", Part(GONE, "early"), doomed)
    copies.store_copy("d1", Part(STAYS, "early"), kept)
    copies.drop_block(GONE)
    assert gone([doomed]) and kept.all()


def test_copies_that_had_arrived_but_were_not_mixed() -> None:
    plain, signed = torch.ones(2, 2), torch.ones(2, 2)
    overwrite_copies([plain, SignedCopy(signed, b"", b""), None])
    assert gone([plain, signed])


def test_a_block_that_goes_on_under_a_new_incarnation_keeps_its_values() -> None:
    learner = joined()
    before = [values.detach().clone() for values in learner._blocks[OWN].data.values()]
    back = BlockKey("d0", 1)
    learner.set_own(back, 0, carry=OWN)
    learner.delete_block(OWN)
    assert all(map(torch.equal, before, learner._blocks[back].data.values()))

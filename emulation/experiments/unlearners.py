"""The ways to unlearn a leaver in a network of devices, each as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from emulation.experiments.network import Moves, Network
from peers.learning.backward_pass import passes
from peers.models.loader import load_model
from peers.tasks import predictions
from peers.unlearning.federaser import History, calibrated
from peers.unlearning.influence import clipped, influence_move, kronecker_factors
from peers.unlearning.kd_unlearn import distillation_loss

CALIBRATION = 0.5  # of the local steps in a round of calibration: Liu et al. (2021) take half
KD_STEPS = 40


@dataclass
class Leave:
    """A network at the leave of a device. stored_bytes: kept by one device until then, beside the blocks."""

    network: Network
    leaver: str
    survivors: tuple[str, ...]
    histories: Mapping[str, History]
    stored_bytes: int = 0


Unlearn = Callable[[Leave], None]


def delete(leave: Leave) -> None:
    """The block is dropped. Nothing was stored, and nothing is sent."""
    leave.network.delete(leave.leaver, leave.survivors)


def keep(leave: Leave) -> None:
    """The leaver goes, and its block stays."""


def influence(leave: Leave) -> None:
    """All blocks move by an influence step. The leaver has sent its gradient to every survivor."""
    network = leave.network
    gradients = _gradients(network, leave.leaver)
    network.sent_bytes += len(leave.survivors) * len(network.keys) * network.block_bytes()
    share = len(network.data[leave.leaver]) / sum(map(len, network.data.values()))
    for survivor in leave.survivors:
        # The first survivor also moves the block of the leaver.
        owners = [survivor, leave.leaver] if survivor == leave.survivors[0] else [survivor]
        for owner in owners:
            move = _influence(network, survivor, owner, gradients[owner], share)
            network.add(owner, move, leave.survivors)
            network.sent_bytes += (len(leave.survivors) - 1) * network.block_bytes()


def _gradients(network: Network, leaver: str) -> dict[str, Moves]:
    """The gradient of the leaver's mean loss w.r.t. every block, by owner and group."""
    learner = network.learners[leaver]
    layout = learner.layout
    found = {owner: layout.zeros() for owner in network.keys}
    for name, (x, d) in passes(learner.model, layout, network.data[leaver]).items():
        group = layout.by_name[name].group
        for owner, key in network.keys.items():
            z = x.float() @ learner.block(key).bases[name]
            share = network.config.adapter.scale * torch.einsum("ntk,ntr->kr", d, z)
            found[owner][group][layout.slices(group)[name]] = share
    return found


def _influence(network: Network, survivor: str, owner: str, gradient: Moves, share: float) -> Moves:
    """The step of one block, with the curvature on a survivor's data. A module moves by its norm at most."""
    learner, data, key = network.learners[survivor], network.data[survivor], network.keys[owner]
    layout, block, scale = learner.layout, learner.block(key), network.config.adapter.scale
    found = layout.zeros()
    for name, (x, d) in passes(learner.model, layout, data).items():
        group = layout.by_name[name].group
        rows = layout.slices(group)[name]
        counted = data.counted(x.shape[1])
        left, right = kronecker_factors(x, d, counted, block.bases[name], scale)
        move = influence_move(gradient[group][rows], left, right, share)
        found[group][rows] = clipped(move, float(learner.read(key, group)[rows].norm()))
    return found


def distil(leave: Leave) -> None:
    """Before it goes, the leaver trains its block towards the base model on its own data, and sends it."""
    network, leaver = leave.network, leave.leaver
    learner, data, before = network.learners[leaver], network.data[leaver], network.own(leaver)
    with torch.no_grad():
        wanted_logits, wanted = predictions(load_model(network.scenario.model).model, data)
    model = learner.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=network.config.train.lr, weight_decay=0.0)
    for _ in range(KD_STEPS):
        optimiser.zero_grad(set_to_none=False)
        distillation_loss(predictions(model, data)[0], wanted_logits, wanted).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    network.steps += KD_STEPS
    after = network.own(leaver)
    network.add(leaver, {group: after[group] - values for group, values in before.items()}, leave.survivors)
    network.sent_bytes += len(leave.survivors) * network.block_bytes()


def erase(leave: Leave) -> None:
    """FedEraser: the survivors begin again at B = 0 and repeat the stored rounds with fewer steps."""
    network, survivors = leave.network, leave.survivors
    leave.stored_bytes = max(history.stored_bytes for history in leave.histories.values())
    delete(leave)
    for device in survivors:
        network.add(device, {group: -values for group, values in network.own(device).items()}, survivors)
    steps = max(1, round(CALIBRATION * network.config.round.local_steps))
    for place in range(min(len(leave.histories[device].rounds) for device in survivors)):
        network.round(place, steps, survivors, _calibration(leave.histories, place))


def _calibration(histories: Mapping[str, History], place: int) -> Callable[[str, Moves], Moves]:
    def change(device: str, move: Moves) -> Moves:
        stored = histories[device].rounds[place]
        return {group: calibrated(stored[group], values) for group, values in move.items()}

    return change

"""How a pool of examples is dealt to devices: `data.partition`.

- iid: in a random order, one after the other.
- by-label: sorted by label, in equal contiguous parts: a device sees few labels (McMahan et al., 2017,
  section 3).
- dirichlet:ALPHA: for each label, shares of the devices drawn from a Dirichlet distribution with all
  parameters ALPHA. A small ALPHA gives each label to few devices (Yurochkin et al., 2019, section 4).

Every device computes the same deal from the seed. The task `images` has draws of its own (images.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator_free.seeded_random import generator
from peers.errors import InputError
from peers.tasks.base import Example

DIRICHLET = "dirichlet:"


def deal(pool: Sequence[Example], devices: Sequence[str], kind: str, seed: int) -> dict[str, list[Example]]:
    """The examples of each device, in the order of `devices`. Every example goes to one device.

    A device may get none. Raises InputError for a partition by label of examples without labels.
    """
    if kind == "iid":
        order: list[int] = generator(seed, "iid").permutation(len(pool)).tolist()
        parts = [order[i :: len(devices)] for i in range(len(devices))]
    else:
        _check_labels(pool, kind)
        parts = (
            _by_label(pool, len(devices), seed)
            if kind == "by-label"
            else _dirichlet(pool, devices, kind, seed)
        )
    return {device: [pool[i] for i in part] for device, part in zip(devices, parts, strict=True)}


def dirichlet_alpha(kind: str) -> float:
    """ALPHA of a partition `dirichlet:ALPHA`. Raises InputError if it is 0."""
    alpha = float(kind.removeprefix(DIRICHLET))
    if alpha <= 0:
        raise InputError(f"data.partition: {kind!r}; allowed: a number above 0 after {DIRICHLET!r}")
    return alpha


def split_held_out(
    pool: Sequence[Example], share: float, *words: str | int
) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and the share of the pool that no device trains on; both in the pool's order.

    words: name the random stream.
    """
    count = round(share * len(pool))
    held = set(generator(*words, "held-out").permutation(len(pool))[:count].tolist() if count else ())
    return [e for i, e in enumerate(pool) if i not in held], [pool[i] for i in sorted(held)]


def _check_labels(pool: Sequence[Example], kind: str) -> None:
    unlabelled = next((example for example in pool if not example.label), None)
    if unlabelled is not None:
        raise InputError(
            f"data.partition: {kind!r} needs labelled data, and {unlabelled.prompt[:40]!r} has no label; "
            "allowed: own, iid"
        )


def _by_label(pool: Sequence[Example], devices: int, seed: int) -> list[list[int]]:
    shuffled = generator(seed, "by-label").permutation(len(pool)).tolist()
    order = sorted(shuffled, key=lambda i: pool[i].label)  # a stable sort: random within a label
    return [part.tolist() for part in np.array_split(np.array(order, dtype=np.int64), devices)]


def _dirichlet(pool: Sequence[Example], devices: Sequence[str], kind: str, seed: int) -> list[list[int]]:
    alpha = dirichlet_alpha(kind)
    parts: list[list[int]] = [[] for _ in devices]
    for label in sorted({example.label for example in pool}):
        draw = generator(seed, "dirichlet", label)
        mine = draw.permutation([i for i, example in enumerate(pool) if example.label == label])
        ends = np.round(np.cumsum(draw.dirichlet([alpha] * len(devices))) * len(mine)).astype(np.int64)
        for part, own in zip(parts, np.split(mine, ends[:-1]), strict=True):
            part.extend(own.tolist())
    return parts

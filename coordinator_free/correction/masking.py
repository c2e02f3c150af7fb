"""Masked reports: fixed-point numbers, and masks that cancel in the sum over a cohort (docs/privacy.md).

Source: secure aggregation (Bonawitz et al., 2017), without a server and without its second round: if one
report of a cohort is missing, nobody can read the sum.

A value is rounded to a whole number of units, and all sums are taken modulo 2^64. So the sum over a cohort
does not depend on the masks, and is the same on all devices to the last bit. |number| <= LEVELS and at most
MOST_MEMBERS members keep the true sum far below 2^63. A sum in which a mask is left is uniform, so one of its
numbers is almost certainly beyond the bound, and `decode` refuses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator_free.correction.residuals import HEADER, copies_size, group_numbers
from coordinator_free.identifiers import BlockKey

Vector = NDArray[np.float64]
Numbers = NDArray[np.uint64]
# Public key of another member, context, bytes; see transport/security/mask_keys.py.
Stream = Callable[[bytes, bytes, int], bytes]

LEAST_MEMBERS = 3  # in a cohort of two each device could compute the other's report
MOST_MEMBERS = 1 << 10
LEVELS = 1 << 52  # the largest number of units: float64 holds all whole numbers up to here
NUMBER_BYTES, DIGEST_BYTES = 8, 16
# Units by place of the header of a group (residuals.HEADER). A value is clipped to LEVELS units: to 2^20 for
# energies, curvatures and the squared length of the copies, 2^12 nats for the gap, 2^8 for the others.
SQUARED, NATS, SHARE = 2.0**-32, 2.0**-40, 2.0**-44
UNITS: Mapping[str, float] = {
    **dict.fromkeys(("energy", "noise", "curvature", "smoothness", "copies"), SQUARED),
    **{"gap": NATS, "rate": SHARE, "known": SHARE, "eta": SHARE},
}
SKETCH = 2.0**-40  # of a number of a sketch, clipped to 2^12: the energy is the squared length of a sketch


@dataclass(frozen=True, slots=True)
class Cohort:
    """The devices whose reports of round `epoch` are added, each with the public half of its mask key."""

    epoch: int
    mask_keys: Mapping[BlockKey, bytes]

    @property
    def reports(self) -> bool:
        """Whether a cohort of this size sends reports."""
        return LEAST_MEMBERS <= len(self.mask_keys) <= MOST_MEMBERS

    @property
    def digest(self) -> bytes:
        """16 bytes: two devices with equal digests add the same reports, under the same keys."""
        members = [(key.device, key.incarnation, public) for key, public in sorted(self.mask_keys.items())]
        return hashlib.blake2b(repr((self.epoch, members)).encode(), digest_size=DIGEST_BYTES).digest()


def report_bytes(groups: int, sketch: int) -> int:
    """The size of one device's masked observables in bytes, as residuals.report_bytes without masks."""
    return DIGEST_BYTES + NUMBER_BYTES * groups * group_numbers(sketch)


def units(groups: int, sketch: int, trials: int = 0) -> Vector:
    """The unit of each place of a report: `groups` times residuals.pack, then the trials, in nats."""
    group = [*(UNITS[name] for name in HEADER), *[SKETCH] * (sketch + copies_size(sketch))]
    return np.array([*group * groups, *[NATS] * trials])


def encode(values: NDArray[np.floating], unit: Vector) -> tuple[Numbers, int]:
    """Finite values as fixed-point numbers modulo 2^64, and how many of them were clipped.

    `values`, `unit`: [length].
    """
    rounded = np.rint(values / unit)
    clipped = np.clip(rounded, -LEVELS, LEVELS)
    return clipped.astype(np.int64).view(np.uint64), int((clipped != rounded).sum())


def decode(total: Numbers, unit: Vector, members: int) -> Vector:
    """The mean of `members` reports from their sum, both [length].

    Raises ValueError for a sum that these reports cannot have: a member lied, or a mask is left in it.
    """
    whole, bound = total.view(np.int64), members * LEVELS
    if ((whole > bound) | (whole < -bound)).any():
        raise ValueError(f"the sum of {members} masked reports is out of range")
    return whole.astype(np.float64) * unit / members


def mask(own: BlockKey, cohort: Cohort, length: int, stream: Stream) -> Numbers:
    """The mask of the member `own`. The masks of all members add up to 0 modulo 2^64.

    The context of each stream names its two members. Otherwise a member that repeats another one's public key
    under its own name could cancel the mask of the two.
    """
    total, digest = np.zeros(length, dtype=np.uint64), cohort.digest
    for other, public in sorted(cohort.mask_keys.items()):
        if other != own:
            first, second = sorted((own, other))
            context = repr((cohort.epoch, digest, tuple(first), tuple(second))).encode()
            numbers = np.frombuffer(stream(public, context, NUMBER_BYTES * length), dtype="<u8")
            total = total + numbers if own == first else total - numbers
    return total

"""The leave projection as the paper prints it (eq. 15), for the mixing mode `paper-literal`.

It removes only a small part of a leaver's contribution (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.lora.blocks import BlockSet


def project_out(blocks: BlockSet, own: BlockKey, gone: Mapping[str, Tensor]) -> None:
    """Eq. (15) on s B A^T, read out in A again: B <- B (I - G G^T) with G = A^T A_u.

    B is the part of block `own` in each module; it is changed in place. gone: A_u of the leaver by module,
    [d_in, r_u].
    """
    for name, basis in blocks[own].bases.items():
        overlap = basis.T @ gone[name]
        b = blocks.part(own, name)
        b -= b @ overlap @ overlap.T

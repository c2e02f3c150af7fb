"""The record of a deletion: hashes of the adapter before and after it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeletionReceipt:
    """SHA-256 of the adapter that an export would have written just before and just after a deletion."""

    sha256_before: str
    sha256_after: str

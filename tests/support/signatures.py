"""Membership tables with substitute signatures, and gossip between them: no sockets, no time."""

from __future__ import annotations

import hashlib
import hmac
import random

from coordinator_free.membership.signed_records import Status
from coordinator_free.membership.table import Membership


def sign_as(device: str, data: bytes) -> bytes:
    """A keyed hash in place of Ed25519. The key is the device's id; its public half is `public(device)`."""
    return hmac.digest(device.encode(), data, "sha256")


def public(device: str) -> bytes:
    return b"public:" + device.encode()


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    return hmac.compare_digest(sign_as(public_key.removeprefix(b"public:").decode(), data), signature)


def table(device: str = "observer") -> Membership:
    return Membership(verify, lambda data: sign_as(device, data))


class Cluster:
    """Devices that each claim a slot without knowledge of others, then gossip in a seeded random order."""

    def __init__(self, devices: list[str], max_slots: int, seed: int) -> None:
        self.max_slots = max_slots
        self.tables = {d: table(d) for d in devices}
        self.own = {d: self._claim(d) for d in devices}
        self._rng = random.Random(seed)

    def _claim(self, device: str):
        return self.tables[device].claim(device, f"tcp://{device}", public(device), self.max_slots, 0)

    def exchange(self, a: str, b: str) -> None:
        for source, target in ((a, b), (b, a)):
            self.tables[target].merge(list(self.tables[source]))
            self._defend(target)

    def _defend(self, device: str) -> None:
        members = self.tables[device]
        if any(r.key == self.own[device].key for r in members.slot_losers()):
            members.amend(self.own[device], status=Status.WITHDRAWN)
            self.own[device] = self._claim(device)

    def settle(self, limit: int = 10_000) -> int:
        """Exchange between random pairs until all tables agree and no slot is in conflict.

        Returns the number of exchanges.
        """
        for exchanges in range(limit):
            if self.settled():
                return exchanges
            self.exchange(*self._rng.sample(sorted(self.tables), 2))
        raise AssertionError(f"no agreement after {limit} exchanges")

    def settled(self) -> bool:
        digests = {members.digest() for members in self.tables.values()}
        return len(digests) == 1 and not any(t.slot_losers() for t in self.tables.values())


def digest(members: Membership) -> str:
    """A hash of the whole table with signatures: equal for equal tables."""
    return hashlib.sha256(repr(list(members)).encode()).hexdigest()

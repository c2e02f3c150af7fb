"""Control messages that do not fit in the quota of the present round and wait for the next. Sans-I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from transport.shaping.outgoing import Outgoing
from transport.shaping.round_budget import Priority, Quota

ORIGIN_BYTES = 64 << 10  # of messages that wait and pass on statements of one device


class HeldControl:
    """The waiting messages of one device, in order of arrival.

    Once a message waits, later ones of its priority wait behind it, but for departures, which go first. Not
    all are worth the wait: a newer ping to the same peer, or a newer record of the same incarnation, replaces
    the older one. Tables are worth one round's budget at most, and what is passed on of one device
    ORIGIN_BYTES. The oldest ones go first. Anti-entropy repairs a lost record.
    """

    def __init__(self, quota: Quota, shed: Callable[[Outgoing], None]) -> None:
        self.items: deque[Outgoing] = deque()
        self._quota, self._shed = quota, shed
        self._waiting: set[tuple[Priority, bool]] = set()
        self._grants = quota.grants

    @property
    def may_leave(self) -> bool:
        """Whether a round has started since the messages were held."""
        return bool(self.items) and self._grants != self._quota.grants

    def release(self) -> list[Outgoing]:
        """Empty the queue if a round has started since the messages were held."""
        if self._grants == self._quota.grants:
            return []
        self._grants = self._quota.grants
        self._waiting.clear()
        released = sorted(self.items, key=lambda item: not item.departs)  # in order among equals
        self.items.clear()
        return released

    def must_wait(self, item: Outgoing, cost: int) -> bool:
        """Whether a message has to wait. `cost`: of the message in the quota."""
        queue = item.priority, item.departs
        if queue not in self._waiting and not self._quota.fits(cost, item.priority):
            self._waiting.add(queue)
        return queue in self._waiting

    def add(self, item: Outgoing) -> None:
        """Hold a message, and shed those that it replaces."""
        if item.key is not None:
            self._keep(lambda held: (held.peer, held.key) != (item.peer, item.key))
        self.items.append(item)
        if item.priority is Priority.TABLES:
            self._limit(lambda held: held.priority is Priority.TABLES, self._quota.budget_bytes)
        if item.origin:
            self._limit(lambda held: held.origin == item.origin, ORIGIN_BYTES)

    def _limit(self, of_class: Callable[[Outgoing], bool], most_bytes: int) -> None:
        """Shed the oldest messages of a class beyond a number of bytes, but no departure."""
        excess = sum(held.wire_bytes for held in self.items if of_class(held)) - most_bytes

        def kept(held: Outgoing) -> bool:
            nonlocal excess
            if excess <= 0 or held.departs or not of_class(held):
                return True
            excess -= held.wire_bytes
            return False

        if excess > 0:
            self._keep(kept)

    def _keep(self, wanted: Callable[[Outgoing], bool]) -> None:
        for _ in range(len(self.items)):
            held = self.items.popleft()
            if wanted(held):
                self.items.append(held)
            else:
                self._shed(held)

"""Control messages that do not fit in the quota of the present round and wait for the next. Sans-I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from transport.shaping.outgoing import Outgoing
from transport.shaping.round_budget import Priority, Quota


class HeldControl:
    """The waiting messages of one device, in order of arrival.

    Once a message waits, later ones of its priority wait behind it. Not all of them are worth the wait: a
    newer ping replaces an older one to the same peer, and tables are worth one round's budget at most.
    """

    def __init__(self, quota: Quota, shed: Callable[[Outgoing], None]) -> None:
        self.items: deque[Outgoing] = deque()
        self._quota, self._shed = quota, shed
        self._waiting: set[Priority] = set()
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
        released = list(self.items)
        self.items.clear()
        return released

    def must_wait(self, item: Outgoing, cost: int) -> bool:
        """Whether a message has to wait. `cost`: of the message in the quota."""
        if item.priority not in self._waiting and not self._quota.fits(cost, item.priority):
            self._waiting.add(item.priority)
        return item.priority in self._waiting

    def add(self, item: Outgoing) -> None:
        """Hold a message, and shed those that it replaces."""
        if item.priority is Priority.LIVENESS and item.key is not None:
            self._keep(lambda held: (held.peer, held.key) != (item.peer, item.key))
        self.items.append(item)
        if item.priority is Priority.TABLES:
            self._limit_tables()

    def _limit_tables(self) -> None:
        excess = sum(held.wire_bytes for held in self.items if held.priority is Priority.TABLES)
        excess -= self._quota.budget_bytes

        def kept(held: Outgoing) -> bool:
            nonlocal excess
            if excess <= 0 or held.priority is not Priority.TABLES:
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

"""The byte budget C_t of a round: a cap on the bytes of a device, with a share for control (method 8)."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum


class Priority(IntEnum):
    """Classes of control messages. A class leaves to more urgent ones what they have reserved."""

    LIVENESS = 0  # pings, acks and suspicions: without them a live device is taken for dead
    MEMBERSHIP = 1  # hellos, departures, single records, manifests, requests, credit
    TABLES = 2  # whole membership tables, and reports of a diagnosis


class Quota:
    """C_t: the bytes that one device may send in one round. Unused bytes expire at the end of the round.

    `control_share` of it is reserved for liveness and membership messages, and half of that for liveness
    alone. Control that does not fit waits for the next round. A message that would not fit in a whole round
    is sent; then the round is counted as a violation.

    Before the first round and after `end_rounds` data has no further quota. Control (handshakes, goodbyes) is
    counted there, but belongs to no round.
    """

    def __init__(self, budget_bytes: int, control_share: float = 0.05) -> None:
        if budget_bytes < 1 or not 0 <= control_share <= 1:
            raise ValueError("a quota needs a budget of at least one byte and a share between 0 and 1")
        self.budget_bytes = budget_bytes
        self._reserve = int(budget_bytes * control_share)
        self.round: int | None = None
        self.spent = self.data_spent = 0  # of this round
        self._control_spent: Counter[Priority] = Counter()  # of this round
        self._ended = False
        self.grants = 0  # changes when control that waited may leave
        self.granted_total = self.spent_total = self._closed_violations = 0

    def start_round(self, round_: int | None = None) -> None:
        """End the present round and grant the budget of the next one."""
        self._closed_violations += self._violated()
        self.round = (-1 if self.round is None else self.round) + 1 if round_ is None else round_
        self.spent = self.data_spent = 0
        self._control_spent.clear()
        self._ended = False
        self.grants += 1
        self.granted_total += self.budget_bytes

    def end_rounds(self) -> None:
        """No round follows the present one: control that is sent from now on belongs to no round."""
        if not self._ended:
            self._ended = True
            self.grants += 1

    @property
    def remaining(self) -> int:
        """Bytes left of this round's budget, for control and data."""
        return max(0, self.budget_bytes - self.spent) if self.round is not None else 0

    @property
    def violations(self) -> int:
        """Rounds so far, the present one included, that exceeded their budget."""
        return self._closed_violations + self._violated()

    def data_left(self) -> int:
        """Bytes that data may still use in this round."""
        if self.round is None:
            return 0
        return max(0, self.budget_bytes - self.spent - self._kept_for(Priority.MEMBERSHIP))

    def fits(self, size: int, priority: Priority) -> bool:
        """Whether a control message may leave now. False: it has to wait for the next round."""
        if self._in_no_round:
            return True
        kept = 0 if priority is Priority.LIVENESS else self._kept_for(Priority(priority - 1))
        return self.spent + size + kept <= self.budget_bytes or size > self._most(priority)

    def spend(self, size: int, data: bool = True, priority: Priority = Priority.LIVENESS) -> None:
        """Count bytes that left. `priority`: of control. The caller has called `data_left` or `fits`.

        A negative size takes back the bytes of a message that no link accepted.
        """
        self.spent_total += size
        if data:
            self.data_spent += size
        elif self._in_no_round:
            return
        else:
            self._control_spent[priority] += size
        self.spent += size

    @property
    def _in_no_round(self) -> bool:
        return self.round is None or self._ended

    def _kept_for(self, priority: Priority) -> int:
        """The reserved bytes that control of this class and of more urgent ones has not used yet.

        Liveness has half of the reserve. Liveness and membership together have all of it.
        """
        alive = self._control_spent[Priority.LIVENESS]
        kept = max(0, self._reserve // 2 - alive)
        if priority is Priority.LIVENESS:
            return kept
        return max(kept, self._reserve - alive - self._control_spent[Priority.MEMBERSHIP])

    def _most(self, priority: Priority) -> int:
        """The largest control message of a class that fits in a round of which nothing is spent."""
        kept = {Priority.LIVENESS: 0, Priority.MEMBERSHIP: self._reserve // 2, Priority.TABLES: self._reserve}
        return self.budget_bytes - kept[priority]

    def _violated(self) -> bool:
        return self.round is not None and self.spent > self.budget_bytes

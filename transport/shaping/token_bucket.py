"""A token bucket for bytes, and the quota of a round. Sans-I/O; integers; nanoseconds.

The bucket limits the rate. The quota is the budget of a round and does not carry over (method 8): a single
bucket of depth C_t that refills at C_t per round would let almost 2 C_t pass in one round.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from enum import IntEnum

SECOND_NS = 1_000_000_000


class TokenBucket:
    """Holds at most `burst_bytes` and refills at `rate_Bps`.

    Invariant, for sends of s_i bytes at times t_i that called `earliest` before: for all i <= k,

        s_i + ... + s_k <= max(burst, s_k) + rate * (t_k - t_i)

    It holds exactly: credit is counted in bytes x 10^9, so nothing is rounded. A send larger than the burst
    passes when the bucket is full and leaves a debt, hence `max`. Frames are at most half the depth (method
    8), so in practice the bound uses the burst. A control message does not call `earliest`; it may also leave
    a debt, and later sends wait for it.
    """

    def __init__(self, rate_Bps: int, burst_bytes: int, now_ns: int = 0) -> None:
        if rate_Bps < 1 or burst_bytes < 1:
            raise ValueError(
                "a token bucket needs a rate of at least one byte per second and a depth of at least one byte"
            )
        self.rate_Bps, self.burst_bytes = rate_Bps, burst_bytes
        self._credit = self._full = burst_bytes * SECOND_NS
        self._at_ns = now_ns

    def earliest(self, now_ns: int, size: int) -> int:
        """When `size` bytes may leave (ns), `now_ns` or later."""
        full = min(size, self.burst_bytes) * SECOND_NS
        if self._credit >= full:  # no need to compute the refill
            return now_ns
        need = full - self._credit_at(now_ns)
        start = max(now_ns, self._at_ns)  # credit is known only since the last change
        return now_ns if need <= 0 else start + -(-need // self.rate_Bps)

    def take(self, now_ns: int, size: int) -> None:
        """Send `size` bytes now. Never refused: the caller has called `earliest` or accepts a debt."""
        self._credit = self._credit_at(now_ns) - size * SECOND_NS
        if now_ns > self._at_ns:
            self._at_ns = now_ns

    def set_rate(self, now_ns: int, rate_Bps: int) -> None:
        """Refill at another rate from now on. Credit earned so far stays."""
        if rate_Bps < 1:
            raise ValueError("a token bucket needs a rate of at least one byte per second")
        self.take(now_ns, 0)
        self.rate_Bps = rate_Bps

    def _credit_at(self, now_ns: int) -> int:
        if now_ns <= self._at_ns:
            return self._credit
        refilled = self._credit + (now_ns - self._at_ns) * self.rate_Bps
        return refilled if refilled < self._full else self._full


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


def keeps_invariant(sends: Iterable[tuple[int, int]], rate_Bps: int, burst_bytes: int) -> bool:
    """Whether sends (time in ns, bytes), in order, satisfy the invariant of `TokenBucket`.

    Exact, in one pass.

    The sum from i to k exceeds its bound if and only if (S_k - rate t_k) - min over i <= k of (S_(i-1) - rate
    t_i) exceeds the burst, with S the running sum.
    """
    total, lowest = 0, None
    for at_ns, size in sends:
        line = total * SECOND_NS - rate_Bps * at_ns
        lowest = line if lowest is None else min(lowest, line)
        total += size
        if total * SECOND_NS - rate_Bps * at_ns - lowest > max(burst_bytes, size) * SECOND_NS:
            return False
    return True


def generated_violations(cases: int, seed: int = 0) -> int:
    """Drive buckets with `cases` random traffic patterns.

    Returns how many broke the invariant (0 unless there is a bug).
    """
    draw = random.Random(seed)
    return sum(not _generated_case(draw) for _ in range(cases))


def _generated_case(draw: random.Random) -> bool:
    rate, frame = int(10 ** draw.uniform(0, 10)), int(10 ** draw.uniform(0, 6))
    now = draw.randrange(1 << 50)
    bucket = TokenBucket(rate, 2 * frame, now)
    sends = []
    for _ in range(draw.randrange(1, 40)):
        now += draw.choice((0, draw.randrange(1 << 12), draw.randrange(1 + 2 * frame * SECOND_NS // rate)))
        size = draw.randrange(1, frame + 1)
        now = bucket.earliest(now, size)
        bucket.take(now, size)
        sends.append((now, size))
    return keeps_invariant(sends, rate, 2 * frame)

"""A token bucket for bytes, and the quota of a round. Sans-I/O; integers; nanoseconds.

The bucket limits the rate. The quota is the budget of a round and does not carry over (method 8): a single
bucket of depth C_t that refills at C_t per round would let almost 2 C_t pass in one round.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

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

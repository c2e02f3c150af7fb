"""The order in which parts go out without an allocator (docs/exchange.md, fifo)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part


class SendOrder:
    """Keeps for how many rounds each transfer has been withheld."""

    def __init__(self) -> None:
        self._waiting: dict[Transfer, int] = {}

    def drop_block(self, key: BlockKey) -> None:
        """Forget the waiting times of a deleted block."""
        self._waiting = {k: n for k, n in self._waiting.items() if k[1].block != key}

    def first_in(
        self,
        own: BlockKey,
        wanted: Iterable[Transfer],
        asked: Collection[Transfer],
        budget_bytes: int,
        size: Callable[[Transfer], int],
    ) -> set[Transfer]:
        """The transfers that fit the budget: first requested parts, then by waiting time, then own parts.

        `asked`: the requested ones. Each peer has an equal share of the budget for its requests. Requests
        beyond it have no priority. `size`: in bytes.
        """
        wanted = list(wanted)
        urgent = _urgent(wanted, asked, budget_bytes, size)

        def turn(want: Transfer) -> tuple[bool, int, bool, Part, str]:
            peer, part = want
            return want not in urgent, -self._waiting.get(want, 0), part.block != own, part, peer

        chosen: set[Transfer] = set()
        for want in sorted(wanted, key=turn):
            if size(want) <= budget_bytes:
                budget_bytes -= size(want)
                chosen.add(want)
                self._waiting.pop(want, None)
            else:
                self._waiting[want] = self._waiting.get(want, 0) + 1
        return chosen


def _urgent(
    wanted: Sequence[Transfer],
    asked: Collection[Transfer],
    budget_bytes: int,
    size: Callable[[Transfer], int],
) -> set[Transfer]:
    """The requested transfers within the shares of their peers; at least one for each peer."""
    share = budget_bytes // max(1, len({peer for peer, _ in wanted}))
    urgent, spent = set[Transfer](), Counter[str]()
    for want in (want for want in wanted if want in asked):
        if not spent[want[0]] or spent[want[0]] + size(want) <= share:
            spent[want[0]] += size(want)
            urgent.add(want)
    return urgent

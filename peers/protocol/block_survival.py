"""How likely the owners of the held blocks are to stay, from this device's own view of the membership.

The allocator `priced` asks once a round (docs/pricing.md). Nothing is observed with another allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.departures import DepartureHistory
from peers.protocol.state import DeviceState


class BlockSurvival:
    """Observes the held blocks and returns S_u(H) of each. `suspected`: the incarnations suspected now."""

    def __init__(self, state: DeviceState, suspected: Callable[[], Collection[BlockKey]]) -> None:
        self._state, self._suspected = state, suspected
        self._history = DepartureHistory(state.config.radio.pricing.prior_rounds)

    def observe(self) -> dict[BlockKey, float]:
        """S_u(H) of each held block in the current round.

        It is 0 where the crash of the owner is confirmed and the block is kept for a grace period only.
        """
        state, history = self._state, self._history
        evicted = {record.key for record in state.members.evicted().values()}
        doomed = set() if state.keep_crashed else evicted & state.blocks.keys()
        present = state.blocks.keys() - doomed
        history.observe(state.round, present, self._suspected())
        horizon = state.config.radio.pricing.horizon
        return dict.fromkeys(doomed, 0.0) | {key: history.survival(key, horizon) for key in present}

"""The hazard of a block: how likely its owner is to depart soon, from what this device has seen.

A block departs when its owner leaves, or crashes and its block is dropped. Departures of an owner u are taken
for a Poisson process with an unknown rate lambda_u per round. The prior of lambda_u is exponential, and its
mean is the rate of the whole network. The posterior after n_u rounds with d_u departures is

    lambda_u ~ Gamma(1 + d_u, 1 / mean + n_u),    mean = (1 + D) / (b + N)

D departures in N block-rounds are those of all owners, and b is the prior's number of block-rounds for one
departure. The probability of no departure in the next H rounds is the mean of exp(-lambda_u H):

    S_u(H) = ((1 / mean + n_u) / (1 / mean + n_u + H))^(1 + d_u)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from coordinator_free.identifiers import BlockKey


def mean_rate(departures: int, block_rounds: int, prior_rounds: float) -> float:
    """The posterior mean of the network's hazard, in departures per block and round.

    The prior is Gamma(1, `prior_rounds`): one departure in so many block-rounds.
    """
    return (1 + departures) / (prior_rounds + block_rounds)


def survival(mean: float, departures: int, rounds: int, horizon: float) -> float:
    """S_u(H): the probability that an owner does not depart in the next `horizon` rounds.

    `mean`: the network's hazard per round, above 0. `departures`, `rounds`: of this owner, as observed.
    """
    seen = 1 / mean + rounds
    return float((seen / (seen + horizon)) ** (1 + departures))


def refuted_share(refuted: int, confirmed: int) -> float:
    """The probability that a suspicion is refuted: the mean of Beta(1 + refuted, 1 + confirmed)."""
    return (1 + refuted) / (2 + refuted + confirmed)


class DepartureHistory:
    """The departures and suspicions that one device has seen. Counts are by device id, over its incarnations.

    `prior_rounds`: b above.
    """

    def __init__(self, prior_rounds: float) -> None:
        self._prior_rounds = prior_rounds
        self._round: int | None = None  # of the last observation
        self._present: frozenset[BlockKey] = frozenset()
        self._suspected: frozenset[BlockKey] = frozenset()
        self._rounds, self._departures = Counter[str](), Counter[str]()
        self._refuted = self._confirmed = 0

    @property
    def rate(self) -> float:
        """The network's hazard, in departures per block and round."""
        return mean_rate(self._departures.total(), self._rounds.total(), self._prior_rounds)

    def observe(self, round_: int, present: Collection[BlockKey], suspected: Collection[BlockKey]) -> None:
        """Note the blocks whose owners are there in a round, and those of them that are suspected.

        A block that was there at the last observation and is missing now has departed. Observations of one
        round count once.
        """
        elapsed = 0 if self._round is None else max(0, round_ - self._round)
        self._rounds.update({key.device: elapsed for key in self._present})
        gone = self._present - {*present}
        self._departures.update(key.device for key in gone)
        self._confirmed += len(self._suspected & gone)
        self._refuted += len(self._suspected - gone - {*suspected})
        self._round, self._present = round_, frozenset(present)
        self._suspected = self._present & {*suspected}

    def survival(self, key: BlockKey, horizon: float) -> float:
        """The probability that the owner of a block is still there in `horizon` rounds. An open suspicion
        counts with the share of suspicions that were refuted. 1 without a horizon."""
        if horizon == 0:
            return 1.0
        of = survival(self.rate, self._departures[key.device], self._rounds[key.device], horizon)
        return of * refuted_share(self._refuted, self._confirmed) if key in self._suspected else of

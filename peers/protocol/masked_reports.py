"""Masked reports: the cohort of each diagnosis, the masks of this device, and the sum (docs/privacy.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from coordinator_free.correction.masking import Cohort, Numbers, decode, encode, mask, units
from coordinator_free.correction.network_mean import Mean, NetworkMean
from coordinator_free.identifiers import BlockKey
from peers.protocol.state import DeviceState


class MaskedReports:
    """Masks the reports of this device, and reads the mean of a cohort whose reports are all here.

    `trials`: the numbers of a report after the observables of the groups.
    """

    def __init__(self, state: DeviceState, network_mean: NetworkMean, trials: int) -> None:
        self._state, self._network_mean = state, network_mean
        self._units = units(len(state.exchange.groups), state.config.correction.sketch, trials)
        self._cohorts: dict[int, Cohort] = {}  # by epoch, of diagnoses that wait for their decision
        self._sums: dict[int, Numbers] = {}  # by epoch, of cohorts whose reports have all been here
        self._reported = -1  # the last epoch of a report

    def begin(self) -> bool:
        """Fix the cohort of this round's diagnosis. False: it sends no reports, so nothing is measured."""
        state, alive = self._state, self._state.members.alive()
        records = [alive[device] for device in state.training() if device in alive]
        cohort = Cohort(state.round, {record.key: record.mask_key for record in records})
        if cohort.reports:
            self._cohorts[state.round] = cohort
        else:
            error = f"a cohort of {len(records)} sends no masked reports"
            state.log("undecided", epoch=state.round, missing=[], error=error)
        return cohort.reports

    def add_own(self, epoch: int, values: Iterable[float], sign: Callable[[bytes], bytes]) -> None:
        """Mask and sign the measurements of this device after round `epoch`.

        There is no report if the cohort has another incarnation of this device, and never a second one: two
        reports under one mask would show by how much they differ. Raises ValueError for values that are out
        of range.
        """
        cohort, own, key = self._cohorts.get(epoch), self._state.own, self._state.mask_key
        if cohort is None or own is None or key is None or epoch <= self._reported:
            return
        if cohort.mask_keys.get(own.key) != key.public:
            return
        self._reported = epoch
        numbers, clipped = encode(self._network_mean.checked(own.key, values), self._units)
        if clipped:
            self._state.log("clipped", epoch=epoch, values=clipped)
        masked = numbers + mask(own.key, cohort, len(numbers), key.stream)
        self._network_mean.add_own_masked(own.key, cohort, masked, sign)
        self.keep_sum(epoch)

    def keep_sum(self, epoch: int) -> None:
        """Keep the sum of this epoch if the reports of its cohort are all here. For each new report.

        A faster device's next report replaces its last one, perhaps before this device decides.
        """
        cohort = self._cohorts.get(epoch)
        total = None if cohort is None else self._network_mean.masked_sum(cohort)
        if total is not None:
            self._sums[epoch] = total

    def missing(self, epoch: int) -> list[BlockKey]:
        """Members of the cohort whose reports are not here, unless all of them have been here at once."""
        cohort = self._cohorts.get(epoch)
        return [] if cohort is None or epoch in self._sums else self._network_mean.missing_of(cohort)

    def mean(self, epoch: int) -> Mean | None:
        """The mean of the cohort; None if a report is missing. Forgets the cohort.

        Raises ValueError for a sum that is out of range.
        """
        cohort, total = self._cohorts.pop(epoch, None), self._sums.pop(epoch, None)
        if cohort is None or total is None:
            return None
        origins = tuple(sorted(cohort.mask_keys))
        told = repr((epoch, [tuple(key) for key in origins])).encode() + total.astype("<u8").tobytes()
        digest = hashlib.blake2b(told, digest_size=16).digest()
        return Mean(decode(total, self._units, len(origins)), origins, epoch, digest)

    def forget_cohorts(self) -> None:
        """An event ends all diagnoses that wait for their decision."""
        self._cohorts.clear()
        self._sums.clear()

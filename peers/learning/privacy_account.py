"""The account of a device: how much of its privacy budget the local steps have spent (docs/privacy.md).

The bounds are those of the package `dp-accounting`: Renyi differential privacy (Mironov, 2017) of the
Gaussian mechanism on a Poisson sample. Two data sets are neighbours if one has an empty example, which has no
gradient, in the place of one example of the other (Kairouz et al., 2021).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from peers.errors import InputError, describe
from peers.privacy_config import PrivacyConfig

FILE = "privacy.json"
PACKAGE = "dp_accounting"
# Of Renyi divergences; epsilon is the least bound of all. Orders that are no integers cost the most time.
ORDERS = (1.5, 2.5, 3.5, 4.5, *range(2, 64), 128, 256, 512, 1024)
TOLERANCE = 1e-4  # of the noise multiplier
LEAST_NOISE = 0.05  # below, epsilon is beyond any use, and the bounds no longer converge


class Spent(NamedTuple):
    """Steps with one noise multiplier and one sampling rate."""

    noise: float
    rate: float
    steps: int


def account_path(run: Path, device: str) -> Path:
    """The account of a device in the folder of a run."""
    return run.expanduser() / "devices" / device / FILE


def missing_package() -> str | None:
    """The reason why no account can be kept; None if there is none."""
    if find_spec(PACKAGE) is not None:
        return None
    return "needs the package dp-accounting; allowed: pip install 'unweft[privacy]', or 0"


def check_delta(privacy: PrivacyConfig, examples: Mapping[str, int]) -> None:
    """Raises InputError if delta would allow a device to publish one of its examples. examples: by device."""
    for device, count in examples.items():
        if privacy.on and count and privacy.delta >= 1 / count:
            raise InputError(
                f"privacy.delta: {privacy.delta:g} with {count} examples of {device}; allowed: less than"
                f" {1 / count:g}, 1 / examples"
            )


@lru_cache(maxsize=8)  # a round asks twice: may it spend, and what has it spent
def epsilon_of(spent: tuple[Spent, ...], delta: float) -> float:
    """epsilon at `delta` of all these steps together; 0 without a step."""
    accountant = _accountant()
    for one in spent:
        if one.steps:
            accountant.compose(_event(one.noise, one.rate), one.steps)
    return float(accountant.get_epsilon(delta))


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, from LEAST_NOISE on, with which so many steps stay within epsilon."""
    import dp_accounting

    if epsilon_of((Spent(LEAST_NOISE, rate, steps),), delta) <= epsilon:
        return LEAST_NOISE
    found = dp_accounting.calibrate_dp_mechanism(
        _accountant,
        lambda noise: dp_accounting.SelfComposedDpEvent(_event(noise, rate), steps),
        epsilon,
        delta,
        dp_accounting.LowerEndpointAndGuess(LEAST_NOISE, 1.0),
        tol=TOLERANCE,
    )
    return float(found)


def _accountant() -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of orders that it leaves out of the minimum
    return RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)


def _event(noise: float, rate: float) -> Any:
    import dp_accounting

    return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))


class PrivacyAccount:
    """What the local steps of one device have spent.

    rate: the probability with which an example is in the sample of a step. planned: the steps for which the
    noise is chosen. Without `keep_in`, the account is in memory only.
    """

    def __init__(self, config: PrivacyConfig, rate: float, planned: int) -> None:
        self._config, self.rate, self._planned = config, rate, planned
        self._spent: tuple[Spent, ...] = ()
        self._files: tuple[Path, ...] = ()
        self._begun = False  # this process has booked steps

    @cached_property
    def noise(self) -> float:
        """The noise multiplier sigma."""
        config = self._config
        return config.noise or noise_for(config.epsilon, config.delta, self.rate, self._planned)

    @property
    def steps(self) -> int:
        """The steps of this device so far, over all its processes. No two steps have the same number."""
        return sum(one.steps for one in self._spent)

    @property
    def epsilon(self) -> float:
        """What these steps have spent at `privacy.delta`."""
        return epsilon_of(self._spent, self._config.delta)

    def keep_in(self, path: Path, *earlier: Path) -> None:
        """Keep the account in a file. It begins with the first of `path` and `earlier` that is there.

        Raises InputError for a damaged file: the account would begin anew.
        """
        self._files = (path, *earlier)
        self._load()

    def _load(self) -> None:
        self._spent = next((_read(path) for path in self._files if path.exists()), self._spent)

    def book(self, steps: int) -> range:
        """Book up to `steps` steps, as many as epsilon allows; returns their numbers.

        The file has them before the first of them is taken: a crash never leaves a step that is not booked.
        """
        if not self._begun:  # in virtual time, the earlier process may have trained since `keep_in`
            self._load()
            self._begun = True
        first, allowed = self.steps, self._allowed(steps)
        if allowed:
            self._spent = self._with(allowed)
            if self._files:
                about = {"epsilon": self.epsilon, "delta": self._config.delta}
                _write(self._files[0], {"spent": self._spent, **about})
        return range(first, first + allowed)

    def _allowed(self, steps: int) -> int:
        """The most of `steps` further steps that stay within epsilon, by bisection."""
        if not self._config.epsilon or self._fits(steps):
            return steps
        least, most = 0, steps  # `least` fit, `most` do not
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self._fits(middle) else (least, middle)
        return least

    def _fits(self, steps: int) -> bool:
        return epsilon_of(self._with(steps), self._config.delta) <= self._config.epsilon

    def _with(self, steps: int) -> tuple[Spent, ...]:
        """The account with further steps."""
        new = Spent(self.noise, self.rate, steps)
        if self._spent and self._spent[-1][:2] == new[:2]:
            return (*self._spent[:-1], new._replace(steps=self._spent[-1].steps + steps))
        return (*self._spent, new)


def _read(path: Path) -> tuple[Spent, ...]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["spent"]
        return tuple(Spent(float(noise), float(rate), int(steps)) for noise, rate, steps in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no account of spent privacy ({describe(error)}); allowed: the file that the device "
            "wrote"
        ) from None


def _write(path: Path, account: Mapping[str, object]) -> None:
    """No reader sees a partial file, also after a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    with part.open("w", encoding="utf-8") as file:
        json.dump(account, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)

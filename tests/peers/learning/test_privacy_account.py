"""The account of spent privacy: the bounds of the package, the limit, and the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from peers.errors import InputError
from peers.learning import privacy_account
from peers.learning.privacy_account import FILE, PrivacyAccount, Spent, epsilon_of, missing_package, noise_for
from peers.privacy_config import PrivacyConfig
from tests.support.learners import OWN, block, joined, same

dp_accounting = pytest.importorskip("dp_accounting")

DELTA = 1e-5
LIMITED = {"epsilon": 4.0, "delta": 1e-2}


def test_epsilon_is_that_of_the_package() -> None:
    """The known case of the package's own tests and of TensorFlow Privacy: MNIST, 60 epochs, sigma 1.1."""
    spent = (Spent(1.1, 256 / 60000, 14062),)
    rdp = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    event = dp_accounting.PoissonSampledDpEvent(256 / 60000, dp_accounting.GaussianDpEvent(1.1))
    expected = rdp.compose(event, 14062).get_epsilon(DELTA)
    assert expected <= epsilon_of(spent, DELTA) < 1.002 * expected  # fewer orders: never below


def test_a_full_sample_is_the_plain_gaussian_mechanism() -> None:
    """4 steps with sigma are one with sigma / 2, and its Renyi divergence is alpha / (2 sigma^2)."""
    one, four = (epsilon_of((Spent(noise, 1.0, n),), DELTA) for noise, n in ((2.0, 1), (4.0, 4)))
    assert one == pytest.approx(four, rel=1e-9)
    parts = (Spent(4.0, 1.0, 1), Spent(4.0, 1.0, 3))
    assert epsilon_of(parts, DELTA) == pytest.approx(four, rel=1e-9)
    assert epsilon_of((), DELTA) == 0.0


def test_the_noise_is_the_least_that_stays_within_epsilon() -> None:
    noise = noise_for(3.0, DELTA, 0.1, 200)
    assert epsilon_of((Spent(noise, 0.1, 200),), DELTA) <= 3.0
    assert epsilon_of((Spent(0.99 * noise, 0.1, 200),), DELTA) > 3.0


def test_the_account_grows_and_stops_at_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    learner = joined(privacy=LIMITED, data={"batch": 2}, round={"count": 4, "local_steps": 3})
    found = [learner.train(n, 3, rehearse=False) for n in range(3)]
    found.append(learner.train(3, 50, rehearse=False))  # a correction with more steps than planned
    before = block(learner, OWN)
    found.append(learner.train(4, 3, rehearse=False))
    spent = [one.epsilon or 0.0 for one in found]
    assert 0 < spent[0] < spent[1] < spent[2] < spent[3] <= 4.0
    assert spent[4] == spent[3]
    assert [one.steps for one in found] == [3, 3, 3, 3, 0]
    assert same(block(learner, OWN), before)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_the_same_seed_gives_the_same_block() -> None:
    blocks = []
    for _ in range(2):
        learner = joined(privacy={"noise": 1.0}, data={"batch": 2})
        learner.train(0, 2, rehearse=False)
        blocks.append(block(learner, OWN))
    assert same(*blocks)


def test_a_device_that_returns_goes_on_with_its_account(tmp_path: Path) -> None:
    account = PrivacyAccount(PrivacyConfig(noise=1.0), 0.5, 10)
    account.keep_in(tmp_path / FILE)
    assert account.book(4) == range(4)
    again = PrivacyAccount(PrivacyConfig(noise=1.0), 0.5, 10)
    again.keep_in(tmp_path / FILE)
    assert (again.steps, again.epsilon) == (4, account.epsilon)
    other = PrivacyAccount(PrivacyConfig(noise=2.0), 0.5, 10)  # another noise: both count
    other.keep_in(tmp_path / "new" / FILE, tmp_path / FILE)
    assert other.book(2) == range(4, 6)
    assert other.epsilon == epsilon_of((Spent(1.0, 0.5, 4), Spent(2.0, 0.5, 2)), DELTA)
    written = json.loads((tmp_path / "new" / FILE).read_text())
    assert written["spent"] == [[1.0, 0.5, 4], [2.0, 0.5, 2]]
    assert (written["epsilon"], written["delta"]) == (other.epsilon, DELTA)


def test_a_process_that_waited_while_the_earlier_one_trained_goes_on_with_its_account(tmp_path: Path) -> None:
    """In virtual time the process of a return is made before the run begins."""
    lives = [PrivacyAccount(PrivacyConfig(noise=1.0), 0.5, 10) for _ in range(2)]
    for life in lives:
        life.keep_in(tmp_path / FILE)
    assert [life.book(3) for life in lives] == [range(3), range(3, 6)]
    assert lives[1].book(1) == range(6, 7)


def test_a_run_that_resumes_a_checkpoint_goes_on_with_its_account(tmp_path: Path) -> None:
    config = {"noise": 1.0}
    first = joined(privacy=config)
    first.keep_account(tmp_path / "old" / "devices" / "d0")
    first.train(0, 2, rehearse=False)
    second = joined(privacy=config)
    assert second._local._private is not None
    second._local._config = second._local._config.model_copy(
        update={
            "checkpoint": second._local._config.checkpoint.model_copy(
                update={"resume": str(tmp_path / "old")}
            )
        }
    )
    second.keep_account(tmp_path / "new" / "devices" / "d0")
    second.train(0, 2, rehearse=False)
    assert second._local._private.account.steps == 4


def test_steps_are_in_the_file_before_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = joined(privacy={"noise": 1.0})
    learner.keep_account(tmp_path)
    seen = []

    def step(*_: object) -> float:
        seen.append(json.loads((tmp_path / FILE).read_text())["spent"][0][2])
        raise RuntimeError("crash")

    monkeypatch.setattr(learner._local, "step", step)
    with pytest.raises(RuntimeError, match="crash"):
        learner.train(0, 5, rehearse=False)
    assert seen == [5]


def test_a_damaged_account_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"spent": [[1.0')
    with pytest.raises(InputError, match=r"privacy\.json: is no account of spent privacy.*allowed: the file"):
        PrivacyAccount(PrivacyConfig(noise=1.0), 0.5, 10).keep_in(tmp_path / FILE)


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_package() is None
    monkeypatch.setattr(privacy_account, "PACKAGE", "no_such_package")
    assert "pip install 'unweft[privacy]'" in str(missing_package())

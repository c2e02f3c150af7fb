"""What a scenario with privacy may not contain: everything that publishes the data without noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.scenario.loading import load
from peers.errors import InputError
from peers.learning import privacy_account
from peers.learning.privacy_account import check_delta
from peers.privacy_config import PrivacyConfig
from tests.support.refusals import QUICK, refusal


@pytest.fixture(autouse=True)
def package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_account, "missing_package", lambda: None)


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        (
            "correction.policy='dominant'",
            ("correction.policy", "'dominant' with privacy", "sketches", "uniform"),
        ),
        ("correction.fisher=true", ("correction.fisher", "'true' with privacy", "allowed: false")),
        ("train.fisher_every=5", ("train.fisher_every", "'5' with privacy", "allowed: 0")),
        ("correction.refit=0.2", ("correction.refit", "'0.2' with privacy", "allowed: 0")),
        ("correction.projection=true", ("correction.projection", "allowed: false, or no privacy")),
        ("correction.ewc=1.0", ("correction.ewc", "Fisher information", "allowed: 0")),
        ("isolation.leak=0.1", ("isolation.leak", "blocks of others", "allowed: 0")),
    ],
)
def test_what_publishes_the_data_without_noise_is_refused(override: str, texts: tuple[str, ...]) -> None:
    load(QUICK, [override])  # without privacy it is allowed
    found = refusal(override, "privacy.epsilon=8")
    assert all(text in found for text in texts), found


def test_interference_is_refused_with_its_fisher_steps() -> None:
    assert "correction.fisher" in refusal(
        "correction.interference=true", "correction.fisher=true", "privacy.noise=1"
    )


def test_privacy_with_its_defaults_is_accepted() -> None:
    assert load(QUICK, ["privacy.epsilon=8"]).privacy.on
    assert load(QUICK, ["privacy.noise=0.5"]).privacy.on
    assert not load(QUICK, []).privacy.on


def test_keys_that_would_protect_nothing_are_refused() -> None:
    assert "privacy: has no epsilon and no noise" in refusal("privacy.clip=0.5")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_account, "missing_package", lambda: "needs a package; allowed: 0")
    assert "privacy.noise: needs a package" in refusal("privacy.noise=1")
    load(QUICK, [])


def test_a_checkpoint_without_an_account_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "d0.safetensors").touch()
    resume = f"checkpoint.resume='{tmp_path}'"
    found = refusal(resume, "privacy.epsilon=8")
    assert "has no account of the privacy that d0 has spent" in found
    (tmp_path / "devices" / "d0").mkdir(parents=True)
    (tmp_path / "devices" / "d0" / privacy_account.FILE).write_text('{"spent": []}')
    load(QUICK, [resume, "privacy.epsilon=8"])


def test_delta_is_less_than_one_over_the_examples() -> None:
    privacy = PrivacyConfig(epsilon=1, delta=0.025)
    check_delta(privacy, {"d0": 39, "d1": 0})
    with pytest.raises(
        InputError, match=r"privacy\.delta: 0\.025 with 40 examples of d0; allowed: less than"
    ):
        check_delta(privacy, {"d0": 40})
    check_delta(PrivacyConfig(), {"d0": 10**9})

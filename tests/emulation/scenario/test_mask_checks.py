"""What a scenario with `correction.masked` may not contain, and what it needs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from coordinator_free.correction.lookahead import trial_count
from coordinator_free.correction.masking import NUMBER_BYTES, report_bytes
from emulation.scenario.loading import load
from emulation.scenario.mask_checks import MOST_SKETCH
from peers.lora.layout import GROUPS
from tests.support.refusals import QUICK, refusal
from transport.wire.messages import Envelope, Observed
from transport.wire.packing import pack

MASKED = ("correction.masked=true", "correction.policy='dominant'")


def test_a_policy_that_measures_can_be_masked() -> None:
    assert load(QUICK, MASKED).correction.masked
    assert load(QUICK, [*MASKED, "correction.policy='lookahead'"]).correction.masked
    assert not load(QUICK, []).correction.masked


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (
            ["correction.policy='uniform'"],
            ["correction.policy: 'uniform' with correction.masked", "measures"],
        ),
        (
            ["correction.interference=true", "correction.fisher=true"],
            ["correction.interference: 'true' with correction.masked", "without a mask; allowed: false"],
        ),
        (["correction.period=2"], ["correction.period: '2'", "more than correction.delay = 2"]),
        (["correction.sketch=2049"], ["correction.sketch: '2049'", "at most 2048"]),
        (["adapter.max_devices=1025", "adapter.rank=1"], ["adapter.max_devices: '1025'", "at most 1024"]),
        (["devices.count=2", "event=[]"], ["devices.count: '2'", "at least 3"]),
        (["keys.enabled=false"], ["keys.enabled: 'false'", "anybody", "allowed: true"]),
    ],
)
def test_what_a_mask_does_not_cover_or_needs_is_refused(overrides: list[str], texts: list[str]) -> None:
    plain = [override for override in overrides if "policy" not in override]
    load(QUICK, ["correction.policy='dominant'", *plain])  # without masks it is allowed
    found = refusal(*MASKED, *overrides)
    assert all(text in found for text in texts), found
    assert found.endswith("or correction.masked = false")


def test_the_longest_sketch_fits_into_a_message_and_the_next_power_of_two_does_not() -> None:
    for sketch, fits in ((MOST_SKETCH, True), (2 * MOST_SKETCH, False)):
        values = bytes(report_bytes(len(GROUPS), sketch) + NUMBER_BYTES * trial_count(GROUPS))
        message = Observed("d1", 0, 3, values, bytes(64))
        with nullcontext() if fits else pytest.raises(ValueError, match="Observed"):
            pack(Envelope("d1", 0), message)


def test_privacy_of_examples_still_excludes_policies_that_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from peers.learning import privacy_account

    monkeypatch.setattr(privacy_account, "missing_package", lambda: None)
    assert "correction.policy: 'dominant' with privacy" in refusal(*MASKED, "privacy.epsilon=8")

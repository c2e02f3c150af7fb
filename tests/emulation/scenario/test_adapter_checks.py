"""What a scenario with another kind of adapter than LoRA may not contain."""

from __future__ import annotations

import pytest

from emulation.scenario.loading import load
from peers.learning import privacy_account
from tests.support.refusals import QUICK, refusal


@pytest.fixture(autouse=True)
def package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_account, "missing_package", lambda: None)


def test_lora_is_the_default() -> None:
    assert load(QUICK, []).adapter.kind == "lora"
    assert "adapter.kind" in refusal("adapter.kind='bottleneck'")


@pytest.mark.parametrize("kind", ["bottleneck-relu", "bottleneck-gelu", "bottleneck-silu", "vera"])
def test_the_literal_mixing_of_the_paper_is_refused(kind: str) -> None:
    load(QUICK, ["mixing.mode='paper-literal'"])
    found = refusal("mixing.mode='paper-literal'", f"adapter.kind='{kind}'")
    assert f"'paper-literal' with adapter.kind = '{kind}'" in found and "allowed: another mode" in found


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        ("correction.policy='dominant'", ("correction.policy", "'dominant' with", "uniform")),
        ("correction.fisher=true", ("correction.fisher", "'true' with", "allowed: false")),
        ("train.fisher_every=5", ("train.fisher_every", "'5' with", "allowed: 0")),
        ("correction.refit=0.2", ("correction.refit", "'0.2' with", "allowed: 0")),
        ("correction.projection=true", ("correction.projection", "allowed: false")),
        ("correction.ewc=1.0", ("correction.ewc", "'1.0' with", "allowed: 0")),
        ("privacy.noise=1.0", ("privacy", "allowed: no privacy")),
        ("adapter.bases='independent'", ("adapter.bases", "share one basis", "'orthogonal'")),
        ("adapter.rank={early=1, mid=2, late=2}", ("adapter.rank", "'a table' with", "one rank")),
    ],
)
def test_vera_refuses_what_takes_a_block_for_a_matrix_b(override: str, texts: tuple[str, ...]) -> None:
    """The bottleneck allows all of it."""
    assert load(QUICK, [override, "adapter.kind='bottleneck-gelu'"]).adapter.kind == "bottleneck-gelu"
    found = refusal(override, "adapter.kind='vera'")
    assert all(text in found for text in (*texts, "adapter.kind = 'vera'")), found

"""IPv6 addresses among endpoints, and names without an address."""

from __future__ import annotations

import pytest

from emulation.testbed import endpoints
from peers.errors import InputError


def test_an_ipv6_seed_is_used() -> None:
    assert endpoints.resolve("tcp://[::1]:7000") == ["tcp://[::1]:7000"]
    assert endpoints.own("tcp://[::]:7001", ["tcp://[::1]:7000"]) == "tcp://[::1]:7001"


def test_an_ipv4_name_is_used_as_before() -> None:
    assert endpoints.resolve("tcp://127.0.0.1:7000") == ["tcp://127.0.0.1:7000"]


@pytest.mark.parametrize("endpoint", ["tcp://::1:7000", "tcp://[::1:7000", "tcp://[nonsense]:7000"])
def test_an_ipv6_address_without_brackets_or_sense_is_refused(endpoint: str) -> None:
    with pytest.raises(InputError, match=r"--seeds: .* allowed: tcp://\[::1\]:port"):
        endpoints.split("--seeds", endpoint)

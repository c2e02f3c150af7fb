"""The probe period grows with the devices a core, unless the scenario sets it."""

from __future__ import annotations

import pytest

from emulation.scenario.loading import from_table
from emulation.scenario.probe_period import fitted, note, probe_s


@pytest.mark.parametrize(
    ("devices", "cores", "expected"), [(2, 2, 0.5), (16, 2, 0.5), (32, 2, 1.0), (64, 2, 2.0), (64, 16, 0.5)]
)
def test_more_than_eight_devices_a_core_are_probed_less_often(
    devices: int, cores: int, expected: float
) -> None:
    assert probe_s(devices, cores) == expected


def scenario(clock: str = "real", **membership: float):
    table = {
        "name": "many",
        "clock": clock,
        "devices": {"count": 32},
        "adapter": {"max_devices": 32, "rank": 1},
    }
    return from_table({**table, "membership": membership})


def test_a_run_of_many_devices_gets_a_longer_period_and_says_so() -> None:
    before = scenario(links=2)
    found = fitted(before, 2)
    assert (found.membership.probe_s, found.membership.links) == (1.0, 2)
    assert note(found, before, 2) == (
        "membership.probe_s: 1 s in place of 0.5 s, because 32 devices share 2 cores; a crash is found later"
    )


def test_a_period_that_is_set_stays_as_do_few_devices_and_virtual_time() -> None:
    for given, cores in ((scenario(probe_s=0.5), 2), (scenario(), 4), (scenario("virtual"), 2)):
        assert fitted(given, cores) is given

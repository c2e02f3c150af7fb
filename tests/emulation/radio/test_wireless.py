"""The radio: the formulas against figures worked by hand, and the same draws for everybody."""

from __future__ import annotations

import math
import os
import pickle
import statistics
import subprocess
import sys
from itertools import combinations, pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.radio.hashed_random import exponential, normal, uniform
from emulation.radio.mobility import Positions
from emulation.radio.wireless import (
    WirelessChannel,
    channel,
    noise_mW,
    path_loss_dB,
    rate_table,
    shannon_Bps,
)
from peers.config import DeviceConfig
from peers.radio_config import MobilityConfig, RadioConfig, WirelessConfig
from transport.shaping.channel import FixedChannel

LIVE = [f"d{i}" for i in range(6)]
PLAIN: dict[str, Any] = {"shadowing_dB": 0.0, "fading": False}
LINE: dict[str, Any] = {"positions": {"a": (0.0, 0.0), "b": (100.0, 0.0), "c": (50.0, 0.0)}}


def configured(seed: int = 0, **wireless: Any) -> DeviceConfig:
    radio = RadioConfig(kind="wireless", wireless=WirelessConfig.model_validate(wireless))
    return DeviceConfig(seed=seed, radio=radio)


def wireless(seed: int = 0, **keys: Any) -> WirelessChannel:
    made = channel(configured(seed, **keys), LIVE)
    assert isinstance(made, WirelessChannel)
    return made


# -- formulas ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("distance_m", "carrier_GHz", "exponent", "loss_dB"),
    [
        (1, 1, 3.19, 32.4),
        (1, 2, 3.19, 38.4206),  # 20 log10 2 = 6.0206
        (100, 2, 3.19, 102.2206),  # 38.4206 + 2 * 31.9
        (10, 1, 2, 52.4),
        (0.1, 1, 2, 32.4),  # nearer than d0 counts as d0
    ],
)
def test_path_loss(distance_m: float, carrier_GHz: float, exponent: float, loss_dB: float) -> None:
    assert path_loss_dB(distance_m, carrier_GHz, exponent) == pytest.approx(loss_dB, abs=1e-4)


def test_noise_is_minus_174_dBm_per_Hz() -> None:
    assert 10 * math.log10(noise_mW(1, 0)) == pytest.approx(-173.975, abs=1e-3)
    assert 10 * math.log10(noise_mW(10e6, 9)) == pytest.approx(-94.975, abs=1e-3)


def test_shannon() -> None:
    assert shannon_Bps(3, 1e6, 10) == pytest.approx(250_000)  # log2(4) = 2 bit/s/Hz
    assert shannon_Bps(1e9, 1e6, 5.5547) == pytest.approx(694_337.5)  # no more than the modulation carries
    assert shannon_Bps(0, 1e6, 10) == 0


def test_a_link_by_hand() -> None:
    """23 dBm - 102.22 dB = -79.22 dBm over -94.975 dBm of noise: 15.754 dB, 5.2713 bit/s/Hz, 10 MHz."""
    link = wireless(**PLAIN, **LINE).link(0, "a", "b", ["a", "b"])
    assert link.rate_Bps == pytest.approx(6.589e6, rel=1e-3)
    assert not link.outage


def test_interference_by_hand() -> None:
    """c is half as far from b as a: 31.9 log10 2 = 9.603 dB stronger; hardly any noise; two subchannels."""
    link = wireless(**PLAIN, **LINE).link(0, "a", "b", ["a", "b", "c"])
    assert link.rate_Bps == pytest.approx(10e6 / 2 * math.log2(1 + 10**-0.9603) / 8, rel=5e-3)


def test_interference_lowers_rates() -> None:
    quiet, loud = wireless(interference=0.0), wireless(interference=0.5)
    for pair in combinations(LIVE, 2):
        assert loud.link(3, *pair, LIVE).rate_Bps < quiet.link(3, *pair, LIVE).rate_Bps
        assert loud.link(3, *pair, LIVE).rate_Bps <= loud.link(3, *pair, LIVE[:4]).rate_Bps


def test_without_interference_other_devices_only_share_the_band() -> None:
    links = wireless(interference=0.0)
    assert links.link(0, "d0", "d1", LIVE).rate_Bps == pytest.approx(
        links.link(0, "d0", "d1", ["d0", "d1"]).rate_Bps / 5, abs=1
    )
    fixed = wireless(interference=0.0, subchannels=2)
    assert fixed.link(0, "d0", "d1", LIVE) == fixed.link(0, "d0", "d1", ["d0", "d1"])


def test_a_receiver_need_not_be_live() -> None:
    links = wireless()
    assert links.link(0, "d0", "d5", LIVE[:5]) == links.link(0, "d0", "d5", LIVE)


# -- draws ---------------------------------------------------------------------------------------------
def test_rayleigh_power_gain_is_exponential_with_mean_1() -> None:
    gains = [exponential("fade", 0, k, "a", "b") for k in range(20_000)]
    assert statistics.fmean(gains) == pytest.approx(1, abs=0.03)
    assert statistics.pvariance(gains) == pytest.approx(1, abs=0.08)
    assert sum(gain < math.log(2) for gain in gains) / 20_000 == pytest.approx(0.5, abs=0.02)


def test_normal_and_uniform_moments() -> None:
    drawn = [normal("x", k) for k in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(0, abs=0.03)
    assert statistics.pstdev(drawn) == pytest.approx(1, abs=0.03)
    assert all(0 < uniform("x", k) < 1 for k in range(1000))


def test_mean_received_power_is_the_path_loss() -> None:
    links = wireless(shadowing_dB=0.0, **LINE)
    mean = statistics.fmean(links.received_mW(k, "a", "b") for k in range(5000))
    assert 10 * math.log10(mean) == pytest.approx(23 - 102.2206, abs=0.3)


def test_shadowing_is_symmetric_and_fading_is_not() -> None:
    shadowed, faded = wireless(fading=False), wireless()
    for src, dst in combinations(LIVE, 2):
        assert shadowed.received_mW(0, src, dst) == shadowed.received_mW(0, dst, src)
        assert shadowed.received_mW(0, src, dst) == shadowed.received_mW(7, src, dst)
        assert faded.received_mW(0, src, dst) != faded.received_mW(0, dst, src)
        assert faded.received_mW(0, src, dst) != faded.received_mW(7, src, dst)


def test_shadowing_has_its_standard_deviation() -> None:
    plain, shadowed = wireless(fading=False, shadowing_dB=0.0), wireless(fading=False, shadowing_dB=6.0)
    devices = [f"d{i}" for i in range(64)]
    ratios = [
        10 * math.log10(shadowed.received_mW(0, *pair) / plain.received_mW(0, *pair))
        for pair in combinations(devices, 2)
    ]
    assert statistics.fmean(ratios) == pytest.approx(0, abs=0.5)
    assert statistics.pstdev(ratios) == pytest.approx(6, abs=0.4)


def test_the_seed_determines_the_channel() -> None:
    assert rate_table(wireless(1), 0, LIVE) == rate_table(wireless(1), 0, LIVE)
    assert rate_table(wireless(1), 0, LIVE) != rate_table(wireless(2), 0, LIVE)


def test_qualities_do_not_depend_on_the_order_of_calls() -> None:
    links, asked = wireless(), list(permutations(LIVE, 2))
    forth = {(k, pair): links.link(k, *pair, LIVE) for k in range(4) for pair in asked}
    back = {
        (k, pair): links.link(k, *pair, LIVE[::-1]) for pair in reversed(asked) for k in reversed(range(4))
    }
    assert forth == back


def test_the_same_in_another_process_and_after_pickling() -> None:
    program = (
        "from tests.emulation.radio.test_wireless import LIVE, wireless\n"
        "from emulation.radio.wireless import rate_table\n"
        "print([q.rate_Bps for q in rate_table(wireless(5, interference=0.01), 11, LIVE).values()])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    fresh = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, env=environment
    )
    used = wireless(5, interference=0.01)
    rate_table(used, 3, LIVE)
    here = rate_table(pickle.loads(pickle.dumps(used)), 11, LIVE)
    assert fresh.stdout.strip() == str([quality.rate_Bps for quality in here.values()]), fresh.stderr


# -- outage, kinds -------------------------------------------------------------------------------------
def test_outage_if_a_frame_takes_longer_than_tau_max() -> None:
    config = configured(**PLAIN, **LINE)
    rate = channel(config, []).link(0, "a", "b", ["a", "b"]).rate_Bps
    for size, outage in ((2 * rate, False), (2 * rate + 1, True)):
        radio = config.radio.model_copy(update={"outage_bytes": size, "tau_max_s": 2.0})
        link = channel(config.model_copy(update={"radio": radio}), []).link(0, "a", "b", ["a", "b"])
        assert link.outage == outage


def test_latency_jitter_and_loss_are_the_configured_ones() -> None:
    for kind in ("fixed", "wireless"):
        radio = RadioConfig(kind=kind, latency_s=0.25, jitter_s=0.5, loss=0.125)
        links = channel(DeviceConfig(radio=radio), LIVE)
        link = links.link(0, "d0", "d1", LIVE)
        assert (link.latency_ns, link.jitter_ns, link.loss) == (250_000_000, 500_000_000, 0.125)
        assert links.min_latency_ns == 250_000_000


def test_fixed_is_the_default_and_runs_at_the_device_rate() -> None:
    links = channel(DeviceConfig(), LIVE)
    assert isinstance(links, FixedChannel)
    assert links.quality.rate_Bps == RadioConfig().rate_Bps
    assert links.min_latency_ns > 0 and not links.quality.outage


# -- mobility ------------------------------------------------------------------------------------------
walks = st.builds(
    MobilityConfig, kind=st.just("random-waypoint"), speed_mps=st.floats(0.01, 50), round_s=st.floats(0.1, 10)
)


def step_m(mobility: MobilityConfig) -> float:
    return mobility.speed_mps * mobility.round_s


@given(st.integers(0, 1 << 32), walks, st.floats(20, 5000), st.integers(0, 200))
def test_walkers_stay_in_the_area_and_keep_to_their_speed(
    seed: int, mobility: MobilityConfig, area_m: float, start: int
) -> None:
    positions = Positions(seed, WirelessConfig(area_m=area_m), mobility)
    path = [positions.at("d0", k) for k in range(start, start + 10)]
    assert all(0 <= metres <= area_m for point in path for metres in point)
    for here, there in pairwise(path):
        assert math.dist(here, there) <= step_m(mobility) * (1 + 1e-6) + 1e-6


def test_paths_do_not_depend_on_the_order_of_calls() -> None:
    mobility = MobilityConfig(kind="random-waypoint")
    forth = [Positions(3, WirelessConfig(), mobility).at("d1", k) for k in range(300)]
    asked = Positions(3, WirelessConfig(), mobility)
    back = [asked.at("d1", k) for k in reversed(range(300))]
    assert forth == back[::-1]
    straight = sum(
        math.isclose(math.dist(here, there), step_m(mobility), rel_tol=1e-6)
        for here, there in pairwise(forth)
    )
    assert straight > 280  # the other steps turn at a waypoint


def test_without_mobility_devices_stay() -> None:
    positions = Positions(0, WirelessConfig(positions={"d1": (3.0, 4.0)}), MobilityConfig())
    assert positions.at("d1", 0) == positions.at("d1", 99) == (3.0, 4.0)
    assert positions.at("d0", 0) == positions.at("d0", 99)


def test_a_walker_starts_at_its_configured_position() -> None:
    mobility = MobilityConfig(kind="random-waypoint")
    positions = Positions(0, WirelessConfig(positions={"d1": (3.0, 4.0)}), mobility)
    assert positions.at("d1", -1) == positions.at("d1", 0) == pytest.approx((3.0, 4.0))
    assert positions.at("d1", 1) != positions.at("d1", 0)


def test_rates_follow_the_walkers() -> None:
    config = configured(**PLAIN)
    radio = config.radio.model_copy(update={"mobility": MobilityConfig(kind="random-waypoint", speed_mps=9)})
    links = channel(config.model_copy(update={"radio": radio}), LIVE)
    assert rate_table(links, 0, LIVE) != rate_table(links, 1, LIVE)
    assert rate_table(links, -1, LIVE) == rate_table(links, 0, LIVE)

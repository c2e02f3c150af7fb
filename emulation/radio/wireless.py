"""The radio model: path loss, shadowing, fading, interference and the Shannon rate (docs/radio.md).

R_ij = B_ij log2(1 + p h_ij / (N + i sum_m p h_mj))      bit/s (method 8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from emulation.radio import trace
from emulation.radio.hashed_random import exponential, normal
from emulation.radio.mobility import Point, Positions
from peers.config import DeviceConfig
from transport.shaping.channel import Channel, FixedChannel, LinkQuality

D0_M = 1.0  # reference distance of the path loss; smaller distances count as this one
BOLTZMANN_JpK = 1.380649e-23  # exact in the SI
T0_K = 290.0  # the reference temperature of noise figures: kT0 = -174 dBm/Hz


def channel(config: DeviceConfig, devices: Sequence[str]) -> Channel:
    """The channel of `radio.kind`. devices: all devices of the run, with its newcomers.

    Raises InputError for a trace that cannot be read or that misses a device.
    """
    radio = config.radio
    base = LinkQuality(radio.rate_Bps, round(radio.latency_s * 1e9), round(radio.jitter_s * 1e9), radio.loss)
    if radio.kind == "fixed":
        return FixedChannel(base)
    if radio.kind == "wireless":
        return WirelessChannel(config, base)
    rows = trace.read_rows(radio.trace or "", devices)
    return trace.TraceChannel(rows, base, radio.outage_bytes, _tau_max_s(config))


def rate_table(links: Channel, round_: int, live: Sequence[str]) -> dict[tuple[str, str], LinkQuality]:
    """(src, dst) -> quality of the link, for all links of a round."""
    return {(i, j): links.link(round_, i, j, live) for i in live for j in live if i != j}


def path_loss_dB(distance_m: float, carrier_GHz: float, exponent: float) -> float:
    """PL(d0) + 10 n log10(d / d0), d0 = 1 m, PL(d0) = 32.4 + 20 log10 f_GHz (TR 38.901, table 7.4.1-1)."""
    return 32.4 + 20 * math.log10(carrier_GHz) + 10 * exponent * math.log10(max(distance_m, D0_M) / D0_M)


def noise_mW(bandwidth_Hz: float, noise_figure_dB: float) -> float:
    """N = k T0 B, times the noise figure of the receiver."""
    return 1e3 * BOLTZMANN_JpK * T0_K * bandwidth_Hz * _linear(noise_figure_dB)


def shannon_Bps(sinr: float, bandwidth_Hz: float, max_bps_Hz: float) -> float:
    """Bytes per second: B log2(1 + SINR) / 8, limited by the modulation to max_bps_Hz bit/s per hertz."""
    return bandwidth_Hz * min(math.log1p(sinr) / math.log(2), max_bps_Hz) / 8


class WirelessChannel:
    """Fading is drawn for each round and direction, shadowing once for each pair of devices."""

    def __init__(self, config: DeviceConfig, base: LinkQuality) -> None:
        self._wireless, self._seed, self._base = config.radio.wireless, config.seed, base
        self._outage_bytes, self._tau_max_s = config.radio.outage_bytes, _tau_max_s(config)
        self._positions = Positions(config.seed, self._wireless, config.radio.mobility)
        self._power_mW = _linear(self._wireless.tx_power_dBm)
        self._noise_mW = noise_mW(self._wireless.bandwidth_Hz, self._wireless.noise_figure_dB)
        self._shadowing_dB: dict[tuple[str, str], float] = {}
        self._round = 0  # the round of the two caches below
        self._places: dict[str, Point] = {}
        self._received_mW: dict[tuple[str, str], float] = {}

    @property
    def min_latency_ns(self) -> int:
        return self._base.latency_ns

    def link(self, round_: int, src: str, dst: str, live: Sequence[str]) -> LinkQuality:
        """As `Channel.link`. The transmitter shares its band equally among its possible receivers."""
        receivers = {*live, dst} - {src}
        # fsum rounds once, so that the result does not depend on the order of `live`.
        others_mW = math.fsum(self.received_mW(round_, other, dst) for other in receivers - {dst})
        sinr = self.received_mW(round_, src, dst) / (self._noise_mW + self._wireless.interference * others_mW)
        share_Hz = self._wireless.bandwidth_Hz / (self._wireless.subchannels or len(receivers))
        rate_Bps = shannon_Bps(sinr, share_Hz, self._wireless.max_bps_Hz)
        return self._base.at_rate(rate_Bps, self._outage_bytes, self._tau_max_s)

    def received_mW(self, round_: int, src: str, dst: str) -> float:
        """p h: the power that dst receives from src, over the whole band."""
        if self._round != max(0, round_):
            self._round = max(0, round_)
            self._places.clear()
            self._received_mW.clear()
        found = self._received_mW.get((src, dst))
        if found is None:
            found = self._received_mW[src, dst] = self._power_mW * self._gain(src, dst)
        return found

    def _gain(self, src: str, dst: str) -> float:
        wireless = self._wireless
        distance_m = math.dist(self._place(src), self._place(dst))
        loss_dB = path_loss_dB(distance_m, wireless.carrier_GHz, wireless.exponent)
        slow = _linear(self._shadow_dB(src, dst) - loss_dB)
        return slow * exponential("fade", self._seed, self._round, src, dst) if wireless.fading else slow

    def _shadow_dB(self, src: str, dst: str) -> float:
        first, second = sorted((src, dst))
        found = self._shadowing_dB.get((first, second))
        if found is None:
            found = self._wireless.shadowing_dB * normal("shadow", self._seed, first, second)
            self._shadowing_dB[first, second] = found
        return found

    def _place(self, device: str) -> Point:
        if device not in self._places:
            self._places[device] = self._positions.at(device, self._round)
        return self._places[device]


def _linear(decibel: float) -> float:
    return float(10 ** (decibel / 10))


def _tau_max_s(config: DeviceConfig) -> float:
    return config.radio.tau_max_s or max(1e-3, config.round.deadline_s)

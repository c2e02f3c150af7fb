"""The table `radio` of a scenario: the budget of a device and the properties of links (docs/radio.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peers.section import Section, about

PRICED = "priced"  # the allocator that weighs value against a price (docs/pricing.md)
FIFO = "fifo"  # no allocator: the update that waited longest first, all in radio.codec (docs/exchange.md)
Codec = Literal["fp32", "fp16", "bf16", "int8", "int4"]
MIN_LATENCY_S = 1e-6  # virtual time cannot advance without a latency above 0


class WirelessConfig(Section):
    """kind = "wireless": positions of devices and propagation between them (docs/radio.md)."""

    area_m: Annotated[
        float,
        about("Side of the square. The path loss holds up to 150 m.", source="docs/radio.md", ge=1, le=1e6),
    ] = 100.0
    positions: Annotated[
        dict[str, Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]],
        about("Positions [x, y] by device. The others are drawn from the seed.", unit="m"),
    ] = Field(default_factory=dict)
    carrier_GHz: Annotated[
        float, about("Carrier frequency.", source="TR 36.843 annex A.2.1: device-to-device", ge=0.5, le=100)
    ] = 2.0
    exponent: Annotated[
        float, about("Path loss exponent n.", source="TR 38.901 table 7.4.1-1: InH office NLOS", ge=1, le=10)
    ] = 3.19
    shadowing_dB: Annotated[
        float,
        about(
            "Standard deviation of the shadowing.", source="TR 38.901 table 7.4.1-1, same line", ge=0, le=30
        ),
    ] = 8.29
    fading: Annotated[
        bool, about("Rayleigh fading, redrawn each round.", formula="power gain exponential with mean 1")
    ] = True
    tx_power_dBm: Annotated[
        float, about("Transmit power.", source="TS 36.101 table 6.2.2-1: power class 3", ge=-50, le=60)
    ] = 23.0
    noise_figure_dB: Annotated[
        float, about("Noise figure of a receiver.", source="TR 36.885 annex A: sidelink", ge=0, le=30)
    ] = 9.0
    bandwidth_Hz: Annotated[
        float, about("Width of the band.", source="TS 36.101 table 5.6-1: an LTE channel", ge=1e3, le=1e10)
    ] = 10e6
    subchannels: Annotated[
        int | None,
        about("Parts of the band. Without it: one for each live receiver.", unit="subchannels", ge=1),
    ] = None
    max_bps_Hz: Annotated[
        float,
        about(
            "Most bits per second and hertz.", source="TS 36.213 table 7.2.3-1: best of 64-QAM", gt=0, le=100
        ),
    ] = 5.5547
    interference: Annotated[
        float,
        about(
            "Weight of the interference i. 1: the paper's (7). 0: separate bands.",
            source="method 8",
            ge=0,
            le=1,
        ),
    ] = 1.0


class MobilityConfig(Section):
    """kind = "wireless": how devices move between rounds (docs/radio.md)."""

    kind: Annotated[Literal["none", "random-waypoint"], about("Model of the movement.")] = "none"
    speed_mps: Annotated[
        float, about("Speed; 0.83 is 3 km/h.", source="TR 38.901 table 7.2-2", gt=0, le=50)
    ] = 0.83
    round_s: Annotated[float, about("Time that devices move in a round.", gt=0, le=3600)] = 1.0


class PricingConfig(Section):
    """allocator = "priced": the price of the budget, and how long owners stay (docs/pricing.md)."""

    target: Annotated[
        float, about("The mean cost of a round that the price aims at, divided by C_t.", gt=0, le=1)
    ] = 0.75
    step: Annotated[
        float,
        about(
            "kappa: how fast the price moves. 0: no price.",
            formula="nu <- max(0, nu + kappa (spent / (target C_t) - 1))",
            source="docs/pricing.md",
            ge=0,
            le=10,
        ),
    ] = 0.5
    horizon: Annotated[
        int,
        about(
            "H: a block counts with the probability that its owner stays so long. 0: it counts in full.",
            unit="rounds",
            ge=0,
            le=1_000_000,
        ),
    ] = 10
    prior_rounds: Annotated[
        float,
        about(
            "Before any observation: one departure in so many rounds of a block.",
            formula="mean hazard (1 + departures) / (prior_rounds + block-rounds)",
            source="docs/pricing.md",
            gt=0,
            le=1e9,
        ),
    ] = 100.0


class RadioConfig(Section):
    """The wireless budget and the properties of links (method 8)."""

    budget_bytes: Annotated[
        int,
        about("C_t: cost that a device may send in a round. Unused bytes are lost.", source="method 8", ge=1),
    ] = 4_000_000
    rate_Bps: Annotated[int, about("Rate of a device's radio. The budget applies too.", ge=1)] = 50_000_000
    control_share: Annotated[
        float,
        about("Share of the budget for membership records and manifests.", source="method 8", gt=0, le=0.05),
    ] = 0.05
    codec: Annotated[Codec, about("Codec of every update that `fifo` sends.")] = "fp16"
    allocator: Annotated[
        str, about("Who chooses what is sent: `unweft list allocators`.", source="docs/exchange.md")
    ] = FIFO
    codecs: Annotated[
        tuple[Codec, ...], about("The codecs that an allocator chooses from.", min_length=1)
    ] = ("fp16", "int8", "int4")
    beta_Bps: Annotated[
        int,
        about(
            "beta: bytes that a second on the air costs.", formula="c = b + beta b/R", source="method 8", ge=0
        ),
    ] = 0
    kind: Annotated[
        Literal["fixed", "wireless", "trace"], about("Rates of links. fixed: every link at rate_Bps.")
    ] = "fixed"
    latency_s: Annotated[
        float, about("Latency, one way.", source="TR 25.913: the aim of LTE", ge=MIN_LATENCY_S, le=3600)
    ] = 0.005
    jitter_s: Annotated[
        float, about("Added to the latency.", formula="uniform in [0, jitter_s]", ge=0, le=3600)
    ] = 0.0
    loss: Annotated[float, about("Probability that a message is lost.", ge=0, le=1)] = 0.0
    outage_bytes: Annotated[
        int,
        about(
            "b of the outage rule: one full frame.",
            formula="b/R > tau_max",
            source="method 8",
            ge=1,
            le=1 << 40,
        ),
    ] = 1 << 16
    tau_max_s: Annotated[
        float | None,
        about("tau_max: longest time on the air. Without it: round.deadline_s.", source="method 8", ge=1e-3),
    ] = None
    trace: Annotated[str | None, about('kind = "trace": CSV of round,src,dst,rate_Bps[,latency_s,loss].')] = (
        None
    )
    pricing: PricingConfig = PricingConfig()
    wireless: WirelessConfig = WirelessConfig()
    mobility: MobilityConfig = MobilityConfig()

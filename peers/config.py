"""What one device needs to know to take part in a run: the sections of a scenario that devices read.

`emulation/scenario/schema.py` adds what only the testbed needs (how many devices, events, evaluation).
Units are in the names; each field says its formula or source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FIFO = "fifo"  # no allocator: what waited longest first, all in radio.codec (exchange.py)
Codec = Literal["fp32", "fp16", "bf16", "int8", "int4"]
MIN_LATENCY_S = 1e-6  # virtual time cannot advance without a latency above 0


class Section(BaseModel):
    """A table of a scenario: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which causal language model is adapted, and where its adapters go."""

    name: str = "tiny"  # "tiny" (shipped), a local folder, or a Hugging Face name
    target_modules: tuple[str, ...] | None = None  # None: all linear modules of `tiny`, else PEFT's default
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d+)$")] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1  # torch.set_num_threads: 1 is up to 30x faster on shared cores


class DataConfig(Section):
    """The data each device holds."""

    kind: str = "facts"  # name in the registry of tasks
    path: str | None = None  # jsonl: folder of <device>.jsonl
    persons: Annotated[int, Field(ge=1)] = 10  # facts: fictitious persons per device (method 4)
    batch: Annotated[int, Field(ge=1)] = 32  # examples per local step
    max_length: Annotated[int, Field(ge=4)] = 128  # tokens kept of prompt + response
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of examples that all devices hold (method 4)
    partition: Annotated[str, Field(pattern=r"^(own|iid|by-label|dirichlet:\d+(\.\d+)?)$")] = "own"


class AdapterConfig(Section):
    """Blocks: rank, scale and the number of slots."""

    rank: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] = 8  # r, or one per group
    scale: Annotated[float, Field(gt=0)] = 4.0  # s in dW = s * sum B A^T (method 1)
    max_devices: Annotated[int, Field(ge=1)] = 16  # slots per module; d >= max_devices * r must hold
    bases: Literal["orthogonal", "independent"] = "orthogonal"  # method 2; independent: comparison only


class TrainConfig(Section):
    """Local steps. AdamW; the defaults are the workload of method 4."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    rehearsal: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # share of steps that drop one foreign block (method 4)
    )


class IsolationConfig(Section):
    """How much of the gradient reaches other devices' blocks (method 4)."""

    leak: Annotated[float, Field(ge=0, le=1)] = 0.0


class MixingConfig(Section):
    """How copies of a block are brought together (method 5)."""

    mode: str = "average"  # name in the registry: average | newest | paper-literal
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # average: (1 - gamma) I + gamma W; policies may say
    omega: Annotated[float, Field(gt=0, le=1)] | None = None  # newest: own damping; None: 1/M


class TopologyConfig(Section):
    """Who is whose neighbour: a function of the live members and the seed (networkx)."""

    kind: str = "full"  # full | ring | ring-chords | random-geometric
    chords: Annotated[int, Field(ge=0)] = 1  # ring-chords: extra edges per device
    radius: Annotated[float, Field(gt=0, le=2)] = 0.5  # random-geometric: share of the unit square's side


class RoundConfig(Section):
    """One round: local steps, send, mix what arrived by the deadline."""

    count: Annotated[int, Field(ge=1)] = 100  # rounds of the run
    local_steps: Annotated[int, Field(ge=1)] = 5  # n
    deadline_s: Annotated[float, Field(gt=0)] = 30.0  # from the round's start


class WirelessConfig(Section):
    """kind = "wireless": where devices are and how radio waves reach each other (docs/radio.md)."""

    area_m: Annotated[float, Field(ge=1, le=1e6)] = 100.0  # side of the square; path loss holds up to 150 m
    positions: dict[str, Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]] = {}  # x, y in m
    carrier_GHz: Annotated[float, Field(ge=0.5, le=100)] = 2.0  # TR 36.843 annex A.2.1: device-to-device
    exponent: Annotated[float, Field(ge=1, le=10)] = 3.19  # n; TR 38.901 table 7.4.1-1, InH office NLOS
    shadowing_dB: Annotated[float, Field(ge=0, le=30)] = 8.29  # standard deviation; same line of the table
    fading: bool = True  # Rayleigh: power gain exponential with mean 1, each round anew
    tx_power_dBm: Annotated[float, Field(ge=-50, le=60)] = 23.0  # TS 36.101 table 6.2.2-1, power class 3
    noise_figure_dB: Annotated[float, Field(ge=0, le=30)] = 9.0  # TR 36.885 annex A: sidelink receivers
    bandwidth_Hz: Annotated[float, Field(ge=1e3, le=1e10)] = 10e6  # TS 36.101 table 5.6-1: an LTE channel
    subchannels: Annotated[int, Field(ge=1)] | None = None  # parts of it; None: one for each live receiver
    max_bps_Hz: Annotated[float, Field(gt=0, le=100)] = 5.5547  # TS 36.213 table 7.2.3-1: best of 64-QAM
    interference: Annotated[float, Field(ge=0, le=1)] = 1.0  # i: 1 as the paper's (7), 0 separate bands


class MobilityConfig(Section):
    """kind = "wireless": how devices move between rounds (docs/radio.md)."""

    kind: Literal["none", "random-waypoint"] = "none"
    speed_mps: Annotated[float, Field(gt=0, le=50)] = 0.83  # 3 km/h: TR 38.901 table 7.2-2
    round_s: Annotated[float, Field(gt=0, le=3600)] = 1.0  # how long a round counts, however long it takes


class RadioConfig(Section):
    """The wireless budget and how links behave (method 8)."""

    budget_bytes: Annotated[int, Field(ge=1)] = 4_000_000  # C_t: per device and round, does not carry over
    rate_Bps: Annotated[int, Field(ge=1)] = 50_000_000  # pace of the device's radio beneath the quota
    control_share: Annotated[float, Field(gt=0, le=0.05)] = 0.05  # of C_t, kept for membership and manifests
    codec: Codec = "fp16"  # of all that `fifo` sends
    allocator: str = FIFO  # or a name in averaging/rate_allocation.py (docs/exchange.md)
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = ("fp16", "int8", "int4")  # what it chooses of
    beta_Bps: Annotated[int, Field(ge=0)] = 0  # cost c = b + beta b/R: bytes that a second on the air costs
    kind: Literal["fixed", "wireless", "trace"] = "fixed"  # fixed: every link at rate_Bps
    latency_s: Annotated[float, Field(ge=MIN_LATENCY_S, le=3600)] = 0.005  # one way; TR 25.913: LTE's aim
    jitter_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # added to the latency: uniform in [0, jitter_s]
    loss: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability per message
    outage_bytes: Annotated[int, Field(ge=1, le=1 << 40)] = 1 << 16  # b in b/R > tau_max: one full frame
    tau_max_s: Annotated[float, Field(ge=1e-3)] | None = None  # None: round.deadline_s, later mixes nothing
    trace: str | None = None  # kind = "trace": CSV of round,src,dst,rate_Bps[,latency_s,loss]
    wireless: WirelessConfig = WirelessConfig()
    mobility: MobilityConfig = MobilityConfig()


class CorrectionConfig(Section):
    """What follows every membership event (method 6-7)."""

    policy: str = "uniform"  # name in the registry of coordinator_free/correction/policies.py
    rounds: Annotated[int, Field(ge=0)] = 20  # K
    period: Annotated[int, Field(ge=1)] = (
        5  # a diagnosis every so many rounds, on all devices in the same ones
    )
    delay: Annotated[int, Field(ge=1)] = 2  # rounds from a diagnosis to its decision: reports travel by hops
    sketch: Annotated[int, Field(ge=16, le=4096)] = 256  # numbers a gradient is told in, per group
    labels: Literal["data", "model"] = "data"  # empirical Fisher, or the Fisher itself at a second pass
    refit: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the handover refit (method 4); 0: no refit
    fisher: bool = False  # own steps in the eigenbasis of the Fisher information at the event (fisher.py)
    steps_min: Annotated[int, Field(ge=1)] | None = None  # n_min; None: half of round.local_steps
    steps_max: Annotated[int, Field(ge=1)] | None = None  # n_max; None: twice round.local_steps
    prox_max: Annotated[float, Field(gt=0)] = 1e-3  # lambda_max (method 10)
    c: Annotated[float, Field(gt=0)] = 0.25  # of R_con and R_het; 1/4: R_con exact where curvatures are equal
    gamma_min: Annotated[float, Field(gt=0, le=1)] = 0.4  # (method 10); mixing.gamma where that is less
    period_max: Annotated[int, Field(ge=1)] = 8  # H_g at most
    offset_overhead: bool = True  # a coarser codec saves the bytes of the reports (overhead_offset.py)


class MembershipConfig(Section):
    """Who is here (method 9). Sources: SWIM (Das et al., 2002), Lifeguard (Dadgar et al., 2018); memberlist
    and serf, which implement both."""

    settle_s: Annotated[float, Field(gt=0)] = 60.0  # longest wait for the initial cohort
    probe_s: Annotated[float, Field(gt=0)] = (
        0.5  # protocol period T'; memberlist: 1 s. Suspected after T' e/(e-1) on average (SWIM, eq. 1)
    )
    ack_s: Annotated[float, Field(gt=0)] | None = (
        None  # wait for a direct ack; None: max(probe_s/2, 1.5 RTT), RTT = 2 (latency_s + jitter_s)
    )
    helpers: Annotated[int, Field(ge=0)] = 3  # k: asked to ping when there was no ack; memberlist: 3
    suspicion_alpha: Annotated[float, Field(gt=0)] = 4.0  # low = alpha max(1, log10 N) probe_s; memberlist: 4
    suspicion_beta: Annotated[float, Field(ge=1)] = 6.0  # high = beta low; Lifeguard and memberlist: 6
    confirmations: Annotated[int, Field(ge=0)] = 3  # K: that many more accusers make it low; Lifeguard: 3
    crash_after_s: Annotated[float, Field(gt=0)] | None = None  # low itself; None: by alpha, 2 s for N <= 10
    health_max: Annotated[int, Field(ge=0)] = 8  # S: waits are up to 1 + S times as long; Lifeguard: 8
    links: Annotated[int, Field(ge=1)] = 3  # picked by each beside its neighbours: >= 2 connects (overlay.py)
    idle_s: Annotated[float, Field(gt=0)] = 5.0  # a link that nothing needs is closed: 10 probe_s
    push_pull_s: Annotated[float, Field(gt=0)] = 30.0  # whole tables with a random member; memberlist: 30 s
    grace_s: Annotated[float, Field(ge=0)] = 1.0  # a crashed one's block stays so long: 2 probe_s to refute
    reconnect_every_s: Annotated[float, Field(gt=0)] = 5.0  # a try at one crashed device; serf: 30 s
    reconnect_s: Annotated[float, Field(ge=0)] = 86_400.0  # how long after the verdict; serf: 24 h
    quarantine_s: Annotated[float, Field(ge=0)] = 60.0  # longest one of a slot: 2 push_pull_s
    leave_grace_s: Annotated[float, Field(ge=0)] = 0.0  # after SIGTERM: is it for all? (ending.py)


class ComputeConfig(Section):
    """What local steps cost in virtual time. With a real clock they take what they take."""

    step_s: Annotated[float, Field(gt=0)] = 0.05  # emulated seconds of one local step
    devices: dict[str, Annotated[float, Field(gt=0)]] = {}  # the same, for devices that differ

    def step_ns(self, device: str) -> int:
        return round(self.devices.get(device, self.step_s) * 1_000_000_000)


class KeysConfig(Section):
    """Who may talk (docs/security.md). The keys themselves are never part of a scenario."""

    enabled: bool = True  # CURVE on all links; False: in the clear, to whoever connects
    allow_list: bool = False  # each device has a pair of its own, which its id is bound to


class CheckpointConfig(Section):
    """Whether a run can be gone on with, and from which one it goes on (checkpoint.py)."""

    save: bool = False  # at the end each device writes what it holds to OUT/checkpoint
    resume: str | None = None  # folder of a run with save = true: devices begin with what they held there


class DeviceConfig(Section):
    """All that a device reads. One instance per run, the same on every device."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    clock: Literal["real", "virtual"] = "real"
    on_crash: Literal["forget", "keep"] = "forget"
    plugins: tuple[str, ...] = ()  # modules imported by every device: they add to the registries
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    isolation: IsolationConfig = IsolationConfig()
    mixing: MixingConfig = MixingConfig()
    topology: TopologyConfig = TopologyConfig()
    round: RoundConfig = RoundConfig()
    compute: ComputeConfig = ComputeConfig()
    radio: RadioConfig = RadioConfig()
    correction: CorrectionConfig = CorrectionConfig()
    membership: MembershipConfig = MembershipConfig()
    keys: KeysConfig = KeysConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

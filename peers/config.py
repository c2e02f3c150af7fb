"""The configuration of one device: the sections of a scenario that devices read.

`emulation/scenario/schema.py` adds the sections of the testbed (number of devices, events, evaluation).
Units are in the names. The comment of a field gives its formula or source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FIFO = "fifo"  # no allocator: the update that waited longest first, all in radio.codec (docs/exchange.md)
Codec = Literal["fp32", "fp16", "bf16", "int8", "int4"]
MIN_LATENCY_S = 1e-6  # virtual time cannot advance without a latency above 0


class Section(BaseModel):
    """A table of a scenario. Unknown keys are errors. Values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The causal language model, and the modules that are adapted."""

    name: str = "tiny"  # "tiny" (shipped), "smollm2", a local folder, a GGUF file, or a Hugging Face name
    # None: all linear modules of `tiny`, else PEFT's default
    target_modules: Literal["all-linear"] | tuple[str, ...] | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"  # of the frozen base; blocks are float32 always
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d+)$")] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1  # torch.set_num_threads: 1 is up to 30x faster on shared cores


Column = Literal["prompt", "response", "messages", "label", "device"]


class DataConfig(Section):
    """The data that each device holds."""

    kind: str = "facts"  # name in the registry of tasks
    path: str | None = None  # jsonl: folder of <device>.jsonl; tofu: folder; dataset: file, folder or name
    split: str = "train"  # dataset: the split of a named data set
    columns: dict[Column, str] = {}  # dataset: names of columns, where they are not the names of the fields
    authors: Annotated[int, Field(ge=1)] = 2  # authors, tofu: authors per device
    persons: Annotated[int, Field(ge=1)] = 10  # facts: fictitious persons per device (method 4)
    batch: Annotated[int, Field(ge=1)] = 32  # examples per local step
    max_length: Annotated[int, Field(ge=4)] = 128  # tokens kept of prompt + response
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of examples that all devices hold (method 4)
    partition: Annotated[str, Field(pattern=r"^(own|iid|by-label|dirichlet:\d+(\.\d+)?)$")] = "own"
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the examples that no device trains
    sizes: dict[str, Annotated[int, Field(ge=0)]] = {}  # by device: the most examples that it gets
    empty: Literal["error", "listen"] = "error"  # a device without examples: refused, or it trains nothing
    # partitions but `own`: the devices among which the pool is dealt; (): all devices of the scenario
    devices: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], ...] = ()


class AdapterConfig(Section):
    """The blocks: rank, scale and number of slots."""

    rank: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] = 8  # r, or r by group
    scale: Annotated[float, Field(gt=0)] = 4.0  # s in dW = s * sum B A^T (method 1)
    max_devices: Annotated[int, Field(ge=1)] = 16  # slots per module; d >= max_devices * r must hold
    bases: Literal["orthogonal", "independent"] = "orthogonal"  # method 2; independent: comparison only


class TrainConfig(Section):
    """Local steps of AdamW. The defaults are the workload of method 4."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    rehearsal: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # share of steps without one foreign block (method 4)
    )
    micro_batch: Annotated[int, Field(ge=1)] | None = None  # examples in one pass; gradients of a step add up
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of lr over round.count: down to 0
    warmup_rounds: Annotated[int, Field(ge=0)] = 0  # lr rises from 0 in the first rounds of each own block
    fisher_every: Annotated[int, Field(ge=0)] = (
        0  # all steps as in correction.fisher, measured so often; 0: no
    )


class IsolationConfig(Section):
    """How much of the gradient reaches other devices' blocks (method 4)."""

    leak: Annotated[float, Field(ge=0, le=1)] = 0.0


class MixingConfig(Section):
    """How a device mixes the copies of a block (method 5)."""

    mode: str = "average"  # name in the registry: average | newest | paper-literal
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # average: (1 - gamma) I + gamma W; a policy may set it
    omega: Annotated[float, Field(gt=0, le=1)] | None = None  # newest: damping of the own move; None: 1/M
    # average: a foreign copy is sent if its receiver's estimate is off by more than this share of its norm;
    # 0: in every round (docs/exchange.md)
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.02


class TopologyConfig(Section):
    """The learning graph: a function of the live members and the seed (networkx)."""

    kind: str = "full"  # full | ring | ring-chords | random-geometric
    chords: Annotated[int, Field(ge=0)] = 1  # ring-chords: extra edges per device
    radius: Annotated[float, Field(gt=0, le=2)] = 0.5  # random-geometric: of the unit square, side 1


class RoundConfig(Section):
    """One round: local steps, send, mix the updates that arrived by the deadline."""

    count: Annotated[int, Field(ge=1)] = 100  # rounds of the run
    local_steps: Annotated[int, Field(ge=1)] = 5  # n
    deadline_s: Annotated[float, Field(gt=0)] = 30.0  # after the start of the round


class WirelessConfig(Section):
    """kind = "wireless": positions of devices and propagation between them (docs/radio.md)."""

    area_m: Annotated[float, Field(ge=1, le=1e6)] = 100.0  # side of the square; path loss holds up to 150 m
    positions: dict[str, Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]] = {}  # x, y in m
    carrier_GHz: Annotated[float, Field(ge=0.5, le=100)] = 2.0  # TR 36.843 annex A.2.1: device-to-device
    exponent: Annotated[float, Field(ge=1, le=10)] = 3.19  # n; TR 38.901 table 7.4.1-1, InH office NLOS
    shadowing_dB: Annotated[float, Field(ge=0, le=30)] = 8.29  # standard deviation; same line of the table
    fading: bool = True  # Rayleigh: exponential power gain with mean 1, redrawn each round
    tx_power_dBm: Annotated[float, Field(ge=-50, le=60)] = 23.0  # TS 36.101 table 6.2.2-1, power class 3
    noise_figure_dB: Annotated[float, Field(ge=0, le=30)] = 9.0  # TR 36.885 annex A: sidelink receivers
    bandwidth_Hz: Annotated[float, Field(ge=1e3, le=1e10)] = 10e6  # TS 36.101 table 5.6-1: an LTE channel
    subchannels: Annotated[int, Field(ge=1)] | None = None  # of the band; None: one for each live receiver
    max_bps_Hz: Annotated[float, Field(gt=0, le=100)] = 5.5547  # TS 36.213 table 7.2.3-1: best of 64-QAM
    interference: Annotated[float, Field(ge=0, le=1)] = 1.0  # i: 1: the paper's (7); 0: separate bands


class MobilityConfig(Section):
    """kind = "wireless": how devices move between rounds (docs/radio.md)."""

    kind: Literal["none", "random-waypoint"] = "none"
    speed_mps: Annotated[float, Field(gt=0, le=50)] = 0.83  # 3 km/h: TR 38.901 table 7.2-2
    round_s: Annotated[float, Field(gt=0, le=3600)] = 1.0  # time that devices move per round


class RadioConfig(Section):
    """The wireless budget and the properties of links (method 8)."""

    budget_bytes: Annotated[int, Field(ge=1)] = 4_000_000  # C_t: per device and round; unused bytes are lost
    rate_Bps: Annotated[int, Field(ge=1)] = 50_000_000  # rate of the device's radio; the quota applies too
    control_share: Annotated[float, Field(gt=0, le=0.05)] = 0.05  # of C_t; for membership and manifests
    codec: Codec = "fp16"  # of every update that `fifo` sends
    allocator: str = FIFO  # or a name in averaging/rate_allocation.py (docs/exchange.md)
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = ("fp16", "int8", "int4")  # of the allocator
    beta_Bps: Annotated[int, Field(ge=0)] = 0  # cost c = b + beta b/R: bytes per second on the air
    kind: Literal["fixed", "wireless", "trace"] = "fixed"  # fixed: every link at rate_Bps
    latency_s: Annotated[float, Field(ge=MIN_LATENCY_S, le=3600)] = 0.005  # one way; TR 25.913: LTE's aim
    jitter_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # added to the latency: uniform in [0, jitter_s]
    loss: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability per message
    outage_bytes: Annotated[int, Field(ge=1, le=1 << 40)] = 1 << 16  # b in b/R > tau_max: one full frame
    tau_max_s: Annotated[float, Field(ge=1e-3)] | None = None  # None: round.deadline_s
    trace: str | None = None  # kind = "trace": CSV of round,src,dst,rate_Bps[,latency_s,loss]
    wireless: WirelessConfig = WirelessConfig()
    mobility: MobilityConfig = MobilityConfig()


class CorrectionConfig(Section):
    """The correction after each membership event (methods 6 and 7)."""

    policy: str = "uniform"  # name in the registry of coordinator_free/correction/policies.py
    rounds: Annotated[int, Field(ge=0)] = 20  # K
    period: Annotated[int, Field(ge=1)] = 5  # rounds between two diagnoses, the same rounds on all devices
    delay: Annotated[int, Field(ge=1)] = 2  # rounds from diagnosis to decision; reports travel several hops
    sketch: Annotated[int, Field(ge=16, le=4096)] = 256  # numbers in the sketch of a gradient, per group
    labels: Literal["data", "model"] = "data"  # empirical Fisher; "model": true Fisher
    refit: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the handover refit (method 4); 0: no refit
    fisher: bool = False  # own steps in the eigenbasis of the Fisher information at the event (kfac.py)
    steps_min: Annotated[int, Field(ge=1)] | None = None  # n_min; None: half of round.local_steps
    steps_max: Annotated[int, Field(ge=1)] | None = None  # n_max; None: twice round.local_steps
    prox_max: Annotated[float, Field(gt=0)] = 1e-3  # lambda_max (method 10)
    c: Annotated[float, Field(gt=0)] = 0.25  # of R_con and R_het; 1/4: exact R_con for equal curvatures
    gamma_min: Annotated[float, Field(gt=0, le=1)] = 0.4  # (method 10); mixing.gamma if that is smaller
    period_max: Annotated[int, Field(ge=1)] = 8  # largest H_g
    offset_overhead: bool = True  # a coarser codec saves the bytes of the reports (overhead_offset.py)


class MembershipConfig(Section):
    """Membership (method 9).

    Sources: SWIM (Das et al., 2002), Lifeguard (Dadgar et al., 2018); memberlist and serf implement both.
    """

    settle_s: Annotated[float, Field(gt=0)] = 60.0  # longest wait for the initial cohort
    probe_s: Annotated[float, Field(gt=0)] = (
        0.5  # protocol period T'; memberlist: 1 s. Mean time to a suspicion: T' e/(e-1) (SWIM, eq. 1)
    )
    ack_s: Annotated[float, Field(gt=0)] | None = (
        None  # wait for a direct ack; None: max(probe_s/2, 1.5 RTT), RTT = 2 (latency_s + jitter_s)
    )
    helpers: Annotated[int, Field(ge=0)] = 3  # k: members that ping if an ack is missing; memberlist: 3
    suspicion_alpha: Annotated[float, Field(gt=0)] = 4.0  # low = alpha max(1, log10 N) probe_s; memberlist: 4
    suspicion_beta: Annotated[float, Field(ge=1)] = 6.0  # high = beta low; Lifeguard and memberlist: 6
    confirmations: Annotated[int, Field(ge=0)] = 3  # K: further accusers until the wait is low; Lifeguard: 3
    crash_after_s: Annotated[float, Field(gt=0)] | None = None  # low; None: from alpha, 2 s for N <= 10
    health_max: Annotated[int, Field(ge=0)] = 8  # S: timeouts grow up to 1 + S times; Lifeguard: 8
    links: Annotated[int, Field(ge=1)] = 3  # picked by each beside its neighbours; >= 2 connects (overlay.py)
    idle_s: Annotated[float, Field(gt=0)] = 5.0  # until an unused link is closed: 10 probe_s
    push_pull_s: Annotated[float, Field(gt=0)] = 30.0  # period of whole-table exchanges; memberlist: 30 s
    grace_s: Annotated[float, Field(ge=0)] = 1.0  # until a crashed block is dropped: 2 probe_s to refute
    reconnect_every_s: Annotated[float, Field(gt=0)] = (
        5.0  # between attempts to reach a crashed device; serf: 30 s
    )
    reconnect_s: Annotated[float, Field(ge=0)] = 86_400.0  # from the verdict to the last attempt; serf: 24 h
    quarantine_s: Annotated[float, Field(ge=0)] = 60.0  # longest quarantine of a slot: 2 push_pull_s
    leave_grace_s: Annotated[float, Field(ge=0)] = (
        0.0  # after SIGTERM: time for a SIGTERM to all (departure.py)
    )


class ComputeConfig(Section):
    """Duration of local steps in virtual time. A real clock measures them instead."""

    step_s: Annotated[float, Field(gt=0)] = 0.05  # emulated seconds of one local step
    devices: dict[str, Annotated[float, Field(gt=0)]] = {}  # the same by device, for devices that differ

    def step_ns(self, device: str) -> int:
        """Virtual nanoseconds of one local step of `device`."""
        return round(self.devices.get(device, self.step_s) * 1_000_000_000)


class KeysConfig(Section):
    """Encryption and admission (docs/security.md). The keys themselves are never part of a scenario."""

    enabled: bool = True  # CURVE on all links; False: plain text, open to every process that connects
    allow_list: bool = False  # each device has its own key pair, bound to its id


class CheckpointConfig(Section):
    """Whether a run saves a checkpoint, and the checkpoint that it begins with (storage/checkpoint.py)."""

    save: bool = False  # at the end each device writes its blocks to OUT/checkpoint
    resume: str | None = None  # folder of a run with save = true: devices begin with its blocks


class DeviceConfig(Section):
    """Everything that a device reads. One instance per run, the same on every device."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    clock: Literal["real", "virtual"] = "real"
    on_crash: Literal["forget", "keep"] = "forget"
    plugins: tuple[str, ...] = ()  # modules that every device imports; they add to the registries
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

"""What one device needs to know to take part in a run: the sections of a scenario that devices read.

`emulation/scenario.py` adds what only the testbed needs (how many devices, events, evaluation).
Units are in the names; each field says its formula or source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # average: (1 - gamma) I + gamma W
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


class RadioConfig(Section):
    """The wireless budget (method 8)."""

    budget_bytes: Annotated[int, Field(ge=1)] = 4_000_000  # C_t: per device and round, does not carry over
    rate_Bps: Annotated[int, Field(ge=1)] = 50_000_000  # pace of the device's radio beneath the quota
    control_share: Annotated[float, Field(gt=0, le=0.05)] = 0.05  # of C_t, kept for membership and manifests
    codec: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp16"


class CorrectionConfig(Section):
    """What follows every membership event (method 6-7)."""

    policy: str = "uniform"
    rounds: Annotated[int, Field(ge=0)] = 20  # K


class MembershipConfig(Section):
    """Who is here (method 9)."""

    settle_s: Annotated[float, Field(gt=0)] = 60.0  # longest wait for the initial cohort
    heartbeat_s: Annotated[float, Field(gt=0)] = 0.5
    crash_after_s: Annotated[float, Field(gt=0)] = 5.0  # silence after which a neighbour counts as crashed


class KeysConfig(Section):
    """Who may talk (docs/security.md). The keys themselves are never part of a scenario."""

    enabled: bool = True  # CURVE on all links; False: in the clear, to whoever connects
    allow_list: bool = False  # each device has a pair of its own, which its id is bound to


class DeviceConfig(Section):
    """All that a device reads. One instance per run, the same on every device."""

    seed: int = 0
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
    radio: RadioConfig = RadioConfig()
    correction: CorrectionConfig = CorrectionConfig()
    membership: MembershipConfig = MembershipConfig()
    keys: KeysConfig = KeysConfig()

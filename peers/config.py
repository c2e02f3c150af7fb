"""The configuration of one device: the sections of a scenario that devices read.

`emulation/scenario/schema.py` adds the sections of the testbed (number of devices, events, evaluation).
Units are in the names. `unweft schema` prints what `about` says of each key (docs/scenario-keys.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from coordinator_free.averaging.topology import Shape
from peers.adapter_config import AdapterConfig
from peers.correction_config import CorrectionConfig
from peers.privacy_config import PrivacyConfig
from peers.radio_config import RadioConfig
from peers.section import Section, about


class ModelConfig(Section):
    """The base model (a language model or a classifier of images), and the modules that are adapted."""

    name: Annotated[
        str,
        about(
            '"tiny" or "small-resnet" (shipped), "smollm2", a folder, a GGUF file, or a Hugging Face name.'
        ),
    ] = "tiny"
    target_modules: Annotated[
        Literal["all-linear"] | tuple[str, ...] | None,
        about(
            "The adapted modules. Without it: all linear modules of `tiny`, all modules of a classifier of"
            " images, else PEFT's default."
        ),
    ] = None
    dtype: Annotated[Literal["fp32", "bf16"], about("Of the frozen base. Blocks are float32 always.")] = (
        "fp32"
    )
    device: Annotated[
        str, about("Where the model computes. auto: a GPU if there is one.", pattern=r"^(auto|cpu|cuda:\d+)$")
    ] = "auto"
    threads: Annotated[
        int,
        about(
            "torch.set_num_threads of a device. 1 is up to 30x faster on shared cores.", unit="threads", ge=1
        ),
    ] = 1


Column = Literal["prompt", "response", "messages", "label", "device"]


class DataConfig(Section):
    """The data that each device holds."""

    kind: Annotated[str, about("Name of a task: `unweft list tasks`.")] = "facts"
    path: Annotated[
        str | None,
        about(
            "jsonl: the folder with a file DEVICE.jsonl for each device. tofu: the folder of its files."
            " dataset: a file, a folder or a name. images: the folder of image files; without it:"
            " scikit-learn's digits."
        ),
    ] = None
    subset: Annotated[
        str | None, about("dataset: the configuration of a named data set, such as main of openai/gsm8k.")
    ] = None
    split: Annotated[str, about("dataset: the split of a named data set.")] = "train"
    columns: Annotated[
        dict[Column, str], about("dataset: names of columns that are not the names of the fields.")
    ] = {}  # noqa: RUF012 - pydantic copies it
    authors: Annotated[int, about("authors, tofu: authors of each device.", unit="authors", ge=1)] = 2
    images: Annotated[int, about("images: training images of each device.", unit="images", ge=1)] = 100
    persons: Annotated[
        int, about("facts: fictitious persons of each device.", unit="persons", source="method 4", ge=1)
    ] = 10
    batch: Annotated[int, about("Examples in a local step.", unit="examples", ge=1)] = 32
    max_length: Annotated[int, about("Tokens kept of prompt and response.", unit="tokens", ge=4)] = 128
    overlap: Annotated[
        float, about("Share of examples that all devices hold.", source="method 4", ge=0, le=1)
    ] = 0.0
    partition: Annotated[
        str,
        about(
            "How the examples are dealt to the devices. own: each device has its own.",
            source="method 4",
            pattern=r"^(own|iid|by-label|dirichlet:\d+(\.\d+)?)$",
        ),
    ] = "own"
    held_out: Annotated[float, about("Share of the examples that no device trains.", ge=0, lt=1)] = 0.0
    sizes: Annotated[
        dict[str, Annotated[int, Field(ge=0)]],
        about("By device: the most examples that it gets.", unit="examples"),
    ] = {}  # noqa: RUF012 - pydantic copies it
    empty: Annotated[
        Literal["error", "listen"],
        about("A device without examples: it is refused, or it listens and trains nothing."),
    ] = "error"
    devices: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], ...],
        about(
            "Partitions but own: the devices among which the pool is dealt. Empty: all devices of the run."
        ),
    ] = ()


class TrainConfig(Section):
    """Local steps of AdamW. The defaults are the workload of method 4."""

    lr: Annotated[float, about("Learning rate of AdamW.", source="method 4", gt=0)] = 5e-3
    weight_decay: Annotated[float, about("Weight decay of AdamW.", ge=0)] = 0.0
    rehearsal: Annotated[
        float, about("Share of local steps without one foreign block.", source="method 4", ge=0, le=1)
    ] = 0.0
    micro_batch: Annotated[
        int | None,
        about("Examples in one pass. The gradients of a step add up.", unit="examples", ge=1),
    ] = None
    checkpointing: Annotated[
        bool, about("Compute activations again in the backward pass: less memory, more time.")
    ] = False
    logit_adjustment: Annotated[
        float,
        about(
            "Classifiers of images: the loss adds this factor times log(share of the class in the own data)"
            " to the logits. 0: nothing.",
            source="Menon et al. (2021)",
            ge=0,
            le=10,
        ),
    ] = 0.0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], about("Of lr over round.count, down to 0.")
    ] = "constant"
    warmup_rounds: Annotated[
        int, about("lr rises from 0 in the first rounds of each own block.", unit="rounds", ge=0)
    ] = 0
    fisher_every: Annotated[
        int,
        about(
            "All steps use the Fisher basis, which is measured again after so many rounds; 0: no step.",
            unit="rounds",
            ge=0,
        ),
    ] = 0


class IsolationConfig(Section):
    """Whether other devices' blocks are trained too (method 4)."""

    leak: Annotated[
        float,
        about("Share of the gradient that reaches other devices' blocks.", source="method 4", ge=0, le=1),
    ] = 0.0


class MixingConfig(Section):
    """How a device mixes the copies of a block (method 5)."""

    mode: Annotated[str, about("Name of a mixing mode: `unweft list mixing`.", source="method 5")] = "average"
    gamma: Annotated[
        float,
        about(
            "average: strength of mixing. A correction policy may set it.",
            formula="(1 - gamma) I + gamma W",
            source="method 5",
            gt=0,
            le=1,
        ),
    ] = 1.0
    omega: Annotated[
        float | None,
        about(
            "newest: damping of the own move. Without it: 1/M for M devices.",
            formula="B <- B_before + omega (B_after - B_before)",
            source="method 5",
            gt=0,
            le=1,
        ),
    ] = None
    tolerance: Annotated[
        float,
        about(
            "average: a foreign copy is sent if the receiver's estimate is off by more than this share of its"
            " norm. 0, or with an allocator: it may be sent in every round.",
            source="docs/exchange.md",
            ge=0,
            lt=1,
        ),
    ] = 0.02


class TopologyConfig(Section):
    """The learning graph: a function of the live members and the seed (networkx)."""

    kind: Annotated[str, about("Name of a topology: `unweft list topologies`.")] = "full"
    chords: Annotated[int, about("ring-chords: extra edges of each device.", unit="edges", ge=0)] = 1
    radius: Annotated[
        float, about("random-geometric: reach in a square with sides of length 1.", gt=0, le=2)
    ] = 0.5
    degree: Annotated[
        int,
        about(
            "regular: neighbours of a device at most, an even number.", unit="devices", ge=2, multiple_of=2
        ),
    ] = 4

    def shape(self, seed: int) -> Shape:
        """The parameters with which `coordinator_free.averaging.topology.build` builds the graph."""
        return Shape(self.kind, self.chords, self.radius, seed, self.degree)


class RoundConfig(Section):
    """One round: local steps, send, mix the updates that arrived by the deadline."""

    count: Annotated[int, about("Rounds of the run.", unit="rounds", ge=1)] = 100
    local_steps: Annotated[int, about("Local steps n in a round.", unit="steps", source="method 4", ge=1)] = 5
    deadline_s: Annotated[
        float, about("Longest wait for neighbours, from the start of the round.", source="method 5", gt=0)
    ] = 30.0


class MembershipConfig(Section):
    """Membership (method 9).

    Sources: SWIM (Das et al., 2002), Lifeguard (Dadgar et al., 2018); memberlist and serf implement both.
    """

    settle_s: Annotated[float, about("Longest wait for the initial devices.", gt=0)] = 60.0
    probe_s: Annotated[
        float,
        about(
            "Protocol period T'. memberlist: 1 s.",
            formula="mean time to a suspicion: T' e/(e-1)",
            source="SWIM, eq. 1",
            gt=0,
        ),
    ] = 0.5
    ack_s: Annotated[
        float | None,
        about(
            "Wait for a direct ack. Without it: the formula.",
            formula="max(probe_s/2, 1.5 RTT), RTT = 2 (latency_s + jitter_s)",
            source="SWIM",
            gt=0,
        ),
    ] = None
    helpers: Annotated[
        int, about("k: members that ping if an ack is missing.", unit="devices", source="memberlist: 3", ge=0)
    ] = 3
    suspicion_alpha: Annotated[
        float,
        about(
            "Least wait of a suspicion.",
            formula="low = alpha max(1, log10 N) probe_s",
            source="memberlist: 4",
            gt=0,
        ),
    ] = 4.0
    suspicion_beta: Annotated[
        float,
        about(
            "Longest wait of a suspicion.", formula="high = beta low", source="Lifeguard, memberlist: 6", ge=1
        ),
    ] = 6.0
    confirmations: Annotated[
        int,
        about("K: further accusers until the wait is low.", unit="devices", source="Lifeguard: 3", ge=0),
    ] = 3
    crash_after_s: Annotated[
        float | None,
        about("low. Without it: from suspicion_alpha, 2 s for N <= 10.", source="method 9", gt=0),
    ] = None
    health_max: Annotated[int, about("S: timeouts grow up to 1 + S times.", source="Lifeguard: 8", ge=0)] = 8
    links: Annotated[
        int,
        about(
            "Partners that each device picks beside its neighbours. 2 or more connect all devices.",
            unit="devices",
            source="coordinator_free/membership/overlay.py",
            ge=1,
        ),
    ] = 3
    idle_s: Annotated[float, about("Time until an unused link is closed.", formula="10 probe_s", gt=0)] = 5.0
    push_pull_s: Annotated[
        float, about("Period of exchanges of the whole table.", source="memberlist: 30 s", gt=0)
    ] = 30.0
    grace_s: Annotated[
        float,
        about("Time until the block of a crashed device is dropped.", formula="2 probe_s to refute", ge=0),
    ] = 1.0
    reconnect_every_s: Annotated[
        float, about("Period of the attempts to reach a crashed device.", source="serf: 30 s", gt=0)
    ] = 5.0
    reconnect_s: Annotated[
        float, about("Time from the verdict to the last attempt.", source="serf: 24 h", ge=0)
    ] = 86_400.0
    quarantine_s: Annotated[float, about("Longest quarantine of a slot.", formula="2 push_pull_s", ge=0)] = (
        60.0
    )
    leave_grace_s: Annotated[
        float,
        about(
            "After SIGTERM: the time in which a SIGTERM to all devices ends the run.",
            source="peers/protocol/departure.py",
            ge=0,
        ),
    ] = 0.0
    receipts: Annotated[
        bool,
        about(
            "Each device writes a chain of signed receipts of its deletions, for `unweft verify`.",
            source="docs/receipts.md",
        ),
    ] = False


class ComputeConfig(Section):
    """Duration of local steps in virtual time. A real clock measures them instead."""

    step_s: Annotated[float, about("Emulated time of one local step.", gt=0)] = 0.05
    devices: Annotated[
        dict[str, Annotated[float, Field(gt=0)]],
        about("The same by device, for devices that differ.", unit="s"),
    ] = Field(default_factory=dict)

    def step_ns(self, device: str) -> int:
        """Virtual nanoseconds of one local step of `device`."""
        return round(self.devices.get(device, self.step_s) * 1_000_000_000)


class KeysConfig(Section):
    """Encryption and admission (docs/security.md). The keys themselves are never part of a scenario."""

    enabled: Annotated[bool, about("Links admit holders of the network key only. false: anyone.")] = True
    allow_list: Annotated[bool, about("Each device has its own key pair, bound to its id.")] = False


class CheckpointConfig(Section):
    """Whether a run saves a checkpoint, and the checkpoint that it begins with (storage/checkpoint.py)."""

    save: Annotated[bool, about("At the end each device writes its blocks to OUT/checkpoint.")] = False
    every: Annotated[
        int, about("Write them every so many rounds too. 0: at the end only.", unit="rounds", ge=0)
    ] = 0
    resume: Annotated[
        str | None,
        about(
            "The folder of a run with checkpoints: the devices of a new run begin with its blocks. An "
            "interrupted run goes on with `unweft run --resume`.",
            source="docs/checkpoints.md",
        ),
    ] = None

    @property
    def writes(self) -> bool:
        """Whether the devices of the run write checkpoints."""
        return self.save or self.every > 0


class DeviceConfig(Section):
    """Everything that a device reads. One instance per run, the same on every device."""

    seed: Annotated[int, about("Seed of everything that is drawn.", ge=0, lt=1 << 63)] = 0
    clock: Annotated[Literal["real", "virtual"], about("The clock of the run.", source="docs/clocks.md")] = (
        "real"
    )
    on_crash: Annotated[
        Literal["forget", "keep"], about("What happens to the block of a crashed device.", source="method 9")
    ] = "forget"
    plugins: Annotated[
        tuple[str, ...], about("Modules that every device imports. They add to the registries.")
    ] = ()
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
    privacy: PrivacyConfig = PrivacyConfig()
    membership: MembershipConfig = MembershipConfig()
    keys: KeysConfig = KeysConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

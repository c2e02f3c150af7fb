"""The protocol of a task: examples for each device's shard."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

from peers.config import DataConfig, DeviceConfig
from peers.registry import Registry


class Message(NamedTuple):
    """One turn of a chat. role: system, user or assistant, as chat templates name them."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn. Only tokens of the response have a loss.

    ends: an end-of-text token follows the response, and is learnt too. messages: the turns of a chat before
    the response; the chat template of the model makes the prompt from them (chat.py). paraphrase: the
    response in other words. perturbed: wrong responses of the same form. Both are for metrics only. label:
    the class of the example, for partitions by label.
    """

    prompt: str
    response: str
    ends: bool = False
    messages: tuple[Message, ...] = ()
    paraphrase: str = ""
    perturbed: tuple[str, ...] = ()
    label: str = ""


def question(
    text: str, answer: str, paraphrase: str = "", perturbed: tuple[str, ...] = (), label: str = ""
) -> Example:
    """A question to a model, as the only turn of a chat, and its answer. The fields are those of Example."""
    return Example(text, answer, True, (Message("user", text),), paraphrase, perturbed, label)


@dataclass(frozen=True)
class ImageExample:
    """An image and its class. pixels: bytes of a uint8 array of `shape`, (channels, height, width)."""

    pixels: bytes
    shape: tuple[int, int, int]
    label: int


AnyExample = Example | ImageExample  # the examples of one task are all of one of these kinds


def texts(examples: Sequence[AnyExample]) -> list[Example]:
    """Those of the examples that are texts: all or none."""
    return [example for example in examples if isinstance(example, Example)]


class Task(Protocol):
    """Data by shard. A shard has the id of the device that owns it. Equal calls return equal data."""

    def train_examples(self, shard: str) -> Sequence[AnyExample]:
        """The training examples of a shard; never empty. Raises InputError if the shard has no data."""
        ...

    def other_wording(self, shard: str) -> Sequence[AnyExample]:
        """The same facts in a wording, or images of the same classes, that no device trains; may be empty."""
        ...

    def control_examples(self) -> Sequence[AnyExample]:
        """Facts of the same kind that no device trains; may be empty."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A task that reads files. Some files, or rows of a file, may belong to no device."""

    def unused(self, shards: Sequence[str]) -> list[str]:
        """Files, or rows of a file, whose examples none of these shards trains on: a text for each."""
        ...


@runtime_checkable
class HasUtility(Protocol):
    """A task with questions that the base model may know without training."""

    def utility_examples(self) -> dict[str, list[Example]]:
        """By the name of the set, as the metric `model_utility` names it."""
        ...


TaskFactory = Callable[[DataConfig, int], Task]  # (data section, seed)

tasks: Registry[TaskFactory] = Registry("data.kind")


def make_task(config: DeviceConfig) -> Task:
    """The task of a run. Raises InputError for an unknown kind, or settings that do not apply to it."""
    return tasks.get(config.data.kind)(config.data, config.seed)


def shard_index(shard: str, count: int) -> int:
    """The number of a shard: the integer at the end of its name ("d3", "edge-17").

    A name without an integer is hashed (SHA-256) into the upper half of range(count), away from d0, d1, …
    Two names can get the same number, and then the same data: two hashed names, or "a-1" and "b-1". An
    integer at the end is returned unchanged, even if it is `count` or more; the caller checks it.
    """
    digits = re.search(r"[0-9]+\Z", shard)
    if digits:
        return int(digits.group())
    lower = count // 2
    return lower + int.from_bytes(sha256(shard.encode()).digest()[:8], "big") % max(1, count - lower)

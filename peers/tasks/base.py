"""What a task is: examples for each device's shard."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from peers.config import DataConfig
from peers.registry import Registry


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn. The loss counts on the response's tokens only.

    `ends`: the text stops after the response, which is to be learnt too (an end-of-text token is appended).
    """

    prompt: str
    response: str
    ends: bool = False


class Task(Protocol):
    """Data by shard; a shard is named by the device id that owns it. Equal calls give equal answers."""

    def train_examples(self, shard: str) -> list[Example]:
        """What the device trains on; never empty. Raises InputError if the shard has no data."""
        ...

    def other_wording(self, shard: str) -> list[Example]:
        """The same facts in words that are never trained; may be empty."""
        ...

    def control_examples(self) -> list[Example]:
        """Facts of the same kind that nobody ever trains; may be empty."""
        ...


TaskFactory = Callable[[DataConfig, int], Task]  # (data section, seed)

tasks: Registry[TaskFactory] = Registry("data.kind")


def shard_index(shard: str, count: int) -> int:
    """The number of a shard: the integer at the end of its name ("d3", "edge-17").

    A name without one is hashed (SHA-256) into the upper half of range(count), away from d0, d1, …; two
    such names, or "a-1" and "b-1", can get the same number and then the same data. An integer at the end
    is returned as it is, even if it is count or more: the caller says what that means.
    """
    digits = re.search(r"[0-9]+\Z", shard)
    if digits:
        return int(digits.group())
    lower = count // 2
    return lower + int.from_bytes(sha256(shard.encode()).digest()[:8], "big") % max(1, count - lower)

"""The task `jsonl`: a folder of `<device>.jsonl`, with a prompt and a response or a chat in each line.

A line is {"prompt": "…", "response": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}. The last
message is the assistant's: the response. Each may have a "label", for partitions by label.
"""

from __future__ import annotations

import json
import logging
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count, takewhile
from pathlib import Path

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example, Message, tasks
from peers.tasks.shards import OWN, Shards
from peers.tasks.unused_keys import OF_NAMED, check_unused

log = logging.getLogger("unweft")
ALLOWED_LINE = 'allowed: one object {"prompt": string, "response": string} or {"messages": [...]}'
ROLES = ("system", "user", "assistant")


def read_examples(path: Path) -> list[Example]:
    """All examples of one file. A byte order mark at its begin and blank lines are skipped.

    Raises InputError with file and line of the first mistake.
    """
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except FileNotFoundError:
        raise InputError(
            f"data.path: {path} is missing; expected is one <device>.jsonl for each device"
        ) from None
    except OSError as error:
        raise InputError(f"data.path: {path} cannot be read ({error.strerror})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(f"data.path: {path} is empty; {ALLOWED_LINE} a line, at least one")
    return [_parse(line, f"{path}:{number}") for number, line in numbered]


def _parse(line: bytes, where: str) -> Example:
    try:
        # JSON can contain half a surrogate pair, which no tokenizer accepts. A second encoding finds it.
        record = json.loads(line.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise InputError(f"{where}: is not UTF-8 text; {ALLOWED_LINE}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON ({error}); {ALLOWED_LINE}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: is no JSON object; {ALLOWED_LINE}")
    return _example(record, where)


def _example(record: dict[str, object], where: str) -> Example:
    label = record.pop("label", "")
    if not isinstance(label, str | int):
        raise InputError(f"{where}: 'label' is {type(label).__name__}; allowed: a string or a whole number")
    made = chat_example(record, where) if "messages" in record else _pair(record, where)
    if not made.response.strip():
        raise InputError(f"{where}: 'response' is empty: it has nothing to learn; {ALLOWED_LINE}")
    return replace(made, label=str(label))


def _pair(record: dict[str, object], where: str) -> Example:
    wrong = sorted(record.keys() ^ {"prompt", "response"})
    if wrong:
        kind = "unknown key" if wrong[0] in record else "missing key"
        raise InputError(f"{where}: {kind} {wrong[0]!r}; {ALLOWED_LINE}")
    prompt, response = record["prompt"], record["response"]
    if not isinstance(prompt, str) or not isinstance(response, str):
        key = "response" if isinstance(prompt, str) else "prompt"
        raise InputError(f"{where}: {key!r} is {type(record[key]).__name__}, not a string; {ALLOWED_LINE}")
    return Example(prompt, response, ends=True)


def chat_example(record: Mapping[str, object], where: str) -> Example:
    """A chat as an example: its last message is the response. Raises InputError with `where`."""
    turns = record["messages"]
    messages = [_message(turn, where) for turn in turns] if isinstance(turns, list) else []
    if len(record) > 1 or len(messages) < 2 or messages[-1].role != "assistant":
        raise InputError(
            f'{where}: is no chat with an answer; allowed: {{"messages": [...]}} with two messages or more, '
            "of which the last has the role assistant"
        )
    *before, answer = messages
    return Example(before[-1].content, answer.content, ends=True, messages=tuple(before))


def _message(turn: object, where: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        allowed = f'{{"role": one of {", ".join(ROLES)}, "content": string}}'
        raise InputError(f"{where}: a message is not of the expected form; allowed: {allowed}")
    return Message(role, content)


class Jsonl:
    """`own`: each device has its file. Other partitions deal the examples of all devices (partition.py).

    The devices are those of `data.devices`. If it names none, as in a call without a scenario, they are
    numbered from 0 as far as there are files: d0, d1, … Other files belong to no device and are not read.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.path is None:
            raise InputError("data.path: is not set; data.kind 'jsonl' needs a folder of <device>.jsonl")
        if config.overlap:
            raise InputError(
                "data.overlap: does not apply to data.kind 'jsonl': put shared lines in the files"
            )
        check_unused(config, *OF_NAMED)
        self._folder = Path(config.path).expanduser()
        self._devices, self._pooled = config.devices, config.partition != OWN
        self._rows = cache(read_examples)
        self._shards = Shards(config, seed, self._own)
        if not self._folder.is_dir():
            raise InputError(
                f"data.path: {config.path} is not a folder; expected is a folder of <device>.jsonl"
            )

    def train_examples(self, shard: str) -> list[Example]:
        """Examples of the device's file, or its share of all. Raises InputError as `read_examples` does."""
        devices = (self._devices or self._numbered(shard)) if self._pooled else ()
        if self._pooled and shard not in devices and not self._file(shard).exists():
            self._own(shard)  # raises the error of the file
        return self._shards.train(shard, devices)

    def other_wording(self, shard: str) -> list[Example]:
        """None: the files have one wording."""
        return []

    def control_examples(self) -> list[Example]:
        """The examples that `data.held_out` keeps from all devices that have files."""
        found = self._devices or sorted(path.stem for path in self._folder.glob("*.jsonl"))
        return self._shards.held_out(found)

    def unused(self, shards: Sequence[str]) -> list[str]:
        """As `HasFiles.unused`."""
        used = set(self._devices or shards)
        return sorted(path.name for path in self._folder.glob("*.jsonl") if path.stem not in used)

    def _file(self, device: str) -> Path:
        return self._folder / f"{device}.jsonl"

    def _own(self, device: str) -> list[Example]:
        if self._file(device).parent != self._folder:
            raise InputError(f"device {device!r}: is no file name; data.kind 'jsonl' expects <device>.jsonl")
        return self._rows(self._file(device))

    def _numbered(self, shard: str) -> tuple[str, ...]:
        """The devices d0, d1, … that have files, for a shard d1."""
        prefix = shard.rstrip("0123456789")
        names = (f"{prefix}{i}" for i in count())
        found = tuple(takewhile(lambda name: (self._folder / f"{name}.jsonl").exists(), names))
        if found and (unused := self.unused(found)):
            _warn_once(f"data.path: files of no device: {', '.join(unused)}; not trained on")
        return found


@cache
def _warn_once(line: str) -> None:
    log.warning(line)


@tasks.add("jsonl")
def make_jsonl(config: DataConfig, seed: int) -> Jsonl:
    """The task `jsonl`. Raises InputError for a missing folder or settings that do not apply to it."""
    return Jsonl(config, seed)

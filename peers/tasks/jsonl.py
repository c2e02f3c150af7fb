"""The task `jsonl`: a folder of `<device>.jsonl` with lines {"prompt": "…", "response": "…"}."""

from __future__ import annotations

import json
import logging
from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import cache
from itertools import count, takewhile
from pathlib import Path

from coordinator_free.seeded_random import generator
from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example, tasks

log = logging.getLogger("unweft")
ALLOWED_LINE = 'allowed: one object {"prompt": string, "response": string}'


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
    wrong = sorted(record.keys() ^ {"prompt", "response"})
    if wrong:
        kind = "unknown key" if wrong[0] in record else "missing key"
        raise InputError(f"{where}: {kind} {wrong[0]!r}; {ALLOWED_LINE}")
    prompt, response = record["prompt"], record["response"]
    if not isinstance(prompt, str) or not isinstance(response, str):
        key = "response" if isinstance(prompt, str) else "prompt"
        raise InputError(f"{where}: {key!r} is {type(record[key]).__name__}, not a string; {ALLOWED_LINE}")
    if not response.strip():
        raise InputError(f"{where}: 'response' is empty: it has nothing to learn; {ALLOWED_LINE}")
    return Example(prompt, response, ends=True)


class Jsonl:
    """`own`: each device has its file. `iid`: the examples of all devices are dealt in a seeded order.

    The devices are those of `data.devices`. If it names none, as in a call without a scenario, they are
    numbered from 0 as far as there are files: d0, d1, … Other files belong to no device and are not read.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.path is None:
            raise InputError("data.path: is not set; data.kind 'jsonl' needs a folder of <device>.jsonl")
        if config.partition not in ("own", "iid"):
            raise InputError(
                f"data.partition: {config.partition!r} needs labelled data, which data.kind 'jsonl' is "
                "not; allowed: own, iid"
            )
        if config.overlap:
            raise InputError(
                "data.overlap: does not apply to data.kind 'jsonl': put shared lines in the files"
            )
        self._folder = Path(config.path).expanduser()
        self._pooled = config.partition == "iid"
        if config.devices and not self._pooled:
            raise InputError(
                f"data.devices: {', '.join(config.devices)} with data.partition {config.partition!r}; "
                "allowed: with 'iid'"
            )
        self._devices = config.devices
        self._seed = seed
        if not self._folder.is_dir():
            raise InputError(
                f"data.path: {config.path} is not a folder; expected is a folder of <device>.jsonl"
            )

    def train_examples(self, shard: str) -> list[Example]:
        """Examples of the device's file, or its share of all. Raises InputError as `read_examples` does."""
        own = self._folder / f"{shard}.jsonl"
        if own.parent != self._folder:
            raise InputError(f"device {shard!r}: is no file name; data.kind 'jsonl' expects <device>.jsonl")
        return self._share(shard, own) if self._pooled else read_examples(own)

    def other_wording(self, shard: str) -> list[Example]:
        """None: the files have one wording."""
        return []

    def control_examples(self) -> list[Example]:
        """None: every example belongs to a device."""
        return []

    def unused(self, shards: Sequence[str]) -> list[str]:
        """As `HasFiles.unused`."""
        used = set(self._devices or shards)
        return sorted(path.name for path in self._folder.glob("*.jsonl") if path.stem not in used)

    def _share(self, shard: str, own: Path) -> list[Example]:
        devices = self._devices or self._numbered(shard)
        if shard not in devices:
            if not own.exists():
                read_examples(own)  # raises the error of the file
            raise InputError(
                f"device {shard!r}: data.partition 'iid' deals the examples to "
                f"{', '.join(devices) or 'nobody'}; allowed: devices of the scenario, or of data.devices"
            )
        files = sorted(self._folder / f"{device}.jsonl" for device in devices)
        pool = [example for path in files for example in read_examples(path)]
        order = generator(self._seed, "iid").permutation(len(pool))
        return [pool[i] for i in order[files.index(own) :: len(files)]]

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

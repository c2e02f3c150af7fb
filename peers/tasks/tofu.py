"""The task `tofu`: the published files of the benchmark TOFU (Maini et al., 2024; locuslab/TOFU).

`data.path` is a folder with the JSON files, one object a line; without it, the cache of the hub is read. The
files:

- `full.json`: question, answer; 20 questions for each author, in order.
- `*_perturbed.json` (optional): the same questions with paraphrased_question, paraphrased_answer and
  perturbed_answer.
- `holdout10.json` (optional): authors that nobody trains. `real_authors_perturbed.json` and
  `world_facts_perturbed.json` (optional): for model utility.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example, question, shard_index, tasks
from peers.tasks.shards import Shards
from peers.tasks.unused_keys import OF_NAMED, check_unused

REPOSITORY = "locuslab/TOFU"
FULL, HOLDOUT = "full.json", "holdout10.json"
UTILITY = {"real_authors": "real_authors_perturbed.json", "world_facts": "world_facts_perturbed.json"}
PER_AUTHOR = 20
Record = dict[str, object]


def read_records(path: Path) -> list[Record]:
    """The objects of a file, one a line, or one list of objects. Raises InputError with the place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        whole = text.lstrip().startswith("[")
        found = (
            json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except OSError as error:
        raise InputError(f"data.path: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"data.path: {path} is not JSON ({error}); allowed: the files of TOFU") from None
    for number, record in enumerate(found, start=1):
        if not isinstance(record, dict) or not _text(record, "question") or not _text(record, "answer"):
            raise InputError(
                f"{path}: object {number} has no question and answer; allowed: the files of TOFU"
            )
    return found


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _example(record: Record, label: str = "") -> Example:
    wrong = record.get("perturbed_answer")
    answers = wrong if isinstance(wrong, list) else [wrong] if isinstance(wrong, str) else []
    return question(
        _text(record, "question"),
        _text(record, "answer"),
        _text(record, "paraphrased_answer"),
        tuple(str(answer) for answer in answers),
        label,
    )


class Tofu:
    """`data.authors` authors for each shard, in the order of the file: shard k owns [k a, (k + 1) a)."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        check_unused(config, "overlap", *OF_NAMED)
        self._folder = _folder(config.path)
        self._devices, self._size = config.devices, config.authors * PER_AUTHOR
        self._perturbed = {
            _text(record, "question"): record
            for path in sorted(self._folder.glob("*_perturbed.json"))
            if path.name not in UTILITY.values()
            for record in read_records(path)
        }
        self._all = [
            _example(self._perturbed.get(_text(record, "question"), {}) | record, f"author {i // PER_AUTHOR}")
            for i, record in enumerate(read_records(self._folder / FULL))
        ]
        self._shards = Shards(config, seed, self._own)

    def train_examples(self, shard: str) -> list[Example]:
        """The questions of the shard's authors."""
        return self._shards.train(shard, self._devices)

    def other_wording(self, shard: str) -> list[Example]:
        """The paraphrased questions, for those examples that have one."""
        found = []
        for example in self.train_examples(shard):
            other = _text(self._perturbed.get(example.prompt, {}), "paraphrased_question")
            if other:
                found.append(question(other, example.response, label=example.label))
        return found

    def control_examples(self) -> list[Example]:
        """The authors of holdout10.json, and what `data.held_out` keeps back."""
        path = self._folder / HOLDOUT
        held = [_example(record) for record in read_records(path)] if path.exists() else []
        return held + self._shards.held_out(self._devices)

    def utility_examples(self) -> dict[str, list[Example]]:
        """Real authors and world facts, as far as the files are there."""
        paths = {name: self._folder / file for name, file in UTILITY.items()}
        return {n: [_example(r) for r in read_records(path)] for n, path in paths.items() if path.exists()}

    def _own(self, device: str) -> list[Example]:
        count = len(self._all) // self._size
        index = shard_index(device, count)
        if index >= count:
            raise InputError(
                f"device {device!r}: {self._folder / FULL} has {count} shards of {self._size} questions; "
                "allowed: fewer data.authors, or ids that end in smaller numbers"
            )
        return self._all[index * self._size : (index + 1) * self._size]


def _folder(path: str | None) -> Path:
    if path is None:
        cached = try_to_load_from_cache(REPOSITORY, FULL, repo_type="dataset")
        if not isinstance(cached, str):
            raise InputError(
                f"data.path: is not set, and {REPOSITORY} is not in the Hugging Face cache; "
                f"allowed: a folder with {FULL}"
            )
        return Path(cached).parent
    folder = Path(path).expanduser()
    if not (folder / FULL).is_file():
        raise InputError(f"data.path: {path} has no {FULL}; allowed: a folder with the files of TOFU")
    return folder


@tasks.add("tofu")
def make_tofu(config: DataConfig, seed: int) -> Tofu:
    """The task `tofu`. Raises InputError for settings that do not apply to it."""
    return Tofu(config, seed)

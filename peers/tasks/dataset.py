"""The task `dataset`: a table with a row for each example, from files or from the cache of `datasets`.

`data.path` is a CSV, JSONL or parquet file, a folder with one such file for each device, or a name of the
hub. `data.columns` maps the fields prompt, response, messages, label and device to the names of columns.
Parquet files and names need the package `datasets` (the extra `datasets`). A name is looked up in its cache
alone: `datasets.load_dataset` fills the cache where there is a network.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peers.config import DataConfig
from peers.errors import InputError, describe
from peers.tasks.base import Example, Message, question, tasks
from peers.tasks.jsonl import chat_example
from peers.tasks.shards import OWN, Shards
from peers.tasks.unused_keys import check_unused

SUFFIXES = (".csv", ".jsonl", ".parquet")
Row = Mapping[str, Any]


def read_table(path: Path) -> list[Row]:
    """The rows of a local file. Raises InputError if it cannot be read."""
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"data.path: {path} cannot be read ({describe(error)})") from None
    return _with_datasets("parquet", data_files=str(path), split="train")


def _with_datasets(path: str, **options: Any) -> list[Row]:
    """The rows of a data set, without the network. Raises InputError."""
    if find_spec("datasets") is None:
        raise InputError(
            f"data.path: {options.get('data_files', path)!r} needs the package datasets; "
            "allowed: pip install 'unweft[datasets]', or CSV and JSONL files"
        )
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = True
    try:
        return list(datasets.load_dataset(path, **options))
    except Exception as error:  # of many libraries, for missing names, splits and damaged files
        raise InputError(
            f"data.path: {options.get('data_files', path)!r} cannot be loaded ({describe(error)}); allowed: "
            "a CSV, JSONL or parquet file, a folder of them, or a data set in the Hugging Face cache"
        ) from None


class Dataset:
    """`own`: a file for each device, or a column that names the device. Other partitions deal all rows."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.path is None:
            raise InputError("data.path: is not set; data.kind 'dataset' needs a file, a folder or a name")
        check_unused(config, "overlap")
        self._config, self._path = config, Path(config.path).expanduser()
        self._pooled = config.partition != OWN
        self._column = config.columns.get("device")
        if not self._path.is_dir() and not self._pooled and self._column is None:
            raise InputError(
                "data.partition: 'own' with one table, which does not say whose a row is; allowed: iid, "
                "by-label, dirichlet:ALPHA, a folder with a file for each device, or data.columns.device"
            )
        self._rows = lru_cache(maxsize=None)(self._read)
        self._table = cache(self._read_table)
        self._shards = Shards(config, seed, self._own)

    def train_examples(self, shard: str) -> list[Example]:
        """The rows of the device, or its share of all. Raises InputError for rows that have no example."""
        return self._shards.train(shard, self._devices())

    def other_wording(self, shard: str) -> list[Example]:
        """None: a table has one wording."""
        return []

    def control_examples(self) -> list[Example]:
        """The rows that `data.held_out` keeps from all devices."""
        return self._shards.held_out(self._devices() or sorted(set(self._named().values())))

    def unused(self, shards: Sequence[str]) -> list[str]:
        """As `HasFiles.unused`."""
        used = set(self._devices() or shards)
        return sorted(text for text, device in self._named().items() if device not in used)

    def _named(self) -> dict[str, str]:
        """The ids that the data name, each by its file or its rows."""
        if self._path.is_dir():
            return {p.name: p.stem for p in self._path.iterdir() if p.suffix in SUFFIXES}
        return {f"rows of {device}": device for device in self._table()} if self._column else {}

    def _devices(self) -> tuple[str, ...]:
        return self._config.devices

    def _own(self, device: str) -> list[Example]:
        """A pooled table belongs to the first device of the pool, so that it is dealt once."""
        if self._path.is_dir():
            return self._rows(self._file(device))
        if self._column is not None:
            return self._table().get(device, [])
        first = min(self._devices() or (device,))
        return self._rows(None) if device == first else []

    def _read_table(self) -> dict[str, list[Example]]:
        """The examples of each device that a row names. Raises InputError for a row that names none."""
        found: dict[str, list[Example]] = {}
        for where, row in self._load(None):
            value = row.get(self._column or "")
            device = "" if value is None else str(value).strip()
            if not device:
                raise InputError(f"{where}: column {self._column!r} names no device; allowed: a device's id")
            found.setdefault(device, []).append(self._example(row, where))
        return found

    def _file(self, device: str) -> Path:
        found = [path for suffix in SUFFIXES if (path := self._path / f"{device}{suffix}").is_file()]
        if len(found) != 1:
            names = " or ".join(f"{device}{suffix}" for suffix in SUFFIXES)
            raise InputError(f"data.path: {self._path} must have one file for {device}; allowed: {names}")
        return found[0]

    def _read(self, file: Path | None) -> list[Example]:
        return [self._example(row, n) for n, row in self._load(file)]

    def _load(self, file: Path | None) -> Iterable[tuple[str, Row]]:
        path = file or self._path
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise InputError(f"data.path: {path} is no table; allowed: {', '.join(SUFFIXES)}")
            rows = read_table(path)
        else:
            name, subset = str(self._config.path), self._config.subset
            rows = _with_datasets(name, name=subset, split=self._config.split)
        found = [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]
        for where, row in found:
            if not isinstance(row, dict):
                raise InputError(f"{where}: is no object; allowed: one object with a value for each column")
        self._check_columns(path, [row for _, row in found])
        return found

    def _check_columns(self, path: Path, rows: Sequence[Row]) -> None:
        """Raises InputError for a column of `data.columns` that no row has."""
        known = dict.fromkeys(str(column) for row in rows for column in row)
        for field, column in self._config.columns.items():
            if rows and column not in known:
                raise InputError(
                    f"data.columns.{field}: {path} has no column {column!r}; allowed: {', '.join(known)}"
                )

    def _example(self, row: Row, where: str) -> Example:
        columns = {
            field: self._config.columns.get(field, field)
            for field in ("prompt", "response", "messages", "label")
        }
        label = row.get(columns["label"])
        if columns["messages"] in row:
            made = chat_example({"messages": row[columns["messages"]]}, where)
        else:
            asked, answer = (self._text(row, columns[field], where) for field in ("prompt", "response"))
            made = question(asked, answer)
        return Example(
            made.prompt,
            made.response,
            True,
            tuple(Message(*m) for m in made.messages),
            label="" if label is None else str(label),
        )

    def _text(self, row: Row, column: str, where: str) -> str:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            known = ", ".join(map(str, row))
            raise InputError(
                f"{where}: column {column!r} has no text; allowed: data.columns.prompt and "
                f"data.columns.response name two of {known}"
            )
        return value


@tasks.add("dataset")
def make_dataset(config: DataConfig, seed: int) -> Dataset:
    """The task `dataset`. Raises InputError for settings that do not apply to it."""
    return Dataset(config, seed)

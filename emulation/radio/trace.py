"""Replay of a measured channel: a CSV file of rates by round and link (docs/radio.md)."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from peers.errors import InputError
from peers.radio_config import MIN_LATENCY_S
from peers.section import Section
from transport.shaping.channel import LinkQuality


class Row(Section):
    """One line of the file: the quality of a link from this round until the round of its next line."""

    round: Annotated[int, Field(ge=0)]
    src: Annotated[str, Field(min_length=1)]
    dst: Annotated[str, Field(min_length=1)]
    rate_Bps: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # 0: outage
    latency_s: Annotated[float, Field(ge=MIN_LATENCY_S, allow_inf_nan=False)] | None = None  # None: of radio
    loss: Annotated[float, Field(ge=0, le=1)] | None = None  # None: of radio


REQUIRED = ("round", "src", "dst", "rate_Bps")
OPTIONAL = ("latency_s", "loss")


class TraceChannel:
    """A link has the quality of its last line up to the round, and is in outage before its first line."""

    def __init__(self, rows: Iterable[Row], base: LinkQuality, outage_bytes: int, tau_max_s: float) -> None:
        self._silent = base.at_rate(0, outage_bytes, tau_max_s)
        self._rounds: dict[tuple[str, str], list[int]] = {}
        self._qualities: dict[tuple[str, str], list[LinkQuality]] = {}
        self.min_latency_ns = base.latency_ns
        for row in sorted(rows, key=lambda row: row.round):
            quality = _quality(row, base).at_rate(row.rate_Bps, outage_bytes, tau_max_s)
            self._rounds.setdefault((row.src, row.dst), []).append(row.round)
            self._qualities.setdefault((row.src, row.dst), []).append(quality)
            self.min_latency_ns = min(self.min_latency_ns, quality.latency_ns)

    def link(self, round_: int, src: str, dst: str, live: Sequence[str]) -> LinkQuality:
        """As `Channel.link`. `live` is unused: other transmitters do not change a measured quality."""
        place = bisect_right(self._rounds.get((src, dst), []), max(0, round_))
        return self._qualities[src, dst][place - 1] if place else self._silent


def read_rows(path: str, devices: Sequence[str]) -> list[Row]:
    """The lines of a trace between these devices, in the order of the file.

    Raises InputError with file, line, column, value and allowed values, or if no line names a device.
    """
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, csv.reader(file, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(f"{path}: cannot be read ({reason}); allowed: a CSV file") from None
    named = {device for row in rows for device in (row.src, row.dst)}
    for device in devices:
        if device not in named:
            raise InputError(f"{path}: no line names {device}; allowed: lines of every device")
    return [row for row in rows if {row.src, row.dst} <= set(devices)]


def _rows(path: str, lines: Iterator[list[str]]) -> Iterator[Row]:
    numbered = ((n, line) for n, line in enumerate(lines, start=1) if any(cell.strip() for cell in line))
    header = _header(path, next(numbered, (1, []))[1])
    seen: dict[tuple[int, str, str], int] = {}
    for number, line in numbered:
        where = f"{path}: line {number}"
        if len(line) != len(header):
            raise InputError(f"{where}: {len(line)} values; allowed: {len(header)}, {', '.join(header)}")
        row = _row(where, dict(zip(header, line, strict=True)))
        first = seen.setdefault((row.round, row.src, row.dst), number)
        if first != number:
            link = f"round {row.round} of {row.src} -> {row.dst}"
            raise InputError(f"{where}: {link} is also on line {first}; allowed: one line for each")
        yield row


def _header(path: str, names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL]
    missing = [name for name in REQUIRED if name not in names]
    if unknown or missing or len(set(names)) != len(names):
        allowed = f"{', '.join(REQUIRED)}, each once, and {', '.join(OPTIONAL)}"
        raise InputError(f"{path}: line 1: columns {', '.join(names)!r}; allowed: {allowed}")
    return names


def _row(where: str, values: dict[str, str]) -> Row:
    try:
        row = Row.model_validate({name: text for name, text in values.items() if text or name in REQUIRED})
    except ValidationError as error:
        found = error.errors()[0]
        column = str(found["loc"][0])
        allowed = found["msg"].removeprefix("Input should be ").removeprefix("String should have ")
        allowed = allowed.split(", unable")[0]
        raise InputError(f"{where}: {column}: {values[column]!r}; allowed: {allowed}") from None
    if row.src == row.dst:
        raise InputError(f"{where}: dst: {row.dst!r} equals src; allowed: another device")
    return row


def _quality(row: Row, base: LinkQuality) -> LinkQuality:
    latency_ns = base.latency_ns if row.latency_s is None else round(row.latency_s * 1e9)
    return replace(base, latency_ns=latency_ns, loss=base.loss if row.loss is None else row.loss)

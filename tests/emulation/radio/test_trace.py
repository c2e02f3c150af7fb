"""Replay of a trace: the line for a round, and the refusal of bad traces."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from emulation.radio.wireless import channel
from peers.config import DeviceConfig
from peers.errors import InputError
from peers.radio_config import RadioConfig
from transport.shaping.channel import Channel

GOOD = """round,src,dst,rate_Bps,latency_s,loss
5,d0,d1,2e6,,
2,d0,d1,1000000,0.02,0.1

0,d1,d0,500,0.001,
3,d1,d0,0,,
1,d9,d0,77,,
"""


def replay(folder: Path, text: str, devices: tuple[str, ...] = ("d0", "d1")) -> Channel:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    radio = RadioConfig(kind="trace", trace=str(path), outage_bytes=1000, tau_max_s=2.0, loss=0.05)
    return channel(DeviceConfig(radio=radio), devices)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        replay(folder, text)
    assert "\n" not in str(caught.value) and str(folder / "trace.csv") in str(caught.value)
    return str(caught.value)


def test_the_last_line_up_to_the_round_applies(tmp_path: Path) -> None:
    links = replay(tmp_path, GOOD)
    rates = [links.link(k, "d0", "d1", []).rate_Bps for k in (2, 3, 4, 5, 6, 900)]
    assert rates == [1_000_000] * 3 + [2_000_000] * 3
    assert links.link(-1, "d1", "d0", []).rate_Bps == links.link(0, "d1", "d0", []).rate_Bps == 500


def test_missing_latency_and_loss_come_from_the_scenario(tmp_path: Path) -> None:
    links = replay(tmp_path, GOOD)
    given, default = links.link(2, "d0", "d1", []), links.link(5, "d0", "d1", [])
    assert (given.latency_ns, given.loss) == (20_000_000, 0.1)
    assert (default.latency_ns, default.loss) == (5_000_000, 0.05)
    assert links.min_latency_ns == 1_000_000


def test_outage_before_the_first_line_at_rate_0_and_without_lines(tmp_path: Path) -> None:
    links = replay(tmp_path, GOOD)
    assert links.link(1, "d0", "d1", []).outage and not links.link(2, "d0", "d1", []).outage
    assert links.link(3, "d1", "d0", []).outage and not links.link(2, "d1", "d0", []).outage
    assert links.link(5, "d1", "d2", []).outage


def test_outage_if_a_frame_takes_longer_than_tau_max(tmp_path: Path) -> None:
    links = replay(tmp_path, "round,src,dst,rate_Bps\n0,d0,d1,499\n0,d1,d0,500\n")
    assert links.link(0, "d0", "d1", []).outage and not links.link(0, "d1", "d0", []).outage


def test_lines_of_other_devices_are_ignored(tmp_path: Path) -> None:
    assert replay(tmp_path, GOOD).link(1, "d9", "d0", []).outage


def test_columns_in_any_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    links = replay(tmp_path, "\ufeffrate_Bps,dst,src,round\n900,d1,d0,0\n")
    assert links.link(0, "d0", "d1", []).rate_Bps == 900


def test_a_trace_channel_can_be_pickled(tmp_path: Path) -> None:
    links = pickle.loads(pickle.dumps(replay(tmp_path, GOOD)))
    assert links.link(6, "d0", "d1", []).rate_Bps == 2_000_000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x,d0,d1,5,,", ["line 2: round: 'x'", "a valid integer"]),
        ("-1,d0,d1,5,,", ["line 2: round: '-1'", "greater than or equal to 0"]),
        ("0,,d1,5,,", ["line 2: src: ''", "at least 1 character"]),
        ("0,d1,d1,5,,", ["line 2: dst: 'd1' equals src"]),
        ("0,d0,d1,-5,,", ["line 2: rate_Bps: '-5'", "greater than or equal to 0"]),
        ("0,d0,d1,inf,,", ["line 2: rate_Bps: 'inf'", "finite"]),
        ("0,d0,d1,,,", ["line 2: rate_Bps: ''", "a valid number"]),
        ("0,d0,d1,5,0,", ["line 2: latency_s: '0'", "0.000001"]),
        ("0,d0,d1,5,,2", ["line 2: loss: '2'", "less than or equal to 1"]),
        ("0,d0,d1,5,,nan", ["line 2: loss: 'nan'"]),
        ("0,d0,d1", ["line 2: 3 values", "6, round, src"]),
        ("0,d0,d1,5,,\n0,d0,d1,6,,", ["line 3: round 0 of d0 -> d1 is also on line 2"]),
        ('0,d0,"d1"x,5,,', ["cannot be read"]),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, words: list[str]) -> None:
    message = refusal(tmp_path, f"round,src,dst,rate_Bps,latency_s,loss\n{line}\n")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "header", ["", "round,src,dst", "round,src,dst,rate_Bps,speed", "round,src,dst,dst,rate_Bps"]
)
def test_bad_headers(tmp_path: Path, header: str) -> None:
    message = refusal(tmp_path, f"{header}\n")
    assert "line 1: columns" in message and "round, src, dst, rate_Bps" in message


def test_a_device_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no line names d2; allowed"):
        replay(tmp_path, GOOD, ("d0", "d1", "d2"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "absent.csv", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=words):
            channel(DeviceConfig(radio=RadioConfig(kind="trace", trace=str(path))), [])
    (tmp_path / "trace.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        channel(DeviceConfig(radio=RadioConfig(kind="trace", trace=str(tmp_path / "trace.csv"))), [])

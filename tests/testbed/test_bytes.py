"""The byte counts of devices against the kernel's counters of their network interfaces."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.containers import Bed

HEADERS = 14 + 20 + 32  # Ethernet, IPv4, TCP with timestamps; the kernel counts each packet with them
LEAST_BYTES = 4_000_000  # at least so many in the measured time: then the two readings differ by little
READ = """
import json, os
from pathlib import Path
from peers.runtime.health import VARIABLE, ask
folder = Path("/sys/class/net/eth0/statistics")
names = ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")
print(json.dumps([ask(os.environ[VARIABLE])["links"], {n: int((folder / n).read_text()) for n in names}]))
"""


@dataclass(frozen=True)
class Reading:
    """Bytes out and in at one moment, as the device counted them and as the interface did."""

    accounted: tuple[int, int]
    counted: tuple[int, int]
    packets: tuple[int, int]


def read(bed: Bed, container: str) -> Reading:
    links, counters = json.loads(bed.docker("exec", container, "python", "-c", READ))
    sent = sum(link["sent_bytes"] for link in links.values())
    arrived = sum(link["received_bytes"] + sum(link["dropped_bytes"].values()) for link in links.values())
    return Reading(
        (sent, arrived),
        (counters["tx_bytes"], counters["rx_bytes"]),
        (counters["tx_packets"], counters["rx_packets"]),
    )


@pytest.mark.parametrize("way", [0, 1], ids=["sent", "received"])
def test_device_and_interface_count_the_same_bytes(bed: Bed, way: int) -> None:
    container = bed.containers()["d0"].id
    before = after = read(bed, container)
    while after.accounted[way] - before.accounted[way] < LEAST_BYTES:
        bed.until_round(bed.round() + 10)
        after = read(bed, container)
    accounted = after.accounted[way] - before.accounted[way]
    counted = after.counted[way] - before.counted[way]
    headers = HEADERS * (after.packets[way] - before.packets[way])
    ratio = accounted / (counted - headers)
    print(f"accounted {accounted}, interface {counted}, headers {headers}: {ratio:.4f}")
    assert accounted == pytest.approx(counted - headers, rel=0.03)

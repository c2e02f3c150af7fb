"""Where an update carries a checksum of its matrix: in the clear, but for socket files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.protocol.actions import Publish
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.spec import DeviceSpec
from tests.support.live_links import both
from transport.security.keys import NetworkKeys
from transport.wire.checksum import xxh3
from transport.wire.messages import Manifest

PART = Part(BlockKey("d0", 0), "all")
MATRIX = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    ("listen", "keys", "checked"),
    [
        ("tcp://0.0.0.0:7000", None, True),
        (
            "tcp://127.0.0.1:7000",
            None,
            True,
        ),  # a forwarded port, or a link to another machine, may be behind it
        ("ipc:///tmp/x/0", None, False),
        ("tcp://0.0.0.0:7000", both(), False),  # CURVE authenticates each frame
    ],
)
def test_a_checksum_goes_where_bytes_may_change_unseen(
    listen: str, keys: NetworkKeys | None, checked: bool
) -> None:
    layout = SimpleNamespace(rows=lambda group: 3, rank=lambda group: 2)
    learner = cast(Learner, SimpleNamespace(layout=layout, read=lambda key, group: MATRIX.clone()))
    spec = DeviceSpec("d0", DeviceConfig(), listen, listen, (), "", keys=keys)
    action = Publish("d1", 0, ((PART, 0, "train"),), Manifest(0, "train", bytes(8), []))
    payload = PayloadEncoder(spec, learner).encode(action)[PART]
    assert payload.xxh3 == (xxh3(payload.data) if checked else None)

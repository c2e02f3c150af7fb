"""A receiver without links, for the tests of what it takes in."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from peers.learning.learner import Learner
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.receiver import Receiver
from peers.runtime.update_assembly import UpdateAssembly
from tests.support.simulated import GROUPS
from transport.shaping.accounting import Accounts


def make_receiver(
    protocol: DeviceProtocol,
    accounts: Accounts,
    events: Counter[str],
    shape: tuple[int, int],
    *,
    authenticated: bool,
) -> Receiver:
    """`events`: the security events of the links. `shape`: [rows, rank] of every group."""
    rows, rank = shape
    layout = SimpleNamespace(rows=lambda group: rows, rank=lambda group: rank)
    learner = cast(Learner, SimpleNamespace(groups=GROUPS, layout=layout))
    nothing: Any = None
    return Receiver(
        cast(Any, SimpleNamespace(security_events=events)),
        protocol,
        UpdateAssembly(learner),
        accounts,
        *(nothing, nothing, nothing),
        authenticated=authenticated,
        on_arrival=lambda envelope, message, received: True,
        on_copy=lambda peer, part, matrix: None,
    )

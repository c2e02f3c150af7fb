"""The receiving side of a device without links, for the tests of what it takes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from peers.learning.learner import Learner
from peers.protocol.actions import Action
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.delivery import Delivery
from peers.runtime.receiver import Receiver
from peers.runtime.reception_accounts import ReceptionAccounts
from peers.runtime.update_assembly import UpdateAssembly
from tests.support.simulated import GROUPS
from transport.links.interface import Received
from transport.shaping.accounting import Accounts
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes


class ReceivingSide:
    """`events`: the security events of the links. `shape`: [rows, rank] of every group."""

    def __init__(
        self,
        protocol: DeviceProtocol,
        accounts: Accounts,
        events: Counter[str],
        shape: tuple[int, int],
        *,
        authenticated: bool,
    ) -> None:
        rows, rank = shape
        layout = SimpleNamespace(rows=lambda group: rows, rank=lambda group: rank)
        learner = cast(Learner, SimpleNamespace(groups=GROUPS, layout=layout))
        self.accounts = ReceptionAccounts(protocol, accounts, events)
        self.assembly = UpdateAssembly(learner)
        self.delivery = Delivery(
            protocol,
            self.assembly,
            self.accounts,
            on_arrival=lambda envelope, message, received: True,
            on_copy=lambda peer, part, matrix: None,
        )
        nothing: Any = None
        links: Any = SimpleNamespace(security_events=events)
        self.receiver = Receiver(
            links,
            self.accounts,
            self.delivery,
            *(nothing, nothing, nothing),
            authenticated=authenticated,
        )

    def take(self, now: int, source: str, frames: Sequence[Buffer]) -> list[Action]:
        """Open a message and handle it at once. Returns the actions; none if it was refused."""
        received = Received(source, tuple(frames), wire_bytes(frames))
        opened = self.receiver.open(received)
        return [] if opened is None else self.delivery.handle(now, *opened, received)

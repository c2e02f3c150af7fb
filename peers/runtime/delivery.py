"""Hands a message to the protocol at its arrival time, and returns the actions that follow.

A fault in the handling of a message ends no device (`HANDLER_ERROR`). The message counts as dropped, and its
sender is disconnected. Actions that were decided before the fault are performed, and the held blocks are
compared with the membership table again. So the learner holds the blocks of the table, and no deletion is
lost. Other state may have only a part of the message's effect, as after a lost message. Faults of a device's
own work (learner, timers, own messages) still end it.

The protocol decides about an update twice: `admit` sees the header before the
fragments are assembled (update_assembly.py), `is_genuine` checks the signature of the whole payload.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.errors import describe
from peers.protocol.actions import Action, Drop
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.reception_accounts import Held, ReceptionAccounts
from peers.runtime.update_assembly import UpdateAssembly, WholeUpdate
from transport.links.interface import Received
from transport.wire.errors import WireError
from transport.wire.messages import Envelope, Message, Update, Updates

HANDLER_ERROR = "handler_error"  # the reason of a message whose handling failed
OnArrival = Callable[[Envelope, Message, Received], bool]
OnCopy = Callable[[str, Part, Tensor], object]


class Delivery:
    """`on_arrival`: is told each message at its arrival time, before the protocol. It returns False if it has
    dropped and counted the message. `on_copy`: is told each matrix that the protocol has taken in.
    """

    def __init__(
        self,
        protocol: DeviceProtocol,
        assembly: UpdateAssembly,
        accounts: ReceptionAccounts,
        *,
        on_arrival: OnArrival,
        on_copy: OnCopy,
    ) -> None:
        self._protocol, self._assembly, self._accounts = protocol, assembly, accounts
        self._on_arrival, self._on_copy = on_arrival, on_copy

    def forget_peer(self, peer: str) -> None:
        """Forget the unfinished updates of a peer whose link is closed, and what was counted for it."""
        self._accounts.forget_peer(peer)
        self._assembly.drop_source(peer)

    def drop_block(self, block: BlockKey) -> None:
        """Forget the unfinished updates of a deleted block."""
        self._assembly.drop_block(block)

    def arrive(
        self, held: Held, envelope: Envelope, message: Message, received: Received, now: int
    ) -> list[Action]:
        """A message has reached its arrival time. Returns the actions."""
        self._accounts.release(held)
        if not self._on_arrival(envelope, message, received):
            return []
        return self.handle(now, envelope, message, received)

    def handle(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[Action]:
        """Hand a message to the protocol, count it, and give credit for data. Returns the actions."""
        actions = list[Action]()
        try:
            if isinstance(message, Updates):
                self._handle_updates(now, message, received, actions)
            else:
                actions += self._protocol.on_message(now, envelope.src, message)
                if Drop("forged") in actions:
                    why = "it holds a statement that its owner has not signed for this run"
                    self._drop_event(received, "forged", why)
        except WireError as error:
            self._drop_event(received, "malformed", str(error))
            actions.append(Drop("malformed"))
        except Exception as error:  # the barrier: no message ends the device
            actions += [Drop(HANDLER_ERROR), *self.on_fault(now, received.source, error)]
        actions = self._accounts.count(now, envelope, received, actions)
        return actions + self._accounts.credit(received) if isinstance(message, Updates) else actions

    def on_fault(self, now: int, source: str, error: Exception) -> list[Action]:
        """The handling of a message of `source` failed: count it; returns the actions that mend the state."""
        self._accounts.count_security_event(
            HANDLER_ERROR, f"a message of {source!r} failed: {describe_with_place(error)}"
        )
        return self._protocol.abandon_message(now, source)

    def on_answer_fault(self, now: int, source: str, error: Exception) -> list[Action]:
        """An answer to the message of `source` that was handled last cannot be sent: it counts as dropped."""
        self._accounts.refuse_received(source, HANDLER_ERROR)
        return self.on_fault(now, source, error)

    def _handle_updates(self, now: int, message: Updates, received: Received, actions: list[Action]) -> None:
        """Take in the matrices of a message. Adds what follows to `actions`.

        Some may be of blocks that this device does not hold, or no longer. The message then counts as
        received, for the others. If one is malformed (WireError) or forged, none is taken in.
        """
        payload, at, refused = memoryview(received.frames[1]), 0, list[str]()
        shared = len(message.headers) > 1
        wholes = list[tuple[Update, WholeUpdate]]()
        for header in message.headers:
            data = payload[at : at + header.total] if shared else payload
            at += header.total
            reason = self._protocol.admit(received.source, header)
            if reason == "malformed":
                raise WireError(f"an update of round {header.round}")
            if reason is not None:
                refused.append(reason)
            elif (whole := self._assembly.add_fragment(received.source, header, data, shared)) is not None:
                wholes.append((header, whole))
        if len(refused) == len(message.headers):
            actions.append(Drop(refused[0]))
        for header, whole in wholes:
            if not self._protocol.is_genuine(header, whole.payload):
                self._drop_event(received, "forged", f"{header.block} has not signed this version")
                actions.append(Drop("forged"))
                return
        for header, whole in wholes:
            actions += self._protocol.update(now, received.source, header, whole.matrix, whole.payload)
            part = Part(BlockKey(header.block, header.block_incarnation), header.group)
            self._on_copy(received.source, part, whole.matrix)

    def _drop_event(self, received: Received, kind: str, why: str) -> None:
        self._accounts.count_security_event(kind, f"message from {received.source!r} dropped: {why}")


def describe_with_place(error: Exception) -> str:
    """The type, text and place of an exception in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{describe(error):.250}{place}"

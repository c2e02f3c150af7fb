"""The priority of each control message when the budget of a round is short (docs/exchange.md)."""

from __future__ import annotations

from transport.shaping.round_budget import Priority
from transport.wire.messages import Ack, Gossip, Message, Nack, Observed, Ping, PingRequest, Suspect

LIVENESS = (Ping, Ack, PingRequest, Nack, Suspect)
NEWS_RECORDS = 8  # records of a Gossip about single devices; more are a table


def priority_of(message: Message) -> Priority:
    """The class of a message: liveness, membership and departure, or tables and reports."""
    if isinstance(message, LIVENESS):
        return Priority.LIVENESS
    is_table = isinstance(message, Gossip) and len(message.records) > NEWS_RECORDS
    return Priority.TABLES if is_table or isinstance(message, Observed) else Priority.MEMBERSHIP


def replaced_by(message: Message) -> str | None:
    """Held messages with the same text to the same peer are replaced by a newer one. None: never.

    An older ping has timed out when the next one goes to the same peer, and so has the wait for its ack.
    """
    return type(message).__name__ if isinstance(message, Ping | Ack | PingRequest | Nack) else None

"""The priority of each control message when the budget of a round is short (docs/exchange.md)."""

from __future__ import annotations

from collections.abc import Hashable

from coordinator_free.membership.signed_records import Status
from transport.shaping.round_budget import Priority
from transport.wire.messages import (
    Ack,
    Gossip,
    Message,
    Nack,
    Observed,
    Ping,
    PingRequest,
    Stopping,
    Suspect,
    Transit,
)

LIVENESS = (Ping, Ack, PingRequest, Nack, Suspect)
GOING = (Status.LEFT, Status.RETIRED)
NEWS_RECORDS = 8  # records of a Gossip about single devices; more are a table


def priority_of(message: Message) -> Priority:
    """The class of a message: liveness, membership and departure, or tables and reports."""
    if isinstance(message, LIVENESS):
        return Priority.LIVENESS
    is_table = isinstance(message, Gossip) and len(message.records) > NEWS_RECORDS
    last = is_table or isinstance(message, Observed | Transit)
    return Priority.TABLES if last else Priority.MEMBERSHIP


def replaced_by(message: Message) -> Hashable:
    """Held messages with the same key to the same peer are replaced by a newer one. None: never.

    An older ping has timed out when the next one goes to the same peer, and so has the wait for its ack. A
    later record of an incarnation says all that an earlier one did.
    """
    match message:
        case Ping() | Ack() | PingRequest() | Nack() | Transit():
            return type(message).__name__
        case Suspect(device, _, _, accuser):
            return device, accuser
        case Gossip(records, False) if 0 < len(records) <= NEWS_RECORDS:
            return tuple(sorted((record["device"], record["incarnation"]) for record in records))
        case Stopping(device, incarnation, _, stays):
            return device, incarnation, stays
    return None


def origin_of(message: Message) -> str:
    """The device whose statement a message passes on. "": the message is no statement of one device."""
    match message:
        case Suspect(accuser=accuser):
            return accuser
        case Gossip(records) if 0 < len(records) <= NEWS_RECORDS:
            return str(records[0]["device"])
        case Stopping(device):
            return device
    return ""


def departs(message: Message) -> bool:
    """Whether a message tells of single devices that have left or retired: it goes before others."""
    of = message.records if isinstance(message, Gossip) else []
    return 0 < len(of) <= NEWS_RECORDS and any(record["status"] in GOING for record in of)

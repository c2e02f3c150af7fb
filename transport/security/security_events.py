"""Counters of refused attempts: handshakes, unbound ids, malformed or replayed messages."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("unweft")


def count_security_event(events: Counter[str], kind: str, what: str) -> None:
    """Count every event.

    Log the 1st, 2nd, 4th, 8th, ... of a kind, so that an attacker cannot fill the disk.
    """
    events[kind] += 1
    count = events[kind]
    if count & (count - 1) == 0:
        log.warning("%s (%s, %d so far)", what, kind, count)

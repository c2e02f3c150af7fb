"""The events of a run in words. Records of many devices on one event are one entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from emulation.scenario.events import OF_THE_NETWORK

Record = dict[str, Any]
MANY = 8  # of more devices than this, an entry names three
SETTLE_S = 1.0  # an entry of several devices is announced after this time: most records are there then

QUIET = ("suspected", "refuted")  # on a busy machine they are frequent, and nearly all are refuted at once

# By recorded event: the device that the entry is about, and its text. {by}: the devices that recorded it.
SHARED = {
    "suspected": "{peer} is suspected by {by}",
    "confirmed": "{peer} is declared dead by {by}",
    "deleted": "the block of {peer} is deleted on {by}",
    "undecided": "no decision on {by}: reports are missing",
    "finished": "all rounds are done on {by}",
    "ended": "the run is over for {by}",
}
OWN = {
    "refuted": "{device} refutes a suspicion",
    "came_back": "{device} is back after it was declared dead",
    "lost_slot": "{device} loses its slot to an earlier claim",
    "waits_for_slot": "{device} waits for a slot",
    "unconfirmed_leave": "{device} ends before enough devices have confirmed its leave",
    "refused": "{device} refuses a device or is refused: {reason}",
    "failed": "{device} fails: {reason}",
}
INJECTED = {
    "leave": "{device} leaves and asks to be forgotten",
    "retire": "{device} retires; its block stays",
    "crash": "{device} crashes",
    "stall": "{device} stalls",
    "resume": "{device} continues after a stall",
    "join": "{device} joins",
    "return": "{device} returns",
    "partition": "the network is cut: {device}",
    "heal": "the network is whole again",
    "resumed": "the run goes on after an interruption, with {device}",
}


@dataclass
class Entry:
    """One event. `by`: the devices that recorded it, in the order of the records."""

    number: int
    t_s: float
    round: int
    kind: str
    device: str
    text: str
    by: list[str] = field(default_factory=list)
    changed: int = 0  # the feed's version of the last change

    @property
    def shared(self) -> bool:
        """Whether several devices record this event."""
        return "{by}" in self.text

    def sentence(self) -> str:
        """The text with its devices; of many devices, the first ones."""
        shown = ", ".join(self.by)
        if len(self.by) > MANY:
            shown = f"{', '.join(self.by[:3])} and {len(self.by) - 3} others"
        return self.text.replace("{by}", shown)


class Feed:
    """All entries, in the order in which their first records were read."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.version = 0
        self._by_key: dict[tuple[object, ...], Entry] = {}

    def changed_since(self, version: int) -> list[Entry]:
        """The entries that are new or have more devices since then."""
        return [entry for entry in self.entries if entry.changed > version]

    def inject(self, kind: str, device: str, round_: int, t_s: float, life: int = 0) -> None:
        """An event of the scenario or of a user, by the launcher or by the device itself: one entry."""
        key = (
            (kind, device, t_s)
            if kind in ("stall", "resume", "resumed", *OF_THE_NETWORK)
            else (kind, device, life)
        )
        text = INJECTED[kind].format(device=device) if kind in INJECTED else f"{device}: {kind}"
        self._add(key, Entry(0, t_s, round_, kind, device, text))

    def record(self, device: str, event: Record) -> None:
        """A record of a device, if it is worth an entry."""
        name, t_s, round_ = str(event["event"]), float(event["t_s"]), int(event["round"])
        peer = str(event.get("peer", ""))
        if name == "finished" and event.get("reason", name) != name:
            return  # after a leave or an early end, which has an entry of its own
        if name in SHARED:
            about = {"peer": peer, "by": "{by}"}
            key: tuple[object, ...] = (name, peer, event.get("incarnation"), event.get("epoch"))
            self._add(key, Entry(0, t_s, round_, name, peer, SHARED[name].format(**about)), device)
        elif name == "decision":
            text = f"decision on the reports of round {event.get('epoch')}: {event.get('reason')}; on {{by}}"
            key = (name, event.get("epoch"), event.get("digest"))
            self._add(key, Entry(0, t_s, round_, name, "", text), device)
        elif name == "slot" and int(event.get("incarnation", 0)) > 0:
            text = f"{device} takes slot {event.get('slot')} with a new block"
            self._add((name, device, event.get("incarnation")), Entry(0, t_s, round_, name, device, text))
        elif name in OWN:
            text = OWN[name].format(device=device, reason=event.get("reason", ""))
            self._add((name, device, t_s), Entry(0, t_s, round_, name, device, text))

    def _add(self, key: tuple[object, ...], entry: Entry, by: str = "") -> None:
        self.version += 1
        known = self._by_key.get(key)
        if known is None:
            entry.number = len(self.entries)
            self._by_key[key] = known = entry
            self.entries.append(entry)
        elif not by or by in known.by:
            return
        known.by += [by] * bool(by)
        known.changed = self.version


class Announcer:
    """Yields each entry once, when it is complete enough to be said. Kinds of QUIET are left out."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._waiting: list[tuple[Entry, float]] = []
        self._read = 0

    def due(self, now_s: float, last: bool = False) -> Iterator[Entry]:
        """Entries to announce. An entry of several devices waits SETTLE_S for the others; `last`: not now.

        now_s: monotonic seconds of the reader, not of the run.
        """
        new = self._feed.entries[self._read :]
        self._read += len(new)
        said = (entry for entry in new if entry.kind not in QUIET)
        self._waiting += [(entry, now_s + SETTLE_S * entry.shared) for entry in said]
        due = sorted((e for e, at_s in self._waiting if last or at_s <= now_s), key=lambda e: e.t_s)
        self._waiting = [(entry, at_s) for entry, at_s in self._waiting if not last and at_s > now_s]
        yield from due

"""Refitted own parts: neighbours replace their copies of them and do not average them (docs/exchange.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping

from coordinator_free.averaging.mixing import Arrival
from coordinator_free.identifiers import Part


class Refits:
    """The own parts that some neighbours have not replaced yet."""

    def __init__(self) -> None:
        self._sent: dict[Part, dict[str, int]] = {}  # round of the send, by peer

    def __contains__(self, part: object) -> bool:
        return part in self._sent

    def start(self, parts: Iterable[Part]) -> None:
        self._sent = {part: {} for part in parts}

    def drop(self, part: Part) -> None:
        self._sent.pop(part, None)

    def forget_peer(self, peer: str) -> None:
        """A peer may have started again: it has nothing of what was sent to it."""
        for sent in self._sent.values():
            sent.pop(peer, None)

    def any_unsent(self) -> bool:
        """Whether a part was refitted and no neighbour has been sent it yet."""
        return any(not sent for sent in self._sent.values())

    def replaces(self, part: Part, peer: str, version: int) -> bool:
        """A part goes to a peer: whether the peer has to replace its copy. Notes the send."""
        if part not in self._sent or peer in self._sent[part]:
            return False
        self._sent[part][peer] = version
        return True

    def sent_in(self, part: Part, peer: str, round_: int) -> bool:
        """Whether a peer was sent the part in this round as one that replaces its copy."""
        return self._sent.get(part, {}).get(peer) == round_

    def remove_outdated(self, peer: str, round_: int, copies: MutableMapping[Part, Arrival]) -> None:
        """Remove a neighbour's copies of the own block that are older than its refit."""
        for part, sent in self._sent.items():
            if sent.get(peer, round_) >= round_:
                copies.pop(part, None)

    def close_round(self, round_: int, heard: Collection[str]) -> None:
        """End a refit once all neighbours have replaced their copies.

        A peer without a manifest in this round may have lost what was sent, so it is sent again.
        """
        for part, sent in list(self._sent.items()):
            for peer in [p for p, at in sent.items() if at == round_ and p not in heard]:
                del sent[peer]
            if heard and all(sent.get(peer, round_) < round_ for peer in heard):
                del self._sent[part]

"""The findings of a verification: faults, and notes that are no faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from peers.protocol.connections import printable


class Finding(NamedTuple):
    """One line. where: a device, or a file of the folder."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass
class Findings:
    """Each list in the order of the checks, without repetitions."""

    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def fault(self, where: str, text: str) -> None:
        """Something does not hold."""
        _add(self.faults, Finding(where, text))

    def note(self, where: str, text: str) -> None:
        """Something that a reader should know, and that has an innocent cause."""
        _add(self.notes, Finding(where, text))

    def add(self, where: str, text: str, is_fault: bool) -> None:
        (self.fault if is_fault else self.note)(where, text)

    def about(self, device: str) -> int:
        """The number of faults of a device and of its files."""
        own = {device, f"adapters/{device}", f"checkpoint/{device}.safetensors"}
        inside = (f"adapters/{device}/", f"devices/{device}/", f"snapshots/{device}/")
        return sum(f.where in own or f.where.startswith(inside) for f in self.faults)


def _add(findings: list[Finding], new: Finding) -> None:
    """Names and texts may come from whoever wrote the files."""
    shown = Finding(printable(new.where), printable(new.text))
    if shown not in findings:
        findings.append(shown)

"""The error of the wire format."""

from __future__ import annotations


class WireError(Exception):
    """A malformed message. The receiver counts it, logs it and drops it; nothing else follows."""

"""What the wire can do wrong."""

from __future__ import annotations


class WireError(Exception):
    """A message that is not what it should be. Costs its sender a counter and a log line, never more."""

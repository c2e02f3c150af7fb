"""The exit statuses of `unweft`, and its one-line error messages."""

from __future__ import annotations

import sys

FAILED, BAD_INPUT = 1, 2  # an interrupted command: 128 + the number of the signal (launch/interrupts.py)


def print_error(message: str) -> None:
    """Print a message to stderr in one line, after the name of the program."""
    print(f"unweft: {' '.join(message.split())}", file=sys.stderr)

"""The error for bad input from a user, errors as text, and the exit status of an unconfirmed leave."""

from __future__ import annotations

LEAVE_UNCONFIRMED = (
    3  # exit status of a device that left, but nobody has confirmed that it knows of the leave
)


class InputError(ValueError):
    """Bad input. The user sees the message without a traceback, and the command exits with status 2.

    The message is one line: the place (a key path such as `model.target_modules`, or file and line), the
    value found there, and the allowed values.
    """


def describe(error: BaseException) -> str:
    """The type and the text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

"""The error for bad input from a user, and errors as text."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The user sees the message without a traceback, and the command exits with status 2.

    The message is one line: the place (a key path such as `model.target_modules`, or file and line), the
    value found there, and the allowed values.
    """


def describe(error: BaseException) -> str:
    """The type and the text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

"""The one error for what a user got wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: shown to the user as it is, without a traceback; the command exits with status 2.

    The message is one line that says where (key path such as `model.target_modules`, or file and line),
    what was found there, and what is allowed.
    """

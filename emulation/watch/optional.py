"""Loads the server of the page, whose packages are an extra."""

from __future__ import annotations

from types import ModuleType

from peers.errors import InputError


def load_serving() -> ModuleType:
    """emulation.watch.serving. Raises InputError if the packages of the extra `watch` are missing."""
    try:
        from emulation.watch import serving
        from emulation.watch.server import chart_library

        chart_library()
    except ImportError as error:
        raise InputError(
            f"the page needs more packages ({error.name or error}); install them: pip install 'unweft[watch]'"
        ) from None
    return serving

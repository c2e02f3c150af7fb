"""The command line. It can be interrupted before it imports the commands (`emulation.commands.app`)."""

from __future__ import annotations

import sys
from typing import Any

from emulation.commands.exit_status import BAD_INPUT, FAILED, print_error
from emulation.launch import interrupts
from peers.errors import InputError
from peers.runtime import standard_streams


def main() -> None:
    """Entry point. Exit status: 0 done, 1 the run failed, 2 bad input, 128 + signal interrupted."""
    standard_streams.protect()
    interrupts.install()
    status = _run()
    interrupts.set_mode("hold")
    if interrupts.received() and status:
        status = interrupts.exit_status()
        print_error(interrupts.message())
        _stop_children()
        interrupts.ignore()
    standard_streams.flush(sys.stdout, sys.stderr)
    sys.exit(status)


def _run() -> int:
    try:
        from emulation.commands.app import app

        interrupts.set_mode("raise")
        app()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return interrupts.exit_status()
    except InputError as error:
        interrupts.set_mode("hold")
        return _fail(BAD_INPUT, str(error))
    except OSError as error:  # a full disk, a folder that was deleted
        interrupts.set_mode("hold")
        return _fail(FAILED, str(error))
    return 0


def _fail(status: int, message: str) -> int:
    if not interrupts.received():
        print_error(message)
    return status


def _stop_children() -> None:
    """An interrupted forkserver may be busy with imports for seconds. It ends now."""
    if "emulation.launch.forkserver" in sys.modules:
        from emulation.launch.forkserver import stop_server

        stop_server()


def __getattr__(name: str) -> Any:
    """`app`, without its imports before `main` can be interrupted."""
    if name != "app":
        raise AttributeError(name)
    from emulation.commands.app import app

    return app

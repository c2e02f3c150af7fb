"""Serves the page of a run: in this process, or in a process beside a run that goes on.

`python -m emulation.watch.serving DIR FD` serves on the bound socket FD until its standard input ends.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from emulation.watch import server
from emulation.watch.live_run import LiveRun
from peers.errors import InputError

PORT = 8765
NICE = 5  # the page is less urgent than the devices
GOODBYE_S = 2  # longest wait for open pages when the server ends
LOG = "watch.log"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def bind(host: str, port: int | None) -> socket.socket:
    """A bound socket. `port` None: PORT, or a free one if PORT is taken. Raises InputError."""
    try:
        return _bound(host, PORT if port is None else port)
    except OSError as error:
        with suppress(OSError):
            if port is None:
                return _bound(host, 0)
        at = f"{host}:{PORT if port is None else port}"
        raise InputError(
            f"--host, --port: cannot listen at {at} ({error.strerror}); allowed: an address of this machine "
            "and a free port"
        ) from None


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def new_token(host: str) -> str:
    """A token for an address that other machines can reach; "" for a loopback address."""
    return "" if is_loopback(host) else secrets.token_urlsafe(18)


def url(bound: socket.socket, token: str) -> str:
    """The address of the page. For all interfaces (0.0.0.0, ::) it names this machine."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def make_server(folder: Path, token: str = "") -> uvicorn.Server:
    """The server of the page of a run."""
    running: uvicorn.Server
    config = uvicorn.Config(
        server.make_app(LiveRun(folder), token, lambda: running.should_exit),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GOODBYE_S,
    )
    running = uvicorn.Server(config)
    return running


def _end_with_input(running: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    running.should_exit = True


@contextmanager
def beside(folder: Path) -> Iterator[str]:
    """Serve the run that this process starts, from a child process; yields the address of the page.

    The child ends with this process. If it fails, the run goes on; its output is in LOG.
    """
    with bind("127.0.0.1", None) as bound, (folder / LOG).open("wb") as log:
        command = [sys.executable, "-m", "emulation.watch.serving", str(folder), str(bound.fileno())]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[bound.fileno()],
            start_new_session=True,
        )
        address = url(bound, "")
    try:
        yield address
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with suppress(OSError):
        child.stdin.close()
    try:
        child.wait(GOODBYE_S + 3)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> int:
    folder, descriptor = sys.argv[1:]
    os.nice(NICE)
    with socket.socket(fileno=int(descriptor)) as bound:
        running = make_server(Path(folder))
        threading.Thread(target=_end_with_input, args=(running,), daemon=True).start()
        running.run(sockets=[bound])
    return 0


if __name__ == "__main__":
    sys.exit(main())

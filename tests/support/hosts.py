"""Several hosts on this machine: network namespaces with addresses and host names of their own, and a switch.

Each host also has a monotonic clock of its own, as after another boot, and its wall clock can be wrong. No
interface of this machine is touched, and no packet leaves the namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LIBFAKETIME = "libfaketime.so.1"
NETWORK = "10.88.0"


def missing() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "no hosts: network namespaces need root, iproute2 and util-linux"
    if faketime() is None:
        return f"no hosts: {LIBFAKETIME} not found (Debian's package: libfaketime)"
    with ExitStack() as stack:
        try:
            _namespace(stack, f"unweft-try-{os.getpid()}")
        except subprocess.CalledProcessError as error:
            return f"no hosts: no network namespace: {error.stderr.strip()}"
    return None


def faketime() -> str | None:
    """The path of the library that changes a process's wall clock."""
    return next((str(path) for path in Path("/usr/lib").glob(f"**/faketime/{LIBFAKETIME}")), None)


@dataclass
class Host:
    """`ahead_s`: of its wall clock. `booted_s`: its monotonic clock less this machine's."""

    name: str
    namespace: str
    address: str
    ahead_s: float = 0.0
    booted_s: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        """Start a process on this host, under a name."""
        clock = {"LD_PRELOAD": str(faketime()), "FAKETIME": f"{self.ahead_s:+f}s"} if self.ahead_s else {}
        given = {**os.environ, **variables, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        words = [f"{key}={value}" for key, value in clock.items()]
        script = f'hostname {self.name} && exec env {" ".join(words)} "$@"'
        outside = [
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            "--uts",
            "--time",
            "--fork",
            "--kill-child",
        ]
        inside = ["--monotonic", str(self.booted_s), "sh", "-c", script, "sh", *command]
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [*outside, *inside], env=given, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def vanish(self) -> None:
        """Take the host out of the network, as when it loses power: no packet tells anyone."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()  # --kill-child: the device is killed too
            process.wait()


@contextmanager
def hosts(ahead_s: Sequence[float]) -> Iterator[list[Host]]:
    """Hosts h1, h2, … on one network. `ahead_s`: of the wall clock of each."""
    token = os.getpid()
    with ExitStack() as stack:
        switch = _namespace(stack, f"unweft-switch-{token}")
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        found = []
        for number, ahead in enumerate(ahead_s, start=1):
            name = f"h{number}"
            namespace = _namespace(stack, f"unweft-{name}-{token}")
            _connect(switch, namespace, name, f"{NETWORK}.{number}")
            host = Host(name, namespace, f"{NETWORK}.{number}", ahead, booted_s=1000 * number)
            stack.callback(host.kill)
            found.append(host)
        yield found


def device_pid(folder: Path) -> int:
    """The process of a device, as this machine sees it. Its own process id is the same: no pid namespace."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return int(next(line["pid"] for line in map(json.loads, lines) if line["event"] == "started"))


def tell(folder: Path, number: signal.Signals) -> None:
    """Send a signal to a device."""
    os.kill(device_pid(folder), number)


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _connect(switch: str, namespace: str, name: str, address: str) -> None:
    _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("-n", switch, "link", "set", name, "master", "switch", "up")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "link", "set", "eth0", "up")


def _namespace(stack: ExitStack, name: str) -> str:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    return name


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)

"""A whole `unweft run` in a child process, for a benchmark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RUN = "from emulation.cli import main; main()"
TCP_RUN = (  # all links over TCP, where the kernel counts their bytes
    "from emulation.launch import local, ports; "
    f"local.endpoints = lambda scenario: ports.loopback_ports; {RUN}"
)


def whole_run(
    scenario: str,
    out: Path,
    *options: str,
    timeout_s: float | None = None,
    within: Callable[..., list[str]] = lambda *command: list(command),
    code: str = RUN,
) -> None:
    """Run a scenario (TOML text) into the new folder `out`. within: wraps the command, as a namespace does.
    code: what Python runs.

    Raises RuntimeError if the run fails or takes longer than `timeout_s`.
    """
    file = out.with_name(f"{out.name}.toml")
    file.write_text(scenario, encoding="utf-8")
    command = within(sys.executable, "-c", code, "run", str(file), *options, "--out", str(out))
    run_command(*command, timeout_s=timeout_s)


def run_command(*command: str, timeout_s: float | None = None) -> None:
    """Run the command of a whole run. Raises RuntimeError if it fails or takes longer than `timeout_s`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the run took more than {timeout_s:g} s") from None
    if done.returncode:
        raise RuntimeError(f"the run failed: {done.stderr.strip()}")

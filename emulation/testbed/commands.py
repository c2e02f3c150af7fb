"""Commands of other programs that start and end devices: docker, kubectl, and those of Slurm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType


def run_to_end(
    command: Sequence[str],
    timeout_s: float,
    text: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. `text`: its standard input. `variables`: added to the environment.

    Raises FileNotFoundError if it is not installed, and subprocess.TimeoutExpired.
    """
    return subprocess.run(
        command,
        input=text,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        start_new_session=True,  # Ctrl-C reaches only unweft, which ends the command cleanly
    )

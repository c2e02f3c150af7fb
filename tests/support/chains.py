"""Work for parallel chains, which child processes import."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from emulation.experiments.parallel import run_chains


def work(folder: Path, item: str) -> None:
    """Record the process and the end of an item. A "bad" item fails, and a "slow" one takes a minute."""
    if "bad" in item:
        raise RuntimeError(f"{item} cannot be done")
    (folder / f"{item}.pid").write_text(str(os.getpid()))
    began = time.monotonic()
    while "slow" in item and time.monotonic() < began + 60:
        time.sleep(0.05)
    with (folder / "done").open("a") as file:
        file.write(f"{item}\n")


def run(folder: Path, items: list[list[str]], jobs: int = 2) -> None:
    """Run the chains with logs in `folder`."""
    run_chains(items, partial(work, folder), str, jobs, folder / "logs", lambda: None)

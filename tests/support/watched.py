"""A server of the watch page in a thread of the test, and the files of a run that go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulation.watch import serving


@contextmanager
def served(folder: Path, token: str = "") -> Iterator[str]:
    """The address of the page of a run while the block runs, with the token if there is one."""
    server = serving.make_server(folder, token)
    with serving.bind("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield serving.url(bound, token)
        finally:
            server.should_exit = True
            thread.join()


def append(path: Path, *records: dict[str, Any]) -> None:
    """Add records to a file of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def event(t_s: float, name: str, round_: int = 9, **fields: object) -> dict[str, Any]:
    """A record of events.jsonl."""
    return {"life": 0, "t_s": t_s, "round": round_, "event": name, **fields}


def injected(t_s: float, kind: str, device: str, round_: int = 9) -> dict[str, Any]:
    """A record of injected.jsonl."""
    return {"round": round_, "kind": kind, "device": device, "t_s": t_s}


def reopen(folder: Path) -> None:
    """Make a written run one that goes on: no run.json, and no device has finished."""
    (folder / "run.json").unlink()
    for path in (folder / "devices").glob("*/events.jsonl"):
        lines = [line for line in path.read_text().splitlines() if '"finished"' not in line]
        path.write_text("".join(line + "\n" for line in lines))

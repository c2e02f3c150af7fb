"""Links over torch.distributed in real processes, one for each rank."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import traceback
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from transport.links.gloo_links import GlooLinks
from transport.links.zmq_dealer import Limits

WORLD = 3
DEADLINE_S = 100.0  # a machine may be busy
LIMITS = Limits(high_water=8, linger_ms=5000)
Scene = Callable[[GlooLinks], Coroutine[Any, Any, object]]


def in_all_ranks(scene: Scene, folder: Path, world: int = WORLD, last: int | None = None) -> list[object]:
    """Run `scene` in each rank; return the results of all ranks but `last`, which the scene kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    started = []
    try:
        for rank in range(world):
            mine, theirs = context.Pipe(duplex=False)
            args = (scene, rank, world, f"file://{folder / 'store'}", theirs)
            process = context.Process(target=_live, args=args)
            process.start()
            theirs.close()
            started.append((process, mine))
        return [_answer(pipe) for rank, (_, pipe) in enumerate(started) if rank != last]
    finally:
        for process, pipe in started:
            process.kill()
            process.join()
            pipe.close()


def _answer(pipe: Connection) -> object:
    assert pipe.poll(DEADLINE_S), "no answer in time"
    good, value = pipe.recv()
    assert good, value
    return value


def _live(scene: Scene, rank: int, world: int, store: str, answer: Connection) -> None:
    torch.set_num_threads(1)

    async def whole() -> object:
        links = GlooLinks(f"d{rank}", rank, world, store, LIMITS, patience_s=DEADLINE_S)
        await links.start()
        try:
            for other in range(world):
                links.connect(f"d{other}", f"gloo://{other}")
            return await scene(links)
        finally:
            await links.close()

    try:
        answer.send((True, asyncio.run(whole())))
    except Exception:
        answer.send((False, traceback.format_exc()))
    time.sleep(DEADLINE_S)  # until it is killed, so that no exit looks like the end of the stream

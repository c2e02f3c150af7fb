"""Links over torch.distributed: three real processes, each a rank."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import pytest
import torch

from emulation.bench.harness.fleet import config
from emulation.bench.harness.learner import BenchLearner
from emulation.launch.ports import free_ports, loopback
from peers.config import MixingConfig, RoundConfig
from peers.learning.learner import Learner
from peers.runtime.child_process import guard, redirect_output
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import count_drop, make_driver
from tests.support.ranks import DEADLINE_S, LIMITS, WORLD, in_all_ranks
from transport.links.gloo_links import GlooLinks
from transport.links.interface import Links
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity
from transport.shaping.accounting import Accounts
from transport.wire.packing import wire_bytes

ROUNDS = 6
MESSAGES, LARGE = 200, 70_000


def others(links: GlooLinks) -> list[str]:
    return [f"d{rank}" for rank in range(links.world) if rank != links.rank]


def message(source: str, n: int) -> list[bytes]:
    return [f"{source} {n}".encode(), bytes([n % 256]) * (n % 3 * LARGE), b""][: 1 + n % 3]


async def exchange(links: GlooLinks) -> object:
    """Every rank sends every other rank `MESSAGES` messages. Returns the errors."""

    async def send(peer: str) -> None:
        for n in range(MESSAGES):
            while not links.send(peer, message(links.device, n)):
                assert await links.wait_writable(peer, DEADLINE_S)

    sending = [asyncio.create_task(send(peer)) for peer in others(links)]
    seen = dict.fromkeys(others(links), 0)
    wrong = []
    while any(n < MESSAGES for n in seen.values()):
        received = await links.recv()
        expected = message(received.source, seen[received.source])
        seen[received.source] += 1
        if [bytes(f) for f in received.frames] != expected or received.wire_bytes != wire_bytes(expected):
            wrong.append((received.source, seen[received.source]))
    await asyncio.gather(*sending)
    assert await links.flush(DEADLINE_S)
    return wrong


def test_frames_arrive_whole_and_in_order(tmp_path: Path) -> None:
    assert in_all_ranks(exchange, tmp_path) == [[]] * WORLD


def tensor(rank: int) -> torch.Tensor:
    return torch.randn(100, 8, generator=torch.Generator().manual_seed(rank))


async def reduce_beside_messages(links: GlooLinks) -> object:
    mean = (await asyncio.gather(links.all_reduce_mean(tensor(links.rank)), exchange(links)))[0]
    return mean.tolist()


def test_all_reduce_gives_the_exact_mean_also_beside_messages(tmp_path: Path) -> None:
    mean = torch.stack([tensor(rank).double() for rank in range(WORLD)]).mean(0).float()
    assert in_all_ranks(reduce_beside_messages, tmp_path) == [mean.tolist()] * WORLD


async def refuse_what_no_receiver_takes(links: GlooLinks) -> object:
    peer = others(links)[0]
    refused = []
    for frames in ([], [b""] * 5, [bytes(LIMITS.max_frame_bytes + 1)]):
        try:
            links.send(peer, frames)
        except ValueError:
            refused.append(len(frames))
    links.connect("x", "gloo://7")
    links.connect("y", f"gloo://{links.rank}")
    links.connect("z", "tcp://127.0.0.1:1")
    links.disconnect(peer)
    return refused, [links.send(name, [b"a"]) for name in ("x", "y", "z", peer, "nobody")], links.address


def test_invalid_messages_and_addresses_are_refused(tmp_path: Path) -> None:
    first = in_all_ranks(refuse_what_no_receiver_takes, tmp_path)[0]
    assert first == ([0, 5, 1], [False] * 5, "gloo://0")


async def outlive(links: GlooLinks) -> object:
    """d2 is killed; d0 and d1 notice, and go on."""
    if links.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    links.connect("d2", "gloo://2", lambda peer: None if broken.done() else broken.set_result(peer))
    gone = await asyncio.wait_for(broken, DEADLINE_S)
    peer = others(links)[0]
    assert links.send(peer, [b"still here"])
    received = await asyncio.wait_for(links.recv(), DEADLINE_S)
    assert links.send("d2", [b"to the dead"])
    return gone, dict(links.unsent_bytes), bytes(received.frames[0])


def test_a_killed_peer_is_noticed_and_the_others_go_on(tmp_path: Path) -> None:
    assert (
        in_all_ranks(outlive, tmp_path, last=2)
        == [("d2", {"d2": wire_bytes([b"to the dead"])}, b"still here")] * 2
    )


async def close_alone(links: GlooLinks) -> object:
    """d0 closes its end at once; the others get what it sent before, then notice nothing."""
    if links.rank == 0:
        assert all(links.send(peer, [b"last"]) for peer in others(links))
        await links.close()
        try:
            await links.recv()
        except ConnectionError as error:
            return str(error)
    received = await asyncio.wait_for(links.recv(), DEADLINE_S)
    return received.source, bytes(received.frames[0])


def test_messages_sent_before_the_end_arrive(tmp_path: Path) -> None:
    answers = in_all_ranks(close_alone, tmp_path)
    assert answers == ["the links are closed", ("d0", b"last"), ("d0", b"last")]


# -- the same devices over gloo and over ZeroMQ ----------------------------------------------------------
def train(how: str, rank: int, addresses: list[str], folder: Path, lifeline: Connection) -> None:
    """One device that averages a matrix with its neighbours, `ROUNDS` times.

    In virtual time: with a real clock, a fast device may replace what it has not sent by its next version.
    """
    guard(lifeline)
    torch.set_num_threads(1)
    redirect_output(folder / f"{how}.{rank}.log")
    changes: dict[str, object] = {
        "clock": "virtual",
        "round": RoundConfig(count=ROUNDS, local_steps=1, deadline_s=DEADLINE_S),
        "mixing": MixingConfig(mode="paper-literal", gamma=0.5),  # at 1, all three end up the same
    }
    settings = config(WORLD).model_copy(update=changes)
    others = tuple(address for address in addresses if address != addresses[rank])
    group = {f"d{rank}": address for rank, address in enumerate(addresses)}
    where = (addresses[rank], addresses[rank], others, str(folder / how), WORLD)
    spec = DeviceSpec(f"d{rank}", settings, *where, group=group)

    async def live() -> None:
        links: Links = ZmqLinks(spec.id, spec.listen)
        if how == "gloo":
            links = GlooLinks(spec.id, rank, WORLD, f"file://{folder / 'store'}", patience_s=DEADLINE_S)
        accounts = Accounts()
        await links.start(count_drop(accounts))
        recorder = Recorder(folder / how / "devices" / spec.id, 0)
        learner = cast(Learner, BenchLearner(spec.id))
        await make_driver(spec, links, accounts, learner, recorder, DeviceIdentity.generate()).run()
        await links.close()

    asyncio.run(live())


def adapters(how: str, addresses: list[str], folder: Path) -> list[str]:
    """The hash of what each device exported at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "emulation.bench.harness.fleet"])
    lifeline, keep = context.Pipe(duplex=False)
    devices = [
        context.Process(target=train, args=(how, rank, addresses, folder, lifeline)) for rank in range(WORLD)
    ]
    try:
        for device in devices:
            device.start()
        for device in devices:
            device.join(2 * DEADLINE_S)
        logs = {log.name: log.read_text() for log in folder.glob("*.log")}
        assert [device.exitcode for device in devices] == [0] * WORLD, logs
    finally:
        for device in devices:
            device.kill()
            device.join()
        keep.close()
        lifeline.close()
    found = []
    for rank in range(WORLD):
        events = (folder / how / "devices" / f"d{rank}" / "events.jsonl").read_text().splitlines()
        found += [e["adapter_sha256"] for e in map(json.loads, events) if e["event"] == "exported"]
    return found


@pytest.mark.timeout(240)  # twice three processes, which take a while to start on a loaded machine
def test_the_same_seeds_and_rounds_give_the_same_adapters_as_over_zeromq(tmp_path: Path) -> None:
    over_gloo = adapters("gloo", [f"gloo://{rank}" for rank in range(WORLD)], tmp_path)
    over_zeromq = adapters("zeromq", list(map(loopback, free_ports(WORLD))), tmp_path)
    assert len(over_gloo) == WORLD and len(set(over_gloo)) == WORLD
    assert over_gloo == over_zeromq


def test_there_is_no_address_before_the_start() -> None:
    links = GlooLinks("d0", 0, 2, "file:///nowhere")
    with pytest.raises(RuntimeError, match="after start"):
        _ = links.address


def test_missing_ranks_are_an_error(tmp_path: Path) -> None:
    async def alone() -> None:
        links = GlooLinks("d0", 0, 2, f"file://{tmp_path / 'store'}", patience_s=0.2)
        with pytest.raises(OSError, match="rank 0 of 2"):
            await links.start()
        await links.close()

    asyncio.run(alone())

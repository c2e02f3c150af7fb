"""Members with the keys of the run that lie: no process ends, all is bounded, rounds go on."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record
from emulation.bench.harness.hostile_messages import HostileMessages
from peers.protocol.actions import Snapshot, Tell
from tests.support.live_devices import ROUNDS, Device, live, send_all, until
from tests.support.live_links import device
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity
from transport.wire.messages import Buffer, Envelope, Gossip, Message, Nack
from transport.wire.packing import pack

pytestmark = pytest.mark.timeout(300)  # thousands of messages on a loaded machine
MESSAGES = 2000
MORE_BYTES = 200 << 20


def framed(source: str, message: Message, seq: int) -> Sequence[Buffer]:
    return pack(Envelope(source, 0, seq), message)


async def join(evil: ZmqLinks, victim: Device, identity: DeviceIdentity, slot: int) -> None:
    """Become a member: say hello as an honest device would, and claim a slot."""
    name, protocol = evil.device, victim.driver.protocol
    hello = replace(protocol._connections._hello(reply=True), address=evil.address)
    claim = Record(name, 0, evil.address, slot, 50, 50, public=identity.public)
    claim = replace(claim, signature=identity.sign(claim.signed_data()))
    evil.connect("d0", victim.links.address)
    await send_all(evil, "d0", [framed(name, hello, 1)])
    await until(lambda: name in protocol.peers and protocol.peers[name].greeted)
    await send_all(evil, "d0", [framed(name, Gossip([claim.to_dict()], False, 0), 2)])
    await until(lambda: protocol.members.newest(name) is not None)


def test_two_thousand_hostile_messages_of_a_member(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def attack(devices: Mapping[str, Device]) -> None:
        victim, identity = devices["d0"], DeviceIdentity.generate()
        protocol = victim.driver.protocol
        async with device("d2") as evil:
            hello = replace(protocol._connections._hello(reply=True), address=evil.address)
            groups = ("early", "mid", "late")
            source = HostileMessages(3, "d2", identity, groups, hello, rounds=ROUNDS, slots=8)
            await join(evil, victim, identity, 2)
            for seq in range(3, MESSAGES + 3):
                source.members, source.epoch = list(protocol.members), protocol.round
                await send_all(evil, "d0", [source.next_frames(time.monotonic_ns(), seq)])
                if seq % 50 == 0:
                    await asyncio.sleep(0.01)
            await until(lambda: victim.refused() > MESSAGES / 4)

    outcome = live(run, attack, deadline_s=2.0)
    assert set(outcome.adapters) == {"d0", "d1"}
    for name in ("d0", "d1"):
        rounds = (run / "devices" / name / "metrics.jsonl").read_text().count("\n")
        assert rounds >= ROUNDS / 2
        assert (run / "devices" / name / "events.jsonl").stat().st_size < 1 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in run.iterdir()) == ["adapters", "devices"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MORE_BYTES
    assert outcome.events["d0"].get("handler_error", 0) == 0, caplog.text
    assert len(caplog.records) < 200


def test_a_fault_in_a_handler_drops_the_message_and_disconnects_its_sender(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def attack(devices: Mapping[str, Device]) -> None:
        victim = devices["d0"]
        protocol = victim.driver.protocol

        def fail(now: int, source: str, message: object) -> None:
            raise KeyError("a bug")

        protocol._handlers[Nack] = fail
        async with device("d2") as evil:
            await join(evil, victim, DeviceIdentity.generate(), 2)
            await send_all(evil, "d0", [framed("d2", Nack(n), n) for n in (10, 11)])
            await until(lambda: victim.links.security_events["handler_error"] == 1)
            await until(lambda: "d2" not in protocol.peers or victim.refused() > 1)

    outcome = live(tmp_path, attack, deadline_s=2.0)
    assert set(outcome.adapters) == {"d0", "d1"}
    assert outcome.events["d0"]["handler_error"] >= 1
    assert "KeyError: 'a bug' (test_hostile_members.py:" in caplog.text


def test_an_answer_that_cannot_be_packed_disconnects_the_peer(tmp_path: Path) -> None:
    async def attack(devices: Mapping[str, Device]) -> None:
        victim = devices["d0"]

        def answer(now: int, source: str, message: object) -> None:
            victim.driver.protocol._state.act(Tell("d1", Nack(-1)))

        victim.driver.protocol._handlers[Nack] = answer
        async with device("d2") as evil:
            await join(evil, victim, DeviceIdentity.generate(), 2)
            await send_all(evil, "d0", [framed("d2", Nack(1), 10)])
            await until(lambda: victim.links.security_events["handler_error"] == 1)

    assert set(live(tmp_path, attack, deadline_s=2.0).adapters) == {"d0", "d1"}


def test_a_name_writes_no_snapshot_outside_of_the_run(tmp_path: Path) -> None:
    async def attack(devices: Mapping[str, Device]) -> None:
        thread = devices["d0"].driver._c.learner_thread
        with pytest.raises(ValueError, match="cannot be a file name"):
            thread.snapshot(Snapshot(1, "before:/../../x"), "d0", 0)

    live(tmp_path / "run", attack)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(tmp_path.rglob("*x.safetensors"))


LOW_LIMIT = """
import asyncio, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from tests.support.live_links import LISTEN, device, next_of, both
async def main():
    async with device("d0", both()) as victim, device("d1", both()) as friend:
        print(victim.address, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(0.3)
        with open("/dev/null"):  # descriptors are left
            pass
        assert victim.security_events["inbox_full"] > 0, victim.security_events
        print("alive", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        friend.connect("d0", victim.address)
        friend.send("d0", [b"hello"])
        print(bytes((await next_of(victim)).frames[0]).decode(), flush=True)
asyncio.run(main())
"""


def test_silent_connections_take_no_more_than_their_share_of_descriptors() -> None:
    """400 connections that say nothing, at a process with 256 descriptors."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with (
        subprocess.Popen(
            [sys.executable, "-c", LOW_LIMIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as victim,
        ExitStack() as silent,
    ):
        assert victim.stdin is not None and victim.stdout is not None
        host, port = victim.stdout.readline().strip().removeprefix("tcp://").split(":")
        for n in range(400):
            silent.enter_context(socket.create_connection((host, int(port))))
            if n % 20 == 0:
                time.sleep(0.02)
        victim.stdin.write("\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == "alive\n"
        silent.close()
        victim.stdin.write("\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == "hello\n"
    assert victim.returncode == 0


def test_the_state_after_a_fault_has_the_blocks_of_the_table(tmp_path: Path) -> None:
    """A Leave that is merged before its handler fails still deletes the block."""

    async def attack(devices: Mapping[str, Device]) -> None:
        protocol = devices["d0"].driver.protocol
        identity = DeviceIdentity.generate()
        async with device("d2") as evil:
            await join(evil, devices["d0"], identity, 2)
            await until(lambda: BlockKey("d2", 0) in protocol.blocks)
            sync, calls = protocol._replicas.sync, iter((True,))

            def fail_once(now: int) -> None:
                if next(calls, False):
                    raise RuntimeError("in the middle")
                sync(now)

            protocol._membership._replicas.sync = fail_once  # type: ignore[method-assign]
            known = protocol.members.newest("d2")
            assert known is not None
            leave = replace(known, status=5, lamport=known.lamport + 1)  # type: ignore[arg-type]
            leave = replace(leave, signature=identity.sign(leave.signed_data()))
            await send_all(evil, "d0", [framed("d2", Gossip([leave.to_dict()], False, 0), 10)])
            await until(lambda: BlockKey("d2", 0) not in protocol.blocks)

    outcome = live(tmp_path, attack, deadline_s=2.0)
    assert outcome.events["d0"]["handler_error"] == 1

"""Links over socket files: the same admission as over TCP, no encryption, and no way out of the folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zmq

from tests.support.live_links import NEW, OLD, both, device, listed, next_of, parts, run, until
from transport.links.endpoints import reachable_from
from transport.links.zmq_dealer import Limits
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import NetworkKeys
from transport.security.zap import DOMAIN, LOCAL_USER, ZapHandler

SHORT = Limits(linger_ms=10)


@pytest.fixture
def folder() -> Iterator[str]:
    with TemporaryDirectory() as path:  # mode 0700, and short enough for a socket
        yield path


def at(folder: str, name: str) -> str:
    return f"ipc://{folder}/{name}"


def test_holders_of_the_key_talk_and_the_others_are_refused_and_counted(folder: str) -> None:
    async def test() -> None:
        async with (
            device("d1", both(), listen=at(folder, "1")) as d1,
            device("d2", both(NEW), listen=at(folder, "2"), limits=SHORT) as wrong,
            device("d3", None, listen=at(folder, "3"), limits=SHORT) as without,
            device("d0", both(), listen=at(folder, "0")) as d0,
        ):
            for stranger in (wrong, without):
                stranger.connect("d1", d1.address)
                stranger.send("d1", [b"secret"])
            await until(
                lambda: bool(d1.security_events["inbox_auth"] and d1.security_events["inbox_protocol"])
            )
            await until(lambda: bool(wrong.security_events["link_auth"] and without.security_events.total()))
            d0.connect("d1", d1.address)
            d0.send("d1", [b"good", bytes(1 << 20)])
            received = await next_of(d1)  # and nothing before it
            assert received.source == "d0" and parts(received) == [b"good", bytes(1 << 20)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(d1.recv(), 0.05)

    run(test())


def test_a_socket_file_has_no_heartbeat_and_a_port_has_one(folder: str) -> None:
    """The kernel reports the end of the process at the other end of a socket file."""

    async def test() -> None:
        for listen, beats in ((at(folder, "0"), 0), ("tcp://127.0.0.1:0", Limits().heartbeat_ms)):
            async with device("d0", both(), listen=listen) as d0:
                d0.connect("d1", d0.address)
                sockets = [d0._inboxes[0][0], d0._dealers["d1"]._socket]
                assert [s and s.get(zmq.HEARTBEAT_IVL) for s in sockets] == [beats, beats]

    run(test())


def test_a_rotation_ends_the_old_key(folder: str) -> None:
    async def test() -> None:
        old, known, new = both(), NetworkKeys((OLD, NEW)), NetworkKeys((NEW, OLD))
        async with (
            device("d1", old, listen=at(folder, "1")) as d1,
            device("d0", known, listen=at(folder, "0")) as d0,
        ):
            d0.connect("d1", d1.address)
            d0.send("d1", [b"under the old key"])
            assert parts(await next_of(d1)) == [b"under the old key"]
            await d1.use_keys(known)
            await d1.use_keys(new)
            await d0.use_keys(new)
            heard = asyncio.create_task(next_of(d1))  # libzmq ends connections within calls on their socket
            await until(lambda: d0.security_events["link_auth"] > 0)  # the old connection and key are no use
            d0.send("d1", [b"under the new key"])
            assert parts(await heard) == [b"under the new key"]
            async with device("d2", old, listen=at(folder, "2"), limits=SHORT) as late:
                late.connect("d1", d1.address)
                late.send("d1", [b"too late"])
                await until(lambda: late.security_events["link_auth"] > 0)

    run(test())


def test_a_folder_that_others_may_enter_is_refused(folder: str) -> None:
    Path(folder).chmod(0o755)

    async def test() -> None:
        links = ZmqLinks("d0", at(folder, "0"), both())
        with pytest.raises(PermissionError, match="mode 0700"):
            await links.start()
        await links.close()

    run(test())


def test_a_link_stays_in_its_folder_and_scheme(folder: str) -> None:
    async def test() -> None:
        async with device("d0", both(), listen=at(folder, "0")) as d0:
            elsewhere = ["ipc:///tmp/x", "ipc://@x", f"{at(folder, 'a')}/b", "tcp://127.0.0.1:1"]
            for address in elsewhere:
                d0.connect("d1", address)
                assert not d0.send("d1", [b"x"])
            assert d0.security_events["bad_address"] == len(elsewhere)

    run(test())
    assert [path.name for path in Path(folder).iterdir()] == ["0"]
    assert not reachable_from("tcp://127.0.0.1:1", at(folder, "0"))


def test_a_password_opens_one_inbox_only_and_never_stands_for_a_device() -> None:
    inbox, handler = "ipc:///run/x/1", ZapHandler(both(), "ipc:///run/x/1")

    def status(password: bytes, user: bytes = LOCAL_USER, mechanism: bytes = b"PLAIN") -> bytes:
        return handler.answer([b"1.0", b"7", DOMAIN, b"", b"d0", mechanism, user, password])[2]

    right = both().local_password(inbox)
    assert status(right) == b"200"
    refused = [both(NEW).local_password(inbox), both().local_password("ipc:///run/x/2"), b"", right[:-1]]
    assert [status(password) for password in refused] == [b"400"] * 4
    assert status(right, user=b"d1") == status(right, mechanism=b"NULL") == b"400"
    assert handler.answer([b"1.0", b"7", DOMAIN, b"", b"d0", b"CURVE", bytes(32)])[2] == b"400"
    over_tcp = ZapHandler(both()).answer([b"1.0", b"7", DOMAIN, b"", b"d0", b"PLAIN", LOCAL_USER, right])
    assert over_tcp[2] == b"400"
    assert not listed("d0")["d0"].admits_locally(inbox, right)

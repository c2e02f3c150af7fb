"""The real clock: waits end at their time or with news, and other tasks run between due events."""

from __future__ import annotations

import asyncio

from transport.clocks.real import FAIR, RealClock

MS = 1_000_000
LONG_NS = 30_000 * MS


def test_a_wait_ends_at_its_time() -> None:
    async def body() -> None:
        clock = RealClock()
        due = clock.now() + 20 * MS
        while not await clock.reach(due):  # asyncio's timers may ring early
            pass
        assert clock.now() >= due

    asyncio.run(body())


def test_news_ends_a_wait() -> None:
    async def body() -> None:
        clock = RealClock()
        asyncio.get_running_loop().call_later(0.01, clock.poke)
        assert not await clock.reach(clock.now() + LONG_NS)
        asyncio.get_running_loop().call_later(0.01, clock.poke)
        assert not await clock.reach(None)

    asyncio.run(body())


def test_a_wait_for_no_time_at_all_lets_other_tasks_run() -> None:
    async def body() -> None:
        clock = RealClock()
        ran: list[str] = []
        asyncio.get_running_loop().call_soon(ran.append, "other")
        asyncio.get_running_loop().call_later(0.01, clock.poke)
        assert not await clock.reach(1 << 63)
        assert ran == ["other"]

    asyncio.run(body())


def test_news_that_came_before_the_wait_is_not_lost() -> None:
    async def body() -> None:
        clock = RealClock()
        clock.poke()
        clock.poke()
        assert not await clock.reach(None)
        clock.poke()
        assert await clock.reach(clock.now())

    asyncio.run(body())


def test_other_tasks_run_between_due_events() -> None:
    async def body() -> None:
        clock, ran = RealClock(), asyncio.Event()
        asyncio.get_running_loop().call_soon(ran.set)
        for _ in range(FAIR):
            assert await clock.reach(clock.now())
        assert ran.is_set()

    asyncio.run(body())


def test_a_wait_can_be_cancelled_and_begun_again() -> None:
    async def body() -> None:
        clock = RealClock()
        waiting = asyncio.create_task(clock.reach(clock.now() + LONG_NS))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        clock.poke()  # nobody waits
        assert not await clock.reach(None)

    asyncio.run(body())


def test_an_event_planned_in_between_ends_the_wait_at_its_time() -> None:
    async def body() -> None:
        clock = RealClock()
        waiting = asyncio.create_task(clock.reach(clock.now() + LONG_NS))
        await asyncio.sleep(0)
        clock.poke(clock.now() + LONG_NS // 2)
        planned = clock.now() + 20 * MS
        clock.poke(planned)
        clock.poke(clock.now() + LONG_NS // 2)  # it does not move the alarm
        for _ in range(3):  # no turn of the waiter before: it would cost CPU time for each message
            await asyncio.sleep(0)
        assert not waiting.done()
        assert not await waiting
        assert clock.now() >= planned - MS  # asyncio's timers may ring early

    asyncio.run(body())


def test_events_planned_later_than_the_awaited_one_do_not_matter() -> None:
    async def body() -> None:
        clock = RealClock()
        due = clock.now() + 20 * MS
        clock.poke(due + LONG_NS)  # before the wait
        waiting = asyncio.create_task(clock.reach(due))
        await asyncio.sleep(0)
        clock.poke(due + LONG_NS)  # and in it
        await waiting
        assert clock.now() >= due - MS

    asyncio.run(body())


def test_an_event_that_is_due_ends_the_wait_at_once() -> None:
    async def body() -> None:
        clock = RealClock()
        waiting = asyncio.create_task(clock.reach(None))
        await asyncio.sleep(0)
        clock.poke(clock.now())
        assert not await waiting

    asyncio.run(body())

"""What only asyncio has, and what only threads have."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest
from support import DEADLINE, QUICK, Proxy, Server, await_true, tick

from event_pipeline import AsyncEventPipeline, EventPipeline, EventPipelineError


async def test_a_cancelled_wait_loses_no_event(server: Server) -> None:
    async with AsyncEventPipeline(server.url) as events, events.subscribe() as subscription:
        for n in range(200):
            waiting = asyncio.create_task(subscription.next())
            await asyncio.sleep(0 if n % 2 else 0.001)
            publishing = asyncio.create_task(events.publish(tick(n)))
            await asyncio.sleep(n % 7 / 2000)
            waiting.cancel()
            await publishing
            try:
                event = await waiting
            except asyncio.CancelledError:
                event = await subscription.next(DEADLINE)
            assert event.payload == {"n": n}  # type: ignore[union-attr]


async def test_many_tasks_share_a_client(server: Server) -> None:
    async with AsyncEventPipeline(server.url) as events, events.publisher(capacity=50) as publisher:
        await asyncio.gather(
            *(events.publish(tick(n)) for n in range(50)), *(publisher.put(tick(n)) for n in range(500))
        )
        await publisher.flush(DEADLINE)
        assert (await events.stats())["total_events"] == 550


async def test_a_token_may_come_from_a_coroutine(make_server: type[Server]) -> None:
    server = make_server(API_KEY="open-sesame", REQUIRE_AUTH="true")

    async def token() -> str:
        await asyncio.sleep(0)
        return "open-sesame"

    async with AsyncEventPipeline(server.url, token=token) as events, events.subscribe() as subscription:
        await events.publish(tick(1))
        assert (await subscription.next(DEADLINE)).payload == {"n": 1}  # type: ignore[union-attr]


RECONNECTIONS = int(os.environ.get("RECONNECTIONS", "100"))


async def test_reconnections_leave_nothing_behind(server: Server, proxy: Proxy) -> None:
    async with AsyncEventPipeline(proxy.url, backoff=QUICK) as events, events.subscribe(on_gap=print) as subscription:

        async def cut(times: int) -> int:
            for n in range(times):
                proxy.cut()
                await events.publish(tick(n))
                assert (await subscription.next(DEADLINE)).payload == {"n": n}
            gc.collect()
            return len(gc.get_objects())

        before = await cut(20)
        assert await cut(RECONNECTIONS) < before + 500


def test_a_reader_is_woken_when_another_thread_closes(server: Server) -> None:
    with EventPipeline(server.url) as events:
        subscription = events.subscribe().open()
        read: list[object] = []
        reader = threading.Thread(target=lambda: read.extend(subscription))
        reader.start()
        events.publish(tick(1))
        await_true("the event is read", lambda: read)
        subscription.close()
        reader.join(DEADLINE)
        assert not reader.is_alive() and len(read) == 1


def test_what_a_program_puts_before_it_fails_is_sent(server: Server) -> None:
    with EventPipeline(server.url) as events:
        with pytest.raises(ZeroDivisionError), events.publisher() as publisher:
            for n in range(100):
                publisher.put(tick(n))
            _ = 1 / 0
        assert events.stats()["total_events"] == 100
        with pytest.raises(EventPipelineError, match="closed"):
            publisher.put(tick(1))


def test_a_loop_that_is_left_without_close_unsubscribes(server: Server) -> None:
    with EventPipeline(server.url) as events:
        events.publish(tick(1))
        for _ in events.subscribe(last=1):
            break
        await_true("nobody subscribes", lambda: events.stats()["router"]["active_subscribers"] == 0)

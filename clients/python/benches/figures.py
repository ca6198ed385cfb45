#!/usr/bin/env python3
"""How many events one core publishes, acknowledged as synced, and how soon clients are back after a restart.

clients/python/test/run target/release/event-pipeline measure
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "test"))

from support import Server

from event_pipeline import AsyncEventPipeline, EventPipeline, NewEvent, State

SECONDS = float(os.environ.get("SECONDS", "5"))
CLIENTS = int(os.environ.get("CLIENTS", "1000"))


def ticks(count: int) -> list[NewEvent]:
    """Made anew, as a timer makes them."""
    return [NewEvent("timer_tick", "timer_service", "exam-08", "ada", {"remaining_seconds": n}) for n in range(count)]


def report(what: str, count: int, began: float) -> None:
    print(f"{what:56}{count / (time.monotonic() - began):>10,.0f} events/s", flush=True)


def blocking(url: str, batch: int) -> None:
    with EventPipeline(url) as events, events.publisher(batch=batch) as publisher:
        began, count = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            for event in ticks(100):
                publisher.put(event)
            count += 100
        publisher.flush()
        assert publisher.counts.stored == count
        report(f"threads: publisher, {batch} in a message", count, began)


def requests(url: str) -> None:
    with EventPipeline(url) as events:
        began, count = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            count += len(events.publish_all(ticks(500)).ids)
        report("threads: publish_all, 500 in a request", count, began)


def one_by_one(url: str) -> None:
    with EventPipeline(url) as events:
        began, count = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            events.publish(ticks(1)[0])
            count += 1
        report("threads: publish, one request after the other", count, began)


async def asynchronous(url: str, batch: int) -> None:
    async with AsyncEventPipeline(url) as events, events.publisher(batch=batch) as publisher:
        began, count = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            for event in ticks(100):
                await publisher.put(event)
            count += 100
        await publisher.flush()
        assert publisher.counts.stored == count
        report(f"asyncio: publisher, {batch} in a message", count, began)


async def reading(url: str) -> None:
    async with AsyncEventPipeline(url) as events:
        began, count = time.monotonic(), 0
        async with events.subscribe(after="evt_000000000000", on_gap=print) as subscription:
            async for _ in subscription:
                count += 1
                if time.monotonic() - began > SECONDS:
                    break
        report("asyncio: subscribe, history", count, began)


async def restart(server: Server) -> None:
    """Subscribes with many clients, restarts the server, and notes when each of them is live again."""
    back: list[float] = []
    tries: list[float] = []
    is_down = False

    def tell(state: State) -> None:
        if is_down and state.phase == "connecting":
            tries.append(time.monotonic())
        elif is_down and state.phase == "catching-up":
            back.append(time.monotonic())

    clients = [AsyncEventPipeline(server.url) for _ in range(CLIENTS)]
    subscriptions = [client.subscribe(on_gap=print, on_state=tell) for client in clients]
    for subscription in subscriptions:
        await subscription.open()
    readers = [asyncio.create_task(subscription.next()) for subscription in subscriptions]
    is_down = True
    server.end(signal.SIGTERM)
    server.start()
    up = time.monotonic()
    while len(back) < CLIENTS:
        await asyncio.sleep(0.01)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    for subscription in subscriptions:
        await subscription.close()
    for client in clients:
        await client.close()
    after = sorted(max(0.0, at - up) for at in back)
    most = max(sum(at <= other < at + 0.1 for other in tries) for at in tries)
    print(
        f"{CLIENTS} clients after a restart: back after {statistics.median(after):.2f} s at the median, the last after "
        f"{after[-1]:.2f} s; at most {most} tries within 0.1 s"
    )


def main() -> None:
    server = Server(DURABILITY="full", MAX_WS_CONNECTIONS_PER_IP=str(2 * CLIENTS)).start()
    cores = sorted(os.sched_getaffinity(0))
    if server.process is not None and len(cores) > 1:
        # One core for the client; the server has the others.
        os.sched_setaffinity(server.process.pid, cores[1:])
    os.sched_setaffinity(0, cores[:1])
    steps: list[Callable[[], None]] = [
        lambda: requests(server.url),
        lambda: blocking(server.url, 256),
        lambda: blocking(server.url, 1),
        lambda: asyncio.run(asynchronous(server.url, 256)),
        lambda: asyncio.run(asynchronous(server.url, 1)),
        lambda: one_by_one(server.url),
        lambda: asyncio.run(reading(server.url)),
    ]
    try:
        for step in steps if SECONDS else ():
            step()
        os.sched_setaffinity(0, cores)
        asyncio.run(restart(server))
    finally:
        server.close()


if __name__ == "__main__":
    main()

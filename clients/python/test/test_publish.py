"""Publishing one event or many, in requests and in the background: each is stored once, whatever breaks."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from support import DEADLINE, Proxy, Server, Shells, await_true, tick

from event_pipeline import InvalidEvent, NewEvent, Refused, RefusedEvents, Unavailable

STRIDE = int(os.environ.get("CUT_STRIDE", "37"))
"""The quick tier cuts at every 37th byte, the long one at each."""


def numbers(server: Server) -> list[int]:
    return [event["payload"]["n"] for event in server.stored()]


def test_a_published_event_is_stored_and_synced(client: Any, make_server: Any, shell: Shells) -> None:
    receipt = client.publish(NewEvent("timer_tick", "timer", "exam-08", "ada", {"ü": "☃"}))
    assert (receipt.id, receipt.ack, receipt.replayed) == ("evt_000000000001", "stored", False)
    (event,) = client.query()
    assert (event.session_id, event.user_id, event.payload) == ("exam-08", "ada", {"ü": "☃"})
    synced = make_server(DURABILITY="full")
    assert shell.client(synced.url).publish(tick(1)).ack == "synced"


def test_many_events_are_stored_together_or_not_at_all(client: Any, server: Server) -> None:
    assert client.publish_all(tick(n) for n in range(3)).ids == tuple(f"evt_{n:012x}" for n in (1, 2, 3))
    with pytest.raises(Refused) as refused:
        client.publish_all([tick(3), {**tick(4), "event_type": "timer_tock"}])
    assert refused.value.faults[0].loc == ("body", 1, "event_type") and refused.value.problem == "invalid"
    assert numbers(server) == [0, 1, 2]


def test_a_key_of_the_users_own_is_honoured_and_a_conflict_refused(client: Any, server: Server) -> None:
    event = {**tick(1), "idempotency_key": "answer-7f3a"}
    first, second = client.publish(event), client.publish(event)
    assert first.id == second.id and second.replayed and not first.replayed
    assert client.publish_all([event, tick(2)]).ids[0] == first.id
    with pytest.raises(Refused, match="used for another event"):
        client.publish({**event, "payload": {}})
    assert numbers(server) == [1, 2]


@pytest.mark.parametrize(
    ("event", "where"),
    [
        ({"source": "timer"}, "event.event_type"),
        ({"event_type": "timer_tick", "source": "a b"}, "event.source"),
        ({**tick(1), "sesion_id": "x"}, "event.sesion_id"),
        ({**tick(1), "user_id": 7}, "event.user_id"),
        ({**tick(1), "session_id": "s" * 201}, "event.session_id"),
        ({**tick(1), "payload": []}, "event.payload"),
        ({**tick(1), "payload": {"n": float("nan")}}, "event.payload"),
        ({**tick(1), "payload": {"n": object()}}, "event.payload"),
        ({**tick(1), "payload": {"n": "\ud800"}}, "event.payload"),
        ({**tick(1), "idempotency_key": ""}, "event.idempotency_key"),
        ("timer_tick", "event"),
    ],
)
def test_a_bad_event_says_where_before_anything_is_sent(shell: Shells, event: Any, where: str) -> None:
    client = shell.client("http://127.0.0.1:1")
    with pytest.raises(InvalidEvent) as invalid:
        client.publish(event)
    assert invalid.value.where == where and str(invalid.value).startswith(where)
    with pytest.raises(InvalidEvent, match=r"events\[1\]"):
        client.publish_all([tick(1), event])


def test_an_event_whose_answer_is_cut_at_any_byte_is_stored_once(through: Any, proxy: Proxy, server: Server) -> None:
    through.publish(tick(0))
    proxy.pattern = b"POST /events"
    cuts = range(0, 600, STRIDE)
    for n in cuts:
        proxy.cut_after = n
        through.publish(tick(n + 1))
    assert proxy.cuts == len(cuts)
    assert numbers(server) == [0, *(n + 1 for n in cuts)]


def test_a_request_that_is_cut_at_any_byte_is_sent_again(through: Any, proxy: Proxy, server: Server) -> None:
    through.publish(tick(0))
    proxy.pattern = b"POST /events"
    cuts = range(1, 340, STRIDE)
    for n in cuts:
        proxy.cut_request_after = n
        through.publish(tick(n))
    assert numbers(server) == [0, *cuts] and proxy.cuts == len(cuts)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("batch", [1, 256])
def test_a_publisher_stores_each_event_once_in_order_while_the_server_ends_again_and_again(
    client: Any, server: Server, how: signal.Signals, batch: int
) -> None:
    server.end()
    server.settings["DURABILITY"] = "full"
    server.start()
    stop = threading.Event()

    def break_it() -> None:
        for _ in range(3):
            events = server.count()
            await_true("events arrive", lambda: server.count() > events)
            server.end(how)
            server.start()
        stop.set()

    with client.publisher(batch=batch, capacity=500) as publisher:
        breaker = threading.Thread(target=break_it)
        breaker.start()
        count = 0
        while not stop.is_set():
            publisher.put(tick(count))
            count += 1
        breaker.join()
        publisher.flush(DEADLINE)
        counts = publisher.counts
    assert numbers(server) == list(range(count))
    assert (counts.stored, counts.waiting, counts.refused) == (count, 0, 0)


def test_a_publisher_whose_connection_is_cut_at_any_byte_stores_each_event_once(
    through: Any, proxy: Proxy, server: Server
) -> None:
    proxy.pattern = b"GET /ws/publish"
    count = 0
    for cut in range(1, 700, STRIDE):
        proxy.cut_after = cut
        with through.publisher(batch=1) as publisher:
            for _ in range(12):
                publisher.put(tick(count))
                count += 1
    assert proxy.cuts > 10 and numbers(server) == list(range(count))


def test_a_refused_event_is_told_and_takes_no_other_with_it(client: Any, server: Server) -> None:
    bad = {**tick(50), "event_type": "timer_tock"}
    publisher = client.publisher()
    publisher.open()
    for n in range(100):
        publisher.put(bad if n == 50 else tick(n))
    with pytest.raises(RefusedEvents) as refused:
        publisher.flush(DEADLINE)
    assert refused.value.count == 1 and refused.value.refusals[0][0] == bad
    assert "Unknown event type 'timer_tock'" in str(refused.value)
    publisher.close()
    assert sorted(numbers(server)) == [n for n in range(100) if n != 50]
    heard: list[Any] = []
    with client.publisher(on_refused=lambda event, error: heard.append((event, error.detail))) as publisher:
        publisher.put(bad)
    assert heard[0][0] == bad and "Unknown event type" in heard[0][1]


def test_events_beyond_a_rate_limit_are_sent_later(shell: Shells, make_server: Any) -> None:
    server = make_server(RATE_LIMIT_PUBLISH="60/minute")
    with shell.client(server.url).publisher(batch=1) as publisher:
        for n in range(61):
            publisher.put(tick(n))
        publisher.flush(DEADLINE)
        assert publisher.counts.refused == 0
    assert sorted(numbers(server)) == list(range(61))


def test_what_waits_for_a_dead_server_is_bounded(shell: Shells, server: Server) -> None:
    server.end()
    client = shell.client(server.url)
    with client.publisher(capacity=10, when_full="drop_oldest") as publisher:
        for n in range(25):
            publisher.put(tick(n))
        assert (publisher.counts.waiting, publisher.counts.dropped) == (10, 15)
        assert publisher.state.phase in ("waiting", "connecting")
        server.start()
        publisher.flush(DEADLINE)
    assert numbers(server) == list(range(15, 25))


def test_a_full_publisher_makes_its_producer_wait(server: Server) -> None:
    shell = Shells("blocking")
    server.end()
    with shell.client(server.url).publisher(capacity=10) as publisher:
        for n in range(10):
            publisher.put(tick(n), timeout=0)
        with pytest.raises(TimeoutError):
            publisher.put(tick(10), timeout=0.01)
        server.start()
        publisher.put(tick(10), timeout=DEADLINE)
    shell.close()
    assert numbers(server) == list(range(11))


def test_publishing_to_a_dead_server_ends_with_what_was_tried(shell: Shells) -> None:
    client = shell.client("http://127.0.0.1:1", timeout=0.3)
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1: .*"):
        client.publish(tick(1))

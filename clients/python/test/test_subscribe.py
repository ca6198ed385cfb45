"""Following events: each once, in order, whatever breaks; and what cannot be had is told."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import Any

import pytest
from support import DEADLINE, ROOT, Proxy, Server, Shells, await_true, tick

from event_pipeline import Disconnected, Gap, Refused

STRIDE = int(os.environ.get("CUT_STRIDE", "37"))


def delete(server: Server, path: str) -> None:
    urllib.request.urlopen(urllib.request.Request(server.url + path, method="DELETE"), timeout=DEADLINE).close()


def take(subscription: Any, count: int) -> list[int]:
    return [subscription.next(DEADLINE).payload["n"] for _ in range(count)]


def test_history_comes_first_then_live_events(client: Any) -> None:
    client.publish_all(tick(n) for n in range(5))
    states: list[str] = []
    with client.subscribe(last=3, on_state=lambda state: states.append(state.phase)) as subscription:
        assert take(subscription, 3) == [2, 3, 4]
        client.publish(tick(5))
        assert take(subscription, 1) == [5]
        with pytest.raises(TimeoutError):
            subscription.next(0.01)
        client.publish(tick(6))
        assert take(subscription, 1) == [6] and subscription.cursor == "evt_000000000007"
    assert states == ["connecting", "catching-up", "live", "closed"]
    assert subscription.state.why == "closed by the client"
    assert list(subscription) == []


def test_filters_choose(client: Any) -> None:
    with client.subscribe(event_types="timer_tick", session_id=("a", "b"), exclude={"payload": {"n": 2}}) as chosen:
        client.publish_all([tick(1, "a"), tick(2, "b"), tick(3, "c"), tick(4, "b")])
        assert take(chosen, 2) == [1, 4]


def test_leaving_the_loop_unsubscribes(client: Any, server: Server) -> None:
    client.publish(tick(1))
    with client.subscribe(last=1) as subscription:
        for _ in subscription:
            break
        assert client.stats()["router"]["active_subscribers"] == 1
    await_true("nobody subscribes", lambda: client.stats()["router"]["active_subscribers"] == 0)


def test_nothing_is_sent_before_the_first_event_is_asked_for(client: Any) -> None:
    subscription = client.subscribe(last=1)
    assert client.stats()["router"]["active_subscribers"] == 0 and subscription.state.phase == "connecting"
    client.publish(tick(1))
    assert take(subscription, 1) == [1]
    subscription.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_subscription_resumes_after_the_server_ends(client: Any, server: Server, how: signal.Signals) -> None:
    states: list[Any] = []
    with client.subscribe(on_state=states.append) as subscription:
        for n in range(3):
            client.publish(tick(2 * n))
            server.end(how)
            server.start()
            client.publish(tick(2 * n + 1))
            assert take(subscription, 2) == [2 * n, 2 * n + 1]
    waits = [state for state in states if state.phase == "waiting"]
    assert len(waits) >= 3 and all(state.why and state.retry_at for state in waits)


def test_a_stream_that_is_cut_at_any_byte_has_no_gap_and_no_repeat(through: Any, client: Any, proxy: Proxy) -> None:
    client.publish_all(tick(n) for n in range(12))
    proxy.pattern = b"GET /ws/subscribe"
    cuts = range(1, 3000, STRIDE)
    for cut in cuts:
        proxy.cut_after = cut
        with through.subscribe(after="evt_000000000000") as subscription:
            assert take(subscription, 12) == list(range(12))
    assert proxy.cuts > len(cuts) / 2


def test_a_subscription_that_began_now_misses_nothing_although_it_had_no_event_yet(
    through: Any, client: Any, proxy: Proxy
) -> None:
    with through.subscribe() as subscription:
        proxy.cut()
        client.publish(tick(1))
        assert take(subscription, 1) == [1]


def test_a_slow_network_changes_nothing(through: Any, client: Any, proxy: Proxy) -> None:
    proxy.delay = 0.02
    with through.subscribe() as subscription:
        client.publish_all(tick(n) for n in range(20))
        assert take(subscription, 20) == list(range(20))
        assert through.publish(tick(20)).id == "evt_000000000015"


def test_deleted_events_are_a_gap(through: Any, client: Any, proxy: Proxy, server: Server) -> None:
    with through.subscribe() as subscription:
        client.publish(tick(0))
        assert take(subscription, 1) == [0]
        client.publish_all(tick(n) for n in range(1, 4))
        assert take(subscription, 1) == [1]
    client.publish(tick(4))
    delete(server, "/events?before=9999-01-01")
    client.publish(tick(5))
    heard: list[Gap] = []
    for on_gap in (None, heard.append):
        with through.subscribe(after=subscription.cursor, epoch=subscription.epoch, on_gap=on_gap) as resumed:
            if on_gap is None:
                heard.append(resumed.next(DEADLINE))
            assert take(resumed, 1) == [5]
    assert heard == [Gap("deleted", "evt_000000000005")] * 2


def test_another_record_is_a_gap_and_new_events_follow(client: Any, server: Server) -> None:
    client.publish(tick(0))
    server.command("backup", "--to", "copy.db", "data/events.db")
    gaps: list[Gap] = []
    with client.subscribe(on_gap=gaps.append) as subscription:
        client.publish_all(tick(n) for n in (1, 2))
        assert take(subscription, 2) == [1, 2]
        server.end()
        for file in server.folder.glob("data/events.db*"):
            file.rename(server.folder / file.name)
        server.command("restore", "--from", "copy.db", "--into", "data/events.db")
        server.start()
        await_true("the gap", lambda: gaps or not_yet(subscription))
        assert gaps == [Gap("unknown_cursor", "evt_000000000003")]
        client.publish(tick(3))
        assert take(subscription, 1) == [3]


def not_yet(subscription: Any) -> bool:
    with pytest.raises(TimeoutError):
        subscription.next(0.05)
    return False


def flood(client: Any, count: int) -> None:
    payload = {"text": "x" * 10_000}
    for _ in range(count // 50):
        client.publish_all({**tick(0), "payload": payload} for _ in range(50))


def test_a_slow_reader_gets_everything_or_is_told_how_much_it_missed(shell: Shells, make_server: Any) -> None:
    server = make_server(MAX_SUBSCRIBER_BYTES="65536")
    client = shell.client(server.url)
    with client.subscribe(on_lag="skip") as skips, client.subscribe() as catches_up:
        flood(client, 2000)
        events = missed = 0
        while events + missed < 2000:
            item = skips.next(DEADLINE)
            if isinstance(item, Gap):
                assert item.why == "lagged"
                missed += item.count or 0
            else:
                events += 1
        assert events + missed == 2000 and missed > 0
        everything = [catches_up.next(DEADLINE) for _ in range(2000)]
        assert [event.id for event in everything] == [f"evt_{n:012x}" for n in range(1, 2001)]


def test_a_reader_that_is_disconnected_for_being_slow_comes_back(shell: Shells, make_server: Any) -> None:
    server = make_server(MAX_SUBSCRIBER_BYTES="65536")
    client = shell.client(server.url)
    states: list[Any] = []
    with client.subscribe(on_lag="disconnect", on_state=states.append) as subscription:
        flood(client, 2000)
        events = [subscription.next(DEADLINE) for _ in range(2000)]
    assert [event.id for event in events] == [f"evt_{n:012x}" for n in range(1, 2001)]
    assert any(state.phase == "waiting" and "4008" in state.why for state in states)


def test_an_end_ends_the_loop(client: Any) -> None:
    client.publish_all(tick(n) for n in range(3))
    subscription = client.subscribe(after="evt_000000000000", until="9999-01-01T00:00:00Z")
    assert [event.payload["n"] for event in subscription] == [0, 1, 2]
    assert subscription.state.phase == "closed" and "1000" in subscription.state.why


def test_a_name_continues_after_the_confirmed_event(client: Any, shell: Shells, server: Server) -> None:
    with client.subscribe(name="grader") as subscription:
        client.publish_all(tick(n) for n in range(6))
        for _ in range(3):
            event = subscription.next(DEADLINE)
        subscription.ack(event)
        assert take(subscription, 1) == [3]
    with shell.client(server.url).subscribe(name="grader") as later:
        assert take(later, 3) == [3, 4, 5]
        with pytest.raises(ValueError, match="ack"):
            later.ack("3")


def test_a_name_repeats_nothing_to_a_reader_that_was_only_cut_off(through: Any, client: Any, proxy: Proxy) -> None:
    with through.subscribe(name="grader") as subscription:
        client.publish_all(tick(n) for n in range(4))
        assert take(subscription, 2) == [0, 1]
        proxy.cut()
        client.publish(tick(4))
        assert take(subscription, 3) == [2, 3, 4]
        # This confirmation may meet a dead socket: it is sent on the next one.
        proxy.cut()
        subscription.ack(subscription.cursor)
        client.publish(tick(5))
        assert take(subscription, 1) == [5]
    with client.subscribe(name="grader") as later:
        assert take(later, 1) == [5]


def test_a_takeover_ends_the_first_reader_for_good(client: Any, shell: Shells, server: Server) -> None:
    with client.subscribe(name="grader") as first, shell.client(server.url).subscribe(name="grader") as second:
        with pytest.raises(Disconnected) as ended:
            first.next(DEADLINE)
        assert ended.value.code == 4009 and str(ended.value) == first.state.why and first.state.phase == "closed"
        client.publish(tick(1))
        assert take(second, 1) == [1]


def test_a_deleted_subscription_ends_its_reader_for_good(client: Any, server: Server) -> None:
    with client.subscribe(name="grader") as subscription:
        delete(server, "/subscriptions/grader")
        with pytest.raises(Disconnected) as ended:
            subscription.next(DEADLINE)
        assert ended.value.code == 4010


def test_a_group_shares_events_and_takes_over_those_of_a_member_that_leaves(
    client: Any, shell: Shells, server: Server
) -> None:
    with client.subscribe(group="graders") as stays:
        with shell.client(server.url).subscribe(group="graders") as leaves:
            sessions = [f"s{n}" for n in range(20)]
            client.publish_all(tick(n, session) for n, session in enumerate(sessions))
            assert leaves.next(DEADLINE).session_id in sessions  # Never confirmed, so another member gets it.
        got: set[str] = set()
        while len(got) < 20:
            event = stays.next(DEADLINE)
            got.add(event.session_id)
            stays.ack(event)
        assert got == set(sessions)
    await_true("all are confirmed", lambda: lag(server) == 0)


def lag(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/subscriptions", timeout=DEADLINE) as answer:
        (group,) = json.load(answer)
    assert group["name"] == "group:graders"
    return int(group["lag"])


def test_a_refused_subscription_says_why_and_is_not_tried_again(client: Any) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "a b"}, "name"),
        ({"last": -1}, "last"),
        ({"exclude": {"colour": "red"}}, "colour"),
    ]
    for options, why in wrong:
        with pytest.raises(Refused, match=why):
            client.subscribe(**options).next(DEADLINE)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"sesion_id": "x"}, "sesion_id"), ({"after": "17"}, "after"), ({"name": "a", "group": "b"}, "name, group")],
)
def test_a_wrong_option_is_an_error_before_anything_is_sent(shell: Shells, options: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        shell.client("http://127.0.0.1:1").subscribe(**options)


def test_a_query_pages_by_itself(client: Any) -> None:
    client.publish_all(tick(n, f"s{n % 3}") for n in range(1000))
    assert [event.payload["n"] for event in client.query(page=7, session_id="s1")] == list(range(997, 0, -3))
    assert [event.payload["n"] for event in client.query(page=300, oldest_first=True)] == list(range(1000))
    newest = next(iter(client.query(page=1)))
    assert [event.payload["n"] for event in client.query(since=newest.time)] == []
    assert len(list(client.query(until=newest.time, page=1000))) == 999


def test_a_number_that_python_does_not_read_by_itself_stops_no_reader(client: Any, server: Server) -> None:
    body = b'{"event_type": "timer_tick", "source": "timer", "payload": {"n": %s}}' % (b"7" * 5000)
    with client.subscribe() as subscription:
        request = urllib.request.Request(f"{server.url}/events", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=DEADLINE).close()
        assert f"{subscription.next(DEADLINE).payload['n']:f}" == "7" * 5000
    assert len(list(client.query())) == 1


def test_an_error_of_a_callback_reaches_the_reader(client: Any, server: Server) -> None:
    def fail(gap: Gap) -> None:
        raise ValueError(f"a gap: {gap.why}")

    with pytest.raises(ValueError, match="a gap: unknown_cursor"):
        client.subscribe(after="evt_0000000000ff", on_gap=fail).next(DEADLINE)
    with pytest.raises(ValueError, match="a gap"), client.subscribe(after="evt_0000000000ff", on_gap=fail):
        pass
    await_true("nobody subscribes", lambda: client.stats()["router"]["active_subscribers"] == 0)


def test_the_recorded_class_comes_as_it_was(client: Any, server: Server) -> None:
    recorded = [json.loads(line)["event"] for line in (ROOT / "data/classroom.ndjson").read_text().splitlines()]
    with client.subscribe() as subscription, client.publisher() as publisher:
        for event in recorded:
            publisher.put(event)
        for event in recorded:
            got = subscription.next(DEADLINE)
            assert (got.event_type, got.source, got.session_id, got.user_id, got.payload) == (
                event["event_type"],
                event["source"],
                event.get("session_id"),
                event.get("user_id"),
                event.get("payload", {}),
            )

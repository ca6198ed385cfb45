"""The modules without IO, in every order of what can happen to them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import ROOT

from event_pipeline import CLOSE_CODES, Backoff, Disconnected, Event, Gap, Refused, State, Unavailable, WrongServer
from event_pipeline.errors import EventPipelineError
from event_pipeline.events import encode
from event_pipeline.lifecycle import Lifecycle
from event_pipeline.protocol import BEGINNING, Address, check_health, page
from event_pipeline.publication import PublisherCore
from event_pipeline.subscription import SubscriptionCore

NO_PAUSE = Backoff(first=0.0, most=0.0)
MOVES = {
    "connecting": {"catching-up", "live", "waiting", "closed"},
    "catching-up": {"live", "waiting", "closed"},
    "live": {"catching-up", "waiting", "closed"},
    "waiting": {"connecting", "closed"},
    "closed": set(),
}


def test_the_close_codes_are_those_of_the_server() -> None:
    theirs = json.loads((ROOT / "docs/asyncapi.json").read_text())["x-close-codes"]
    assert {code: (again.value, why) for code, (again, why) in CLOSE_CODES.items()} == {
        row["code"]: (row["reconnect"], row["why"]) for row in theirs
    }
    for row in theirs:
        assert Disconnected(row["code"]).again == (row["reconnect"] in ("yes", "later")), row
    assert Disconnected(1006).again and Disconnected(1012).again


@given(st.integers(1, 100), st.none() | st.floats(0, 60))
def test_pauses_grow_to_a_limit_and_are_spread(failures: int, at_least: float | None) -> None:
    pause = Backoff(1.0, 15.0).pause(failures, at_least)
    assert (at_least or 0) <= pause <= (at_least or 0) + min(15.0, 2.0 ** (failures - 1))
    if at_least is None and failures > 1:
        assert pause >= min(15.0, 2.0 ** (failures - 1)) / 2


def test_a_thousand_clients_that_are_cut_off_together_come_back_spread_over_a_second() -> None:
    pauses = sorted(Backoff().pause(1) for _ in range(1000))
    assert pauses[-1] <= 1.0
    assert max(sum(at <= pause < at + 0.1 for pause in pauses) for at in (n / 10 for n in range(10))) < 160


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)),
    st.text(),
)
def test_what_is_sent_is_what_was_given(payload: dict[str, Any], session: str) -> None:
    event = {"event_type": "timer_tick", "source": "timer", "session_id": session, "payload": payload}
    try:
        text, _ = encode(event)
    except ValueError as error:
        assert "event.session_id" in str(error) or "event.payload" in str(error)
    else:
        assert json.loads(text) == event


def test_the_health_tells_what_answers() -> None:
    def health(version: str) -> bytes:
        return json.dumps({"service": "event-pipeline", "version": version}).encode()

    check_health("http://a", 200, health("0.1.0"))
    check_health("http://a", 200, health("0.9"))
    for status, body in [(200, health("1.0.0")), (200, b"{}"), (200, b"[]"), (200, b"\xff"), (301, health("0.1.0"))]:
        with pytest.raises(WrongServer):
            check_health("http://a", status, body)
    with pytest.raises(Unavailable):
        check_health("http://a", 503, b"")


def test_what_was_the_server_a_moment_ago_is_waited_for_and_what_never_was_is_not() -> None:
    for was_connected, phase in ((False, "closed"), (True, "waiting")):
        life = Lifecycle(NO_PAUSE, has_tokens=False)
        life.connecting()
        if was_connected:
            life.connected("live")
        life.lost(WrongServer("a page of a proxy"))
        assert life.state.phase == phase


def test_another_token_is_tried_once() -> None:
    unauthorized = Refused("Missing or wrong API key", status=401)
    for has_tokens, phases in ((False, ["closed"]), (True, ["waiting", "closed"])):
        life = Lifecycle(NO_PAUSE, has_tokens=has_tokens)
        for phase in phases:
            life.lost(unauthorized)
            assert life.state.phase == phase
    life = Lifecycle(NO_PAUSE, has_tokens=True)
    life.connecting()
    life.connected("live")
    life.lost(Disconnected(4001))
    assert not life.is_closed
    life.lost(Refused("no scope", status=403))
    assert life.state.phase == "closed"


def test_a_prefix_stays_before_every_path() -> None:
    assert Address("https://school.example/events/").ws == "wss://school.example/events"
    headers = {"link": '</api/v1/events?limit=1&before_id=evt_000000000002>; rel="next"'}
    following = page(headers, b"[]")[1]
    assert following is not None and following.path == "/events?limit=1&before_id=evt_000000000002"


def test_what_the_server_never_says_is_an_error() -> None:
    for text in ("", "[]", '{"id":1}', '{"status":"subscribed"}', '{"type":"lagged"}'):
        with pytest.raises(WrongServer):
            SubscriptionCore({}, Lifecycle(NO_PAUSE, has_tokens=False)).receive(text)
    for text in ("", "[]", '{"status":"ok"}', '{"status":"error","message":"for no event"}'):
        with pytest.raises(WrongServer):
            PublisherCore().answered(text)


def events_id(n: int) -> str:
    return f"evt_{n:012x}"


class Subscribing(RuleBasedStateMachine):
    """A subscription against a model of the server: a list of events, of which some are deleted, in one epoch or the
    next."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[State] = [State("connecting")]
        self.life = Lifecycle(NO_PAUSE, has_tokens=False, on_state=self.states.append)
        self.core = SubscriptionCore({"after": BEGINNING}, self.life)
        self.epoch, self.last, self.deleted = 0, 0, 0
        self.socket: list[str] | None = None
        # What the reader must hear of, in order: each event, or a gap that reaches beyond it.
        self.position, self.position_epoch = 0, 0

    @precondition(lambda self: self.socket is None and not self.life.is_closed)
    @rule()
    def connect(self) -> None:
        self.life.connecting()
        first = json.loads(self.core.opened())
        after, epoch = int(first["after"][4:], 16), first.get("epoch")
        said: dict[str, Any] = {
            "status": "subscribed",
            "last_event_id": events_id(self.last) if self.last else None,
            "epoch": str(self.epoch),
        }
        if (epoch is not None and epoch != str(self.epoch)) or after > self.last:
            said["gap"] = {"unknown_cursor": first["after"]}
            after = self.last
        elif after < self.deleted:
            said["gap"] = {"missing_through": events_id(self.deleted)}
            after = self.deleted
        self.socket = [json.dumps(said), *(self.message(n) for n in range(after + 1, self.last + 1))]
        self.socket.append('{"type":"caught_up"}')

    def message(self, n: int) -> str:
        return json.dumps(
            {
                "id": events_id(n),
                "event_type": "timer_tick",
                "source": "timer",
                "session_id": None,
                "user_id": None,
                "payload": {"epoch": self.epoch},
                "timestamp": "2026-01-15T10:30:00.000000Z",
            }
        )

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            if self.socket is not None:
                self.socket.append(self.message(self.last))

    @precondition(lambda self: self.socket is None)
    @rule()
    def delete(self) -> None:
        self.deleted = self.last

    @precondition(lambda self: self.socket is None)
    @rule(lost=st.integers(0, 3))
    def restore(self, lost: int) -> None:
        self.epoch += 1
        self.last = max(self.deleted, self.last - lost)

    @precondition(lambda self: self.socket)
    @rule(count=st.integers(1, 9))
    def receive(self, count: int) -> None:
        assert self.socket is not None
        if self.core.epoch is None:
            self.position_epoch = self.epoch
        for _ in range(min(count, len(self.socket))):
            self.core.receive(self.socket.pop(0))
            while self.core.items:
                self.read(self.core.items.popleft())

    def read(self, item: Event | Gap) -> None:
        if isinstance(item, Gap) and item.why == "deleted":
            assert item.through is not None
            self.position = int(item.through[4:], 16)
        elif isinstance(item, Gap):
            assert self.position_epoch < self.epoch
            assert self.core.cursor is not None
            self.position, self.position_epoch = int(self.core.cursor[4:], 16), self.epoch
        else:
            assert int(item.id[4:], 16) == self.position + 1, "a gap or a repeat that was not told"
            assert item.payload["epoch"] == self.position_epoch
            self.position += 1

    @precondition(lambda self: self.socket is not None)
    @rule(code=st.sampled_from([1001, 1006, 1011, 1012, 1013, 4002, 4008]))
    def lose(self, code: int) -> None:
        self.socket = None
        self.core.lost(Disconnected(code))
        assert self.life.state.phase == "waiting" and self.life.state.why and self.life.state.retry_at is not None

    @precondition(lambda self: self.socket is not None)
    @rule(code=st.sampled_from([1002, 1007, 1008, 1009, 4001, 4009, 4010]))
    def end(self, code: int) -> None:
        self.socket = None
        self.core.lost(Disconnected(code))
        assert self.life.is_closed and isinstance(self.life.error, Disconnected)
        self.core.lost(Disconnected(1006))
        assert self.life.error.code == code

    @invariant()
    def states_follow_each_other(self) -> None:
        for one, next_one in zip(self.states, self.states[1:], strict=False):
            assert next_one.phase in MOVES[one.phase] or one.phase == next_one.phase, (one, next_one)

    @invariant()
    def a_reader_who_has_all_messages_has_all_events(self) -> None:
        if self.core.is_open and self.socket == []:
            assert self.position == self.last and self.life.state.phase == "live"


class Publishing(RuleBasedStateMachine):
    """A publisher against a model of the server: what it stores, by key, and what it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[int] = []
        self.core = PublisherCore(capacity=20, batch=5, on_refused=self.hear)
        self.put_count = 0
        self.stored: dict[str, int] = {}
        self.answers: list[str] | None = None
        self.has_bad = False

    def hear(self, event: Any, error: Refused) -> None:
        self.refused.append(event["payload"]["n"])

    @precondition(lambda self: self.answers is None)
    @rule()
    def connect(self) -> None:
        self.answers = []

    @precondition(lambda self: not self.core.is_full)
    @rule(is_bad=st.sampled_from([False] * 9 + [True]))
    def put(self, is_bad: bool) -> None:
        kind = "bad" if is_bad else "timer_tick"
        self.has_bad |= is_bad
        self.core.put(self.core.encode({"event_type": kind, "source": "timer", "payload": {"n": self.put_count}}))
        self.put_count += 1

    @precondition(lambda self: self.answers is not None)
    @rule(arrives=st.booleans(), is_busy=st.sampled_from([False] * 9 + [True]))
    def send(self, arrives: bool, is_busy: bool) -> None:
        assert self.answers is not None
        self.core.pause = 0
        message = self.core.next_message()
        if message is None or not arrives or (self.answers and self.answers[-1] == "lost"):
            if message is not None:
                self.answers.append("lost")
            return
        said = json.loads(message)
        if "token" in said:
            self.answers.append('{"type":"auth_renewed","in_ms":1}')
            return
        events = said if isinstance(said, list) else [said]
        bad = next((i for i, event in enumerate(events) if event["event_type"] == "bad"), None)
        if is_busy:
            self.has_bad = True  # Later messages overtake this one.
            answer: dict[str, Any] = {"status": "error", "message": "The disk is full, try again later"}
        elif bad is not None:
            where = f"Event {bad}: " if isinstance(said, list) else ""
            answer = {"status": "error", "message": f"{where}Unknown event type 'bad'; known are timer_tick"}
        else:
            replayed = sum(event["idempotency_key"] in self.stored for event in events)
            for event in events:
                self.stored.setdefault(event["idempotency_key"], event["payload"]["n"])
            answer = {"status": "ok", "event_ids": ["evt"] * len(events)}
            if replayed:
                answer["replayed"] = replayed
        self.answers.append(json.dumps(answer))

    @precondition(lambda self: self.answers and self.answers[0] != "lost")
    @rule()
    def answer(self) -> None:
        assert self.answers is not None
        self.core.answered(self.answers.pop(0))

    @precondition(lambda self: self.answers is not None)
    @rule()
    def renew(self) -> None:
        self.core.answered('{"type":"auth_expires","in_ms":30000}')
        assert self.core.wants_token
        self.core.renew("next")

    @precondition(lambda self: self.answers is not None)
    @rule()
    def lose(self) -> None:
        self.answers = None
        self.core.lost()

    @invariant()
    def nothing_is_lost_and_little_waits(self) -> None:
        counts = self.core.counts
        assert counts.waiting + counts.stored + counts.refused == self.put_count and counts.waiting <= 20
        assert counts.refused == len(self.refused)

    def teardown(self) -> None:
        if self.answers is not None:
            self.lose()
        self.connect()
        for _ in range(200):
            self.send(True, False)
            while self.answers:
                self.answer()
        assert self.core.unacknowledged == 0
        order = list(self.stored.values())
        assert sorted(order + self.refused) == list(range(self.put_count)), "each once"
        assert self.has_bad or order == sorted(order), "in order"


TestSubscribing = Subscribing.TestCase
TestPublishing = Publishing.TestCase
TestSubscribing.settings = TestPublishing.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_refusal_is_read_from_a_problem_and_a_proxy_is_none() -> None:
    problem = {"content-type": "application/problem+json", "retry-after": "7"}
    body = b'{"type":"/docs#/problems/queue-full","detail":"Too many events"}'
    error: EventPipelineError = Refused.of_answer("POST /events", 503, problem, body)
    assert isinstance(error, Refused) and (error.problem, error.again, error.retry_after) == ("queue-full", True, 7.0)
    del problem["retry-after"]
    assert not Refused.of_answer("POST /events", 503, problem, body).again
    assert isinstance(Refused.of_answer("POST /events", 502, {}, b"<html>"), Unavailable)
    assert isinstance(Refused.of_answer("POST /events", 404, {}, b"<html>"), WrongServer)
    assert isinstance(Refused.of_answer("POST /events", 422, problem, b"{"), WrongServer)


def test_nothing_is_logged_on_import() -> None:
    assert logging.getLogger("event_pipeline").handlers == []

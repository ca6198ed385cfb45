"""The scenarios that every client runs, `clients/scenarios.json`: each by both shells, through a proxy."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, ROOT, Proxy, Server, Shells, tick
from test_access import token

from event_pipeline import Disconnected, Event, Gap, Refused

FILE = Path(os.environ.get("SCENARIOS") or ROOT / "clients/scenarios.json")
SCENARIOS: list[dict[str, Any]] = json.loads(FILE.read_text())["scenarios"] if FILE.exists() else []


class Scenario:
    """One method for each verb; the other members of a step are its arguments."""

    def __init__(self, shell: Shells, server: Server, proxy: Proxy, tokens: list[int] | None) -> None:
        self.server, self.proxy = server, proxy
        options: dict[str, Any] = {}
        if tokens:
            ages = iter(tokens)
            options["token"] = lambda: token(next(ages, tokens[-1]))
        self.client = shell.client(proxy.url, **options)
        self.actors: dict[str, Any] = {}
        self.states: dict[str, list[Any]] = {}
        self.last: dict[str, Event] = {}

    def run(self, step: dict[str, Any]) -> None:
        arguments = {"who" if name == "as" else name: value for name, value in step.items() if name != "do"}
        getattr(self, step["do"])(**arguments)

    def close_all(self) -> None:
        for actor in self.actors.values():
            actor.close()

    def publish(self, ticks: list[int], key: str | None = None, is_replayed: bool = False) -> None:
        for n in ticks:
            assert self.client.publish({**tick(n), "idempotency_key": key}).replayed == is_replayed

    def refused(self, ticks: list[int], key: str, problem: str) -> None:
        with pytest.raises(Refused) as refused:
            self.publish(ticks, key)
        assert refused.value.problem == problem

    def publisher(self, who: str) -> None:
        self.actors[who] = self.client.publisher()
        self.actors[who].open()

    def put(self, who: str, ticks: list[int]) -> None:
        for n in ticks:
            self.actors[who].put(tick(n))

    def flush(self, who: str) -> None:
        self.actors[who].flush(DEADLINE)

    def subscribe(self, who: str, options: dict[str, Any]) -> None:
        self.states[who] = []
        self.actors[who] = self.client.subscribe(on_state=self.states[who].append, **options)
        self.actors[who].open()

    def close(self, who: str) -> None:
        self.actors[who].close()

    def next(self, who: str) -> Event | Gap:
        item: Event | Gap = self.actors[who].next(DEADLINE)
        if isinstance(item, Event):
            self.last[who] = item
        return item

    def event(self, who: str) -> Event:
        item = self.next(who)
        assert isinstance(item, Event), item
        return item

    def ack(self, who: str) -> None:
        self.actors[who].ack(self.last[who])

    def expect(self, who: str, ticks: list[int]) -> None:
        assert [self.event(who).payload["n"] for _ in ticks] == ticks

    def expect_gap(self, who: str, why: str, through: str) -> None:
        gap = self.next(who)
        assert isinstance(gap, Gap) and (gap.why, gap.through) == (why, through)

    def expect_closed(self, who: str, code: int) -> None:
        with pytest.raises(Disconnected) as ended:
            self.next(who)
        assert ended.value.code == code and self.actors[who].state.phase == "closed"

    def expect_count(self, who: str, count: int) -> None:
        ids = [self.event(who).id for _ in range(count)]
        assert ids == sorted(set(ids))

    def has_waited(self, who: str, why: str) -> None:
        assert any(state.phase == "waiting" and why in state.why for state in self.states[who])

    def has_not_waited(self, who: str) -> None:
        assert not any(state.phase == "waiting" for state in self.states[who])

    def keep_publishing(self, who: str, for_ms: int) -> None:
        began, n = time.monotonic(), 0
        while time.monotonic() - began < for_ms / 1000:
            self.publish([n])
            self.expect(who, [n])
            n += 1

    def stored(self, ticks: list[int]) -> None:
        assert [event["payload"]["n"] for event in self.server.stored()] == ticks

    def flood(self, count: int, payload_bytes: int) -> None:
        event = {**tick(0), "payload": {"text": "x" * payload_bytes}}
        for _ in range(count // 50):
            self.client.publish_all([event] * 50)

    def delete(self) -> None:
        urllib.request.urlopen(
            urllib.request.Request(f"{self.server.url}/events", method="DELETE"), timeout=DEADLINE
        ).close()

    def cut(self) -> None:
        self.proxy.cut()

    def cut_answer(self, of: str, after_bytes: int) -> None:
        self.client.stats()  # The connection is there, and the next request that says this is cut.
        self.proxy.pattern, self.proxy.cut_after = of.encode(), after_bytes

    def end(self, signal: str) -> None:
        self.server.end(SIGNALS[signal])

    def start(self) -> None:
        self.server.start()

    def publish_class(self, file: str) -> None:
        with self.client.publisher() as publisher:
            for event in recorded(file):
                publisher.put(event)

    def expect_class(self, who: str, file: str) -> None:
        for event in recorded(file):
            got = self.event(who)
            fields = {name: getattr(got, name) for name in ("event_type", "source", "session_id", "user_id", "payload")}
            assert fields == {"session_id": None, "user_id": None, "payload": {}, **event}


SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


def recorded(file: str) -> list[dict[str, Any]]:
    return [json.loads(line)["event"] for line in (ROOT / file).read_text().splitlines()]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario["name"]))
def test_a_scenario_that_every_client_runs(
    scenario: dict[str, Any], shell: Shells, make_server: Callable[..., Server], make_proxy: Callable[[Server], Proxy]
) -> None:
    server = make_server(**scenario.get("server", {}))
    run = Scenario(shell, server, make_proxy(server), scenario.get("tokens", {}).get("exp_in_s"))
    try:
        for step in scenario["steps"]:
            run.run(step)
    finally:
        run.close_all()


def test_the_table_of_scenarios_is_there() -> None:
    assert SCENARIOS or "CI" not in os.environ

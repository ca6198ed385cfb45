"""Checks that a server with an empty database keeps the contract as far as the baseline does. Ours must pass as well.

python check.py http://127.0.0.1:8001
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from typing import Any

import websockets

URL = sys.argv[1]
SOCKETS = URL.replace("http://", "ws://")


def event(**fields: Any) -> dict[str, Any]:
    return {"event_type": "timer_tick", "source": "t"} | fields


def event_id(number: int) -> str:
    return f"evt_{number:012x}"


def call(path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": content_type}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(URL + path, data, headers))
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, json.load(answer), answer.headers


def expect(got: Any, wanted: Any, what: Any) -> None:
    if got != wanted:
        sys.exit(f"{what}: {got!r}, not {wanted!r}")


def check_publishing() -> None:
    status, stored, headers = call("/events", event(session_id="s1", payload={"ü": [1, 2.5, 10**30]}, other=1))
    expect(status, 201, stored)
    keys = ["id", "event_type", "source", "session_id", "user_id", "payload", "timestamp"]
    expect(list(stored), keys, "the order of the keys")
    expect((stored["id"], stored["user_id"]), (event_id(1), None), stored)
    expect((stored["payload"], len(stored["timestamp"])), ({"ü": [1, 2.5, 10**30]}, 27), stored)
    expect(headers["X-Frame-Options"], "DENY", "a security header")

    long, many = "x" * 65_536, {str(number): 0 for number in range(51)}
    refused = [event(source=source) for source in ("", "a b", "a\n", "x" * 101)]
    refused += [event(payload=payload) for payload in (None, [], many, {"a": long})]
    refused += [event(event_type="x"), event(session_id=1), event(session_id="x" * 201), {"source": "a"}, 3, "x"]
    with_payload = '{"event_type":"timer_tick","source":"t","payload":{"a":%s}}'
    refused += [(with_payload % value).encode() for value in ("NaN", '"\\ud800"', "[" * 100_000)] + [b"{"]
    for body in refused:
        status, problem, headers = call("/events", body)
        shown = str(body)[:80]
        expect((status, headers["Content-Type"]), (422, "application/problem+json"), shown)
        expect(set(problem["detail"][0]), {"loc", "msg", "type"}, shown)
    expect(call("/events", b"\xff")[0], 400, "a body that is not UTF-8")
    expect(call("/events", b"{}", "text/plain")[0], 415, "a body that is not JSON")

    status, stored, _ = call("/events", [event(), event(source="b")])
    ids = [event_id(2), event_id(3)]
    expect((status, stored), (201, {"count": 2, "first_id": ids[0], "last_id": ids[1], "ids": ids}), "an array")
    expect(call("/events", [event(), event(source="")])[0], 422, "an array with a bad event")
    lines = b"\n".join(json.dumps(event()).encode() for _ in range(3))
    expect(call("/events", lines, "application/x-ndjson")[1]["ids"], [event_id(n) for n in (4, 5, 6)], "lines")


def check_queries() -> None:
    expect(call("/stats")[1]["total_events"], 6, "what is stored")
    newest = call("/events?limit=2")[1]
    expect([event["id"] for event in newest], [event_id(6), event_id(5)], "newest first")
    time = newest[-1]["timestamp"]
    counts = {"session_id=s1": 1, "source=b": 1, "event_type=timer_tick,quiz_started": 6, "user_id=x": 0}
    for query, count in (counts | {f"since={time}": 1, f"until={time}": 4}).items():
        expect(len(call(f"/events?{query}")[1]), count, query)
    for query, status in {"limit=0": 422, "limit=1001": 422, "since=": 400, "until=x": 400}.items():
        expect(call(f"/events?{query}")[0], status, query)
    expect([call("/nothing")[0], call("/health", {})[0]], [404, 405], "a wrong path, a wrong method")
    expect(call("/api/v1/health")[1]["status"], "ok", "the other prefix")


async def check_sockets() -> None:
    subscribe, publish = SOCKETS + "/ws/subscribe", SOCKETS + "/api/v1/ws/publish"
    async with (
        websockets.connect(subscribe) as everything,
        websockets.connect(subscribe) as few,
        websockets.connect(subscribe) as wrong,
        websockets.connect(publish) as publisher,
    ):
        await everything.send("{}")
        answer = json.loads(await everything.recv())
        expect((answer["status"], answer["last_event_id"]), ("subscribed", event_id(6)), answer)
        await few.send('{"session_id":"s9","event_types":["quiz_started"]}')
        await few.recv()
        await wrong.send('{"session_id":9}')
        expect(json.loads(await wrong.recv())["status"], "error", "a filter of the wrong type")

        started = event(session_id="s9", event_type="quiz_started")
        messages = [event(ref=7), [event(), started], "nonsense", [event(), event(source="")], 7]
        for message in messages:
            await publisher.send(message if isinstance(message, str) else json.dumps(message))
        await publisher.send(json.dumps(event()).encode())
        answers = [json.loads(await publisher.recv()) for _ in range(6)]
        expect(answers[0], {"status": "ok", "event_id": event_id(7), "ref": 7}, "an event")
        expect(answers[1], {"status": "ok", "event_ids": [event_id(8), event_id(9)]}, "an array")
        expect([answer["status"] for answer in answers[2:]], ["error", "error", "error", "ok"], answers)

        got = [json.loads(await everything.recv())["id"] for _ in range(4)]
        expect(got, [event_id(number) for number in (7, 8, 9, 10)], "what everybody gets")
        expect(json.loads(await few.recv())["id"], event_id(9), "what few get")


check_publishing()
check_queries()
asyncio.run(check_sockets())
print(f"{URL} keeps the contract")

"""Keys and tokens; and an address where something else answers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import DEADLINE, Server, Shells, await_true, tick

from event_pipeline import Disconnected, Refused, Unavailable, WrongServer

SECRET = "a secret of at least thirty-two bytes"


def token(seconds: int, **claims: Any) -> str:
    """A token that ends in so many seconds. The server allows for 30 s between the clocks."""
    said = {"sub": "ada", "scopes": "publish subscribe query", "exp": int(time.time()) + seconds, **claims}
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in ({"alg": "HS256"}, said)]
    signature = hmac.digest(SECRET.encode(), b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_a_key_opens_what_it_is_for(shell: Shells, make_server: Any) -> None:
    server = make_server(API_KEY="open-sesame", REQUIRE_AUTH="true")
    client = shell.client(server.url, key="open-sesame")
    with client.subscribe() as subscription, client.publisher() as publisher:
        publisher.put(tick(1))
        assert subscription.next(DEADLINE).payload == {"n": 1}
    wrong = shell.client(server.url, key="open-barley")
    attempts: list[Callable[[], Any]] = [
        lambda: wrong.publish(tick(1)),
        lambda: wrong.subscribe().next(DEADLINE),
        lambda: wrong.subscribe().open(),
        lambda: wrong.publisher().open(),
    ]
    for attempt in attempts:
        with pytest.raises(Refused, match="API key") as refused:
            attempt()
        assert refused.value.status == 401


def test_a_socket_goes_on_with_the_next_token(shell: Shells, make_server: Any) -> None:
    server = make_server(JWT_SECRET=SECRET)
    asked: list[str] = []
    expiring = True

    def next_token() -> str:
        asked.append(token(-28 if expiring else 3600))
        return asked[-1]

    states: list[str] = []
    client = shell.client(server.url, token=next_token)
    with client.subscribe(on_state=lambda state: states.append(state.phase)) as subscription:
        assert len(asked) == 1
        expiring = False  # What is asked for at the warning, which comes at once, is valid for an hour.
        with client.publisher(on_state=lambda state: states.append(state.phase)) as publisher:
            began, n = time.monotonic(), 0
            while time.monotonic() - began < 3.5:
                publisher.put(tick(n))
                assert subscription.next(DEADLINE).payload == {"n": n}
                n += 1
    assert sorted(states) == ["closed", "closed", "connecting", "connecting", "live", "live"]
    assert len(asked) >= 3


def test_a_publisher_goes_on_with_the_next_token(shell: Shells, make_server: Any) -> None:
    server = make_server(JWT_SECRET=SECRET)
    tokens = iter([token(-28), *(token(3600) for _ in range(9))])
    states: list[str] = []
    with shell.client(server.url, token=lambda: next(tokens)).publisher(
        batch=1, on_state=lambda state: states.append(state.phase)
    ) as publisher:
        began, n = time.monotonic(), 0
        while time.monotonic() - began < 3.5:
            publisher.put(tick(n))
            n += 1
            time.sleep(0.001)
        publisher.flush(DEADLINE)
        assert publisher.counts.stored == n and publisher.counts.refused == 0
    assert states == ["connecting", "live", "closed"]


def test_a_token_that_has_ended_is_replaced_at_the_next_connection(shell: Shells, make_server: Any) -> None:
    server = make_server(JWT_SECRET=SECRET)
    tokens = iter([token(-3600), token(3600)])
    client = shell.client(server.url, token=lambda: next(tokens))
    assert client.publish(tick(1)).id == "evt_000000000001"
    stale = shell.client(server.url, token=lambda: token(-3600))
    with pytest.raises(Refused) as refused:
        stale.publish(tick(1))
    assert refused.value.status == 401


def test_a_key_that_is_revoked_ends_the_subscription_for_good(shell: Shells, make_server: Any) -> None:
    server: Server = make_server()
    key = server.command("keys", "add", "timers", "--scope", "subscribe").split()[0]
    server.end()
    server.start()
    with shell.client(server.url, key=key).subscribe() as subscription:
        (server.folder / "data/keys.toml").write_text("")
        with pytest.raises(Disconnected) as ended:
            subscription.next(DEADLINE)
    assert ended.value.code == 4001 and subscription.state.phase == "closed"


def test_a_token_without_the_scope_is_refused_and_not_asked_for_again(shell: Shells, make_server: Any) -> None:
    server = make_server(JWT_SECRET=SECRET)
    client = shell.client(server.url, token=lambda: token(3600, scopes="publish"))
    with pytest.raises(Refused, match="subscribe") as refused:
        client.subscribe().open()
    assert (refused.value.status, refused.value.problem) == (403, "scope-missing")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8001",
        "ftp://localhost",
        "http://",
        "http://a:99999",
        "http://a b",
        "http://u:p@a",
        "http://a?b=c",
    ],
)
def test_a_wrong_address_is_an_error_at_once(shell: Shells, url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        shell.client(url)


@pytest.mark.parametrize("options", [{"key": "line\nbreak"}, {"key": ""}, {"key": "a", "token": lambda: "b"}])
def test_a_wrong_key_is_an_error_at_once(shell: Shells, options: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        shell.client("http://localhost", **options)


@pytest.fixture
def something_else() -> Iterator[Callable[[int, bytes], str]]:
    """A server of another kind, which answers everything in one way."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def make(status: int, body: bytes) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_something_else_is_told_apart_from_a_dead_server(shell: Shells, something_else: Any) -> None:
    health = json.dumps({"status": "ok", "service": "event-pipeline", "version": "1.4.0"}).encode()
    for status, body, why in (
        (200, b"<h1>hello</h1>", "is not an event pipeline"),
        (404, b"", "is not an event pipeline"),
        (200, health, "is an event pipeline 1.4.0"),
    ):
        client = shell.client(something_else(status, body))
        attempts: list[Callable[[], Any]] = [
            lambda: client.publish(tick(1)),
            lambda: client.subscribe().next(DEADLINE),
            lambda: client.publisher().open(),
        ]
        for attempt in attempts:
            with pytest.raises(WrongServer, match=why):
                attempt()
    with pytest.raises(Unavailable):
        shell.client(something_else(502, b"bad gateway"), timeout=0.2).publish(tick(1))


def test_a_dead_server_is_waited_for(shell: Shells, server: Server) -> None:
    server.end()
    client = shell.client(server.url)
    subscription = client.subscribe()
    with pytest.raises(TimeoutError):
        subscription.next(0.3)
    assert subscription.state.phase in ("waiting", "connecting")
    server.start()
    subscription.open()
    client.publish(tick(1))
    assert subscription.next(DEADLINE).payload == {"n": 1}
    subscription.close()


def test_the_server_is_at_its_capacity_for_a_while(shell: Shells, make_server: Any) -> None:
    server = make_server(MAX_SUBSCRIBERS="1")
    client = shell.client(server.url)
    states: list[Any] = []
    with client.subscribe():
        waits = client.subscribe(on_state=states.append)
        with pytest.raises(TimeoutError):
            waits.next(0.3)
    assert any(state.phase == "waiting" and "capacity" in state.why for state in states)
    waits.open()
    await_true("it is served", lambda: waits.state.phase == "live")
    waits.close()

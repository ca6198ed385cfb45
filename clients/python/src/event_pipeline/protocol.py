"""The server's interface: addresses, what is sent to them, and what the answers mean. No IO."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

from .errors import EventPipelineError, InvalidEvent, Refused, Unavailable, WrongServer
from .events import AckLevel, Event, Gap, Keys, Publishable, Receipt, decode, encode, with_key

CLIENT_VERSION = "0.1.0"
SERVER_MAJOR = "0"
"""The major version of the servers that this client can speak with."""
BEGINNING = "evt_000000000000"
"""The position before the first event."""
EVENT_ID = re.compile(r"evt_[0-9a-f]{12}\Z")

Values = str | Sequence[str]


class Filters(TypedDict, total=False):
    """Which events: every condition holds, and none under `exclude`. A list holds if any of its values does."""

    event_types: Values
    source: Values
    session_id: Values
    user_id: Values
    payload: Mapping[str, Any]
    exclude: Mapping[str, Any]


class Options(Filters, total=False):
    """What a subscriber asks for; docs/subscribing.md has each."""

    after: str
    epoch: str
    since: str | datetime
    last: int
    until: str | datetime
    speed: float
    on_lag: Literal["catch_up", "skip", "disconnect"]
    conflate: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    name: str
    group: str
    ack_wait_ms: int


class Address:
    """Where a server is. Raises `ValueError` where that is not an address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            is_bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError as error:
            raise ValueError(f"url {url!r}: {error}") from None
        if is_bad or re.search(r"\s", url):
            raise ValueError(f"url {url!r}: http://HOST:PORT or https://HOST is needed, as in http://localhost:8001")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                f"url {url.partition('?')[0]!r}: no user, query or fragment belongs here; a key is given by `key`"
            )
        self.http = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.ws = "ws" + self.http.removeprefix("http")


def credential(value: object, what: str) -> str:
    """A key or token that a header can carry."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{what}: one word of visible ASCII characters is needed")
    return value


def check_health(url: str, status: int, body: bytes) -> None:
    """Tells another server, and one of another version, from a dead one: by the answer to `GET /health`."""
    if status in (408, 429) or status >= 500:
        raise Unavailable(f"{url}/health was answered with {status}")
    try:
        health: Any = json.loads(body)
        service, version = health["service"], str(health["version"])
    except (ValueError, KeyError, TypeError):
        service = version = ""
    if status != 200 or service != "event-pipeline":
        raise WrongServer(f"{url} is not an event pipeline: it answered GET /health with {status} and {body[:80]!r}")
    if version.partition(".")[0] != SERVER_MAJOR:
        raise WrongServer(
            f"{url} is an event pipeline {version}; this client, {CLIENT_VERSION}, speaks with {SERVER_MAJOR}.x"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be sent again as it is."""

    method: str
    path: str
    body: bytes | None = None
    params: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None


def publish(events: Sequence[Publishable], ack: AckLevel, keys: Keys, *, is_one: bool) -> Request:
    """Publishes one event or many, under keys: one for the whole request unless an event brings its own."""
    if not events:
        raise InvalidEvent("events", "there is none")
    encoded = [encode(event, "event" if is_one else f"events[{i}]") for i, event in enumerate(events)]
    headers = {"Content-Type": "application/json"}
    if any(key for _, key in encoded):
        texts = [with_key(text, key or keys.make()) for text, key in encoded]
    else:
        texts = [text for text, _ in encoded]
        headers["Idempotency-Key"] = keys.make()
    body = texts[0] if is_one else f"[{','.join(texts)}]"
    return Request("POST", "/events", body.encode(), {"ack": ack}, headers)


def receipt(headers: Mapping[str, str], body: bytes) -> Receipt:
    said: Any = json.loads(body)
    ids = tuple(said["ids"]) if "ids" in said else (said["id"],) if "id" in said else ()
    return Receipt(ids, headers.get("ack-level", "stored"), headers.get("idempotent-replayed") == "true")


def query(filters: Mapping[str, Any], limit: int, *, oldest_first: bool, **bounds: str | datetime | None) -> Request:
    if oldest_first:
        bounds["after_id"] = BEGINNING
    params = {
        name: time(value, name) if isinstance(value, datetime) else value for name, value in bounds.items() if value
    }
    chosen = conditions(filters, Filters)
    if chosen:
        params["filter"] = json.dumps(chosen)
    return Request("GET", "/events", params={**params, "limit": str(limit)})


def page(headers: Mapping[str, str], body: bytes) -> tuple[list[Event], Request | None]:
    """The events of a page, and the request for the next one."""
    link = re.search(r'<([^>]*)>; *rel="?next"?', headers.get("link", ""))
    following = None
    if link:
        # The link begins with the path under which the server knows itself, which a prefix in our address may precede.
        path, _, asked = link[1].partition("?")
        following = Request("GET", f"{path[path.rindex('/events') :]}?{asked}")
    return [event(said) for said in decode(body)], following


def stats(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(body)
    return said


def subscribe(options: Mapping[str, Any]) -> dict[str, Any]:
    """The first message of a subscriber. Raises `TypeError` or `ValueError` before anything is sent."""
    message = conditions(options, Options)
    if message.get("name") and message.get("group"):
        raise ValueError("name, group: a subscription has a name or belongs to a group, not both")
    after = message.get("after")
    if after is not None and not (isinstance(after, str) and EVENT_ID.match(after)):
        raise ValueError(f"after: the id of an event is needed, not {after!r}")
    for name in ("since", "until"):
        if isinstance(message.get(name), datetime):
            message[name] = time(message[name], name)
    # `strict`: a misspelled filter would ask for every event. `signals` tell history from live events.
    return message | {"strict": True, "signals": True}


def conditions(given: Mapping[str, Any], known: type) -> dict[str, Any]:
    names = known.__annotations__ if known is Filters else {**Filters.__annotations__, **known.__annotations__}
    for name in given:
        if name not in names:
            raise TypeError(f"{name!r} is no filter or option; there are {', '.join(names)}")
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(chosen.get("event_types"), str):
        chosen["event_types"] = [chosen["event_types"]]
    return {
        name: list(value) if isinstance(value, (tuple, set, frozenset)) else value for name, value in chosen.items()
    }


def time(value: datetime, name: str) -> str:
    if value.tzinfo is None:
        raise ValueError(f"{name}: {value!r} has no time zone, so it could mean several times")
    return (value - (value.utcoffset() or timedelta())).replace(tzinfo=None).isoformat() + "Z"


def event(said: Mapping[str, Any]) -> Event:
    return Event(
        said["id"],
        said["event_type"],
        said["source"],
        said["session_id"],
        said["user_id"],
        said["payload"],
        said["timestamp"],
    )


def gap(said: Mapping[str, Any]) -> Gap:
    if "missing_through" in said:
        return Gap("deleted", said["missing_through"])
    return Gap("unknown_cursor", said.get("unknown_cursor"))


def answer(request: Request, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises unless the request was carried out."""
    where = f"{request.method} {request.path.partition('?')[0]}"
    if not 200 <= status < 300:
        raise Refused.of_answer(where, status, headers, body)
    if "json" not in headers.get("content-type", ""):
        raise unexpected(where, body)


def unexpected(what: str, text: str | bytes) -> EventPipelineError:
    return WrongServer(f"{what} was answered with what no event pipeline of this version says: {text[:120]!r}")

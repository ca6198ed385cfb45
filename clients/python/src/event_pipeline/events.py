"""Events, and the text that is sent for one."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

from .errors import InvalidEvent

AckLevel: TypeAlias = Literal["queued", "stored", "synced"]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to publish. Instead of one, a mapping with the same keys will do."""

    event_type: str
    source: str
    session_id: str | None = None
    user_id: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    """What is stored under a key is stored once. Without one the client makes a key, which it keeps over its retries."""


Publishable: TypeAlias = NewEvent | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event. Its `id` is a cursor: the event's position in the order in which events were stored."""

    id: str
    event_type: str
    source: str
    session_id: str | None
    user_id: str | None
    payload: dict[str, Any]
    timestamp: str

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.timestamp)


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that a reader does not get, and why.

    * `deleted`: those after the cursor, up to and including `through`, are deleted.
    * `unknown_cursor`: the record is another one than that of the cursor (`through`), such as a restored backup. New
      events follow.
    * `lagged`: with `on_lag="skip"`, the reader was too slow and missed `count` events up to `through`.
    * `conflated`: with `skipped`, later events have replaced `count` earlier ones.
    """

    why: Literal["deleted", "unknown_cursor", "lagged", "conflated"]
    through: str | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of the events of one request."""

    ids: tuple[str, ...]
    """In the order of the events. Empty at the level `queued`."""
    ack: str
    """How safe the events are: `queued`, `stored` or `synced`. Less than `synced` if the server runs without syncs."""
    replayed: bool
    """All of them were stored before, under the same keys."""

    @property
    def id(self) -> str:
        return self.ids[0]


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,100}\Z")
_FIELDS = ("event_type", "source", "session_id", "user_id", "payload", "idempotency_key")
_REFERENCE_CHARS_MAX = 200


def encode(event: Publishable, where: str = "event") -> tuple[str, str | None]:
    """The text that is sent for an event, without its key, and the key. The text is made once: an event whose payload is
    written in another way is another event to the server.

    Raises `InvalidEvent` where the event breaks a rule that does not depend on the server's configuration.
    """
    if isinstance(event, Mapping):
        unknown = next((name for name in event if name not in _FIELDS), None)
        if unknown is not None:
            raise InvalidEvent(f"{where}.{unknown}", f"an event has no such field; there are {', '.join(_FIELDS)}")
        get: Callable[[str], Any] = event.get
    elif isinstance(event, NewEvent):
        get = partial(getattr, event)
    else:
        raise InvalidEvent(where, f"a NewEvent or a mapping is needed, not {type(event).__name__}")
    event_type, source, payload, key = get("event_type"), get("source"), get("payload"), get("idempotency_key")
    if not isinstance(event_type, str) or not event_type:
        raise InvalidEvent(f"{where}.event_type", f"a registered type is required, not {event_type!r}")
    if not isinstance(source, str) or not _SOURCE.match(source):
        raise InvalidEvent(f"{where}.source", f"1 to 100 characters of A-Z a-z 0-9 _ . - are required, not {source!r}")
    said: dict[str, Any] = {"event_type": event_type, "source": source}
    for name in ("session_id", "user_id"):
        value = get(name)
        if value is not None:
            if not isinstance(value, str) or len(value) > _REFERENCE_CHARS_MAX:
                raise InvalidEvent(f"{where}.{name}", f"text of at most 200 characters is needed, not {value!r:.50}")
            said[name] = value
    if payload is not None:
        if not isinstance(payload, Mapping):
            raise InvalidEvent(f"{where}.payload", f"a mapping is needed, not {payload!r:.50}")
        said["payload"] = payload if isinstance(payload, dict) else dict(payload)
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= _REFERENCE_CHARS_MAX):
        raise InvalidEvent(f"{where}.idempotency_key", f"1 to 200 characters are needed, not {key!r:.50}")
    try:
        text = _ENCODER.encode(said)
        text.encode()
        (key or "").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"{where}.payload", f"it cannot be sent as JSON: {error}") from error
    return text, key


def decode(text: str | bytes) -> Any:
    """As `json.loads`, but it reads whatever the server stores: Python makes no `int` of more than 4,300 digits."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text, parse_int=Decimal)


def with_key(text: str, key: str) -> str:
    """The encoded event with an idempotency key of its own."""
    return f'{text[:-1]},"idempotency_key":{_ENCODER.encode(key)}}}'


class Keys:
    """Idempotency keys that no other client makes: a random prefix and a number."""

    __slots__ = ("_next", "_prefix")

    def __init__(self) -> None:
        self._prefix, self._next = secrets.token_urlsafe(15), 0

    def make(self) -> str:
        self._next += 1
        return f"{self._prefix}-{self._next:x}"

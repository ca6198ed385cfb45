"""What a publisher holds between `put` and the server's acknowledgement: bounded, in order, each event under a key. No IO.

A shell sends each `next_message` and hands every answer to `answered`. When a connection is lost, what was not
acknowledged is sent again under the same keys.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from . import protocol
from .errors import Refused, RefusedEvents
from .events import Keys, Publishable, decode, encode, with_key

MESSAGE_CHARS_MAX = 256 * 1024
"""Well below the server's `MAX_WS_MESSAGE_BYTES` (1 MiB) even where a character takes three bytes."""
UNANSWERED_EVENTS = 1024
"""For the events that are on their way. Few messages at a time let a batch grow while the server syncs."""
REFUSALS_MAX = 100

# The end of each sentence with which the server refuses what it may take later (src/wire/refusal.rs).
_AGAIN = re.compile(r"try again(?: later| in (\d+) s)?$")
_INDEX = re.compile(r"Event (\d+): ")

WhenFull: TypeAlias = Literal["wait", "drop_oldest"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the events of a publisher."""

    waiting: int
    """Put, and not acknowledged yet."""
    stored: int
    replayed: int
    """Of those stored: how many the server had already, from a connection that was lost before the answer."""
    refused: int
    dropped: int


@dataclass(slots=True)
class Entry:
    """An event as it is sent, under its key; and as it was put, for whoever hears of a refusal."""

    text: str
    event: Publishable


class PublisherCore:
    def __init__(
        self,
        *,
        capacity: int = 10_000,
        batch: int = 256,
        when_full: WhenFull = "wait",
        on_refused: Callable[[Publishable, Refused], None] | None = None,
    ) -> None:
        if capacity < 1 or not 1 <= batch <= UNANSWERED_EVENTS:
            raise ValueError(f"capacity, batch: at least 1 is needed, and a batch of at most {UNANSWERED_EVENTS}")
        self._capacity, self._batch, self._when_full, self._on_refused = capacity, batch, when_full, on_refused
        self._window = max(4, UNANSWERED_EVENTS // batch)
        self._keys = Keys()
        self._lock = threading.Lock()  # The blocking publisher puts from other threads than the one that sends.
        self._waiting: deque[Entry] = deque()
        self._sent: deque[tuple[Entry, ...]] = deque()
        self._unanswered = 0
        self._singly = 0
        self._auth: str | None = None
        self._auth_is_sent = False
        self._stored = self._replayed = self._refused = self._dropped = 0
        self._refusals: list[tuple[Publishable, Refused]] = []
        self.wants_token = False
        self.pause: float = 0.0
        """Seconds to wait before the next message, after a refusal that will pass."""

    def encode(self, event: Publishable) -> Entry:
        text, key = encode(event)
        return Entry(with_key(text, key or self._keys.make()), event)

    @property
    def counts(self) -> Counts:
        return Counts(self.unacknowledged, self._stored, self._replayed, self._refused, self._dropped)

    @property
    def unacknowledged(self) -> int:
        return len(self._waiting) + self._unanswered

    @property
    def is_full(self) -> bool:
        return self._when_full == "wait" and self.unacknowledged >= self._capacity

    def put(self, entry: Entry) -> None:
        """Takes an event that is to be sent. The caller has waited while this `is_full`."""
        with self._lock:
            self._waiting.append(entry)
            while self._when_full == "drop_oldest" and self._waiting and self.unacknowledged > self._capacity:
                self._waiting.popleft()
                self._dropped += 1

    def next_message(self) -> str | None:
        """What to send now, if anything."""
        if self._auth is not None:
            # An answer to it could come before those to events, and an error would be taken for one of theirs.
            if self._sent or self._auth_is_sent:
                return None
            self._auth_is_sent = True
            return self._auth
        if len(self._sent) >= self._window or not self._waiting or self.pause:
            return None
        entries: list[Entry] = []
        chars, most = 0, 1 if self._singly else self._batch
        with self._lock:
            while self._waiting and len(entries) < most:
                chars += len(self._waiting[0].text)
                if entries and chars > MESSAGE_CHARS_MAX:
                    break
                entries.append(self._waiting.popleft())
            self._unanswered += len(entries)
        if not entries:
            return None
        self._singly = max(0, self._singly - len(entries))
        self._sent.append(tuple(entries))
        return entries[0].text if len(entries) == 1 else f"[{','.join(e.text for e in entries)}]"

    def answered(self, text: str | bytes) -> None:
        try:
            said: Any = decode(text)
            if said.get("type") == "auth_expires":
                self.wants_token = True
            elif self._auth_is_sent:
                # After an error the former end stands; then the server closes with 4001, and another token is asked for.
                self._auth, self._auth_is_sent = None, False
            elif said.get("status") == "ok":
                entries = self._take()
                replayed = said.get("replayed", 0)
                self._stored += len(entries)
                self._replayed += int(replayed)
            elif said.get("status") == "error":
                self._refuse(self._take(), said["message"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise protocol.unexpected("a publisher", text) from None
        if self._on_refused is not None and (refusals := self._refusals):
            self._refusals = []
            for event, error in refusals:
                self._on_refused(event, error)

    def renew(self, token: str) -> None:
        """Goes on with another token, as soon as everything that is on its way is answered."""
        self.wants_token, self._auth = False, json.dumps({"type": "auth", "token": token})

    def lost(self) -> None:
        """The connection has ended: what it has not answered is sent again, in its order."""
        self._waiting.extendleft(reversed([entry for entries in self._sent for entry in entries]))
        self._sent.clear()
        self._unanswered = 0
        self._auth, self._auth_is_sent, self.wants_token, self.pause = None, False, False, 0.0

    def raise_refused(self) -> None:
        """Raises what the server has refused, unless a callback has heard of it. It is told once."""
        if self._refusals:
            refusals, self._refusals = self._refusals, []
            raise RefusedEvents(refusals, len(refusals) if len(refusals) < REFUSALS_MAX else self._refused)

    def _take(self) -> list[Entry]:
        entries = list(self._sent.popleft())
        self._unanswered -= len(entries)
        return entries

    def _refuse(self, entries: list[Entry], message: str) -> None:
        if again := _AGAIN.search(message):
            self.pause = float(again[1] or 1)
            self._waiting.extendleft(reversed(entries))
            return
        if len(entries) > 1:
            # An array is refused as a whole: the others are sent again.
            index = _INDEX.match(message)
            if index is None or int(index[1]) >= len(entries):
                self._singly += len(entries)
                self._waiting.extendleft(reversed(entries))
                return
            bad = entries.pop(int(index[1]))
            self._waiting.extendleft(reversed(entries))
            entries, message = [bad], message[index.end() :]
        self._refused += 1
        if len(self._refusals) < REFUSALS_MAX:
            self._refusals.append((entries[0].event, Refused(message)))

"""What a subscriber does with the messages of its socket: state, cursor, gaps, confirmations. No IO.

A shell connects, sends `opened`, hands each message to `receive` and what ends the socket to `lost`. It takes the items for
its reader from `items`, and sends what is in `outgoing`.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from . import protocol
from .errors import Disconnected, EventPipelineError, Refused
from .events import Event, Gap, decode
from .lifecycle import Lifecycle
from .protocol import BEGINNING

log = logging.getLogger("event_pipeline")


class SubscriptionCore:
    def __init__(self, first: dict[str, Any], life: Lifecycle, on_gap: Callable[[Gap], None] | None = None) -> None:
        self._first, self.life, self._on_gap = first, life, on_gap
        self._is_group = bool(first.get("group"))
        self._is_durable = self._is_group or bool(first.get("name"))
        self.cursor: str | None = first.get("after")
        """The last event that was handed to the reader, or the position at which the subscription began."""
        self.epoch: str | None = first.get("epoch")
        self.items: deque[Event | Gap] = deque()
        self.outgoing: deque[str] = deque()
        self._gaps: list[Gap] = []
        self.wants_token = False
        self._is_open = False
        self._horizon = BEGINNING
        self._refusal: str | None = None
        self._confirmed: str | None = None

    @property
    def is_open(self) -> bool:
        """The server serves this subscription now."""
        return self._is_open

    def opened(self) -> str:
        """The first message, to continue where the last connection ended. The position of a durable subscription is the
        server's."""
        self.outgoing.clear()
        self.wants_token, self._refusal = False, None
        if self._is_durable or self.cursor is None:
            return json.dumps(self._first)
        resumed = {k: v for k, v in self._first.items() if k not in ("since", "last", "snapshot")} | {
            "after": self.cursor
        }
        if self.epoch:
            resumed["epoch"] = self.epoch
        return json.dumps(resumed)

    def receive(self, text: str | bytes) -> None:
        try:
            said: Any = decode(text)
            if "id" in said:
                self._event(protocol.event(said))
            elif said.get("status") == "subscribed":
                self._subscribed(said)
            else:
                self._notice(said)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise protocol.unexpected("a subscription", text) from None
        if self._on_gap is not None and (gaps := self._gaps):
            self._gaps = []
            for gap in gaps:
                self._on_gap(gap)

    def lost(self, error: EventPipelineError) -> None:
        """The connection has ended, or none could be made."""
        self._is_open = False
        if self._refusal is not None and isinstance(error, Disconnected):
            # The server says what is wrong in a message, and whether to come back in the code of the Close frame.
            refused = Refused(self._refusal, again=error.again, retry_after=error.retry_after)
            error = refused if error.code in (1008, 1013, 1011) else error
        self.life.lost(error)

    def confirm(self, event: Event | str) -> str | None:
        """The message that confirms everything up to this event; `None` while there is no connection. Then it is sent on
        the next one, unless this is a group, where others have got the event meanwhile."""
        if not self._is_durable:
            raise ValueError("ack: only a subscription with a name or a group has something to confirm")
        event_id = event.id if isinstance(event, Event) else event
        if not isinstance(event_id, str) or not protocol.EVENT_ID.match(event_id):
            raise ValueError(f"ack: an event or its id is needed, not {event_id!r}")
        self._confirmed = event_id if self._is_group else max(event_id, self._confirmed or event_id)
        return json.dumps({"type": "ack", "id": event_id}) if self._is_open else None

    def renew(self, token: str) -> str:
        """The message with which the open connection goes on with another token."""
        self.wants_token = False
        return json.dumps({"type": "auth", "token": token})

    def _subscribed(self, said: dict[str, Any]) -> None:
        last, epoch = said["last_event_id"] or BEGINNING, said["epoch"]
        gap = protocol.gap(said["gap"]) if said.get("gap") else None
        if gap is None and self._is_durable and self.epoch is not None and epoch != self.epoch:
            # The server does not compare the epoch of a durable subscription.
            gap = Gap("unknown_cursor", self.cursor)
        is_resumed = self.cursor is not None and not self._is_durable
        has_start = is_resumed or any(self._first.get(k) is not None for k in ("since", "last", "snapshot"))
        if gap is not None:
            self.cursor = last if gap.why == "unknown_cursor" else max(gap.through or last, self.cursor or BEGINNING)
            if self._is_durable and gap.why == "unknown_cursor":
                self.cursor = None
            self._tell(gap)
        elif not has_start and not self._is_durable:
            self.cursor = last
        self.epoch, self._horizon, self._is_open = epoch, last, True
        if self._confirmed is not None and not self._is_group:
            self.outgoing.append(json.dumps({"type": "ack", "id": self._confirmed}))
        self.life.connected("catching-up" if has_start and not self._is_durable else "live")

    def _event(self, event: Event) -> None:
        self.life.progressed()
        if self._is_durable:
            # Nothing marks the beginning of what is delivered again, and in a group nothing marks its end.
            self.life.connected("catching-up" if event.id < self._horizon else "live")
            if not self._is_group and self.cursor is not None and event.id <= self.cursor:
                return  # This reader has it already; it has only not been confirmed when the connection was lost.
        self.cursor = event.id
        self.items.append(event)

    def _notice(self, said: dict[str, Any]) -> None:
        match said.get("type"):
            case "caught_up":
                self.life.progressed()
                self.life.connected("live")
            case "fell_behind":
                self.life.connected("catching-up")
            case "lagged":
                self.cursor = said["last_event_id"]
                self._tell(Gap("lagged", said["last_event_id"], said["missed"]))
            case "skipped":
                self._tell(Gap("conflated", None, said["count"]))
            case "auth_expires":
                self.wants_token = True
            case None if said.get("status") == "error":
                if not self._is_open:
                    self._refusal = said["message"]
                log.warning("the server has refused a message of a subscriber: %s", said["message"])

    def _tell(self, gap: Gap) -> None:
        if self._on_gap is None:
            self.items.append(gap)
        else:
            self._gaps.append(gap)

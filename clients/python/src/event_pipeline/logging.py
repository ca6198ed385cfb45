"""A handler for `logging` that publishes records as events of the type `error_occurred`.

    logging.getLogger().addHandler(EventPipelineHandler(events, source="quiz_engine"))

A record waits for nothing: a thread sends what has gathered, and the oldest records are dropped, and counted, while the
server cannot be reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .blocking import EventPipeline, Publisher

# A record about sending a record would be sent, too, and so on.
_OWN = ("event_pipeline", "httpx2", "httpcore2", "websockets", "asyncio")
_TEXT_CHARS_MAX = 8_000
"""A payload has at most 64 KiB, and a trace of a deep recursion can be longer."""


class EventPipelineHandler(logging.Handler):
    """Publishes each record at `level` or above. `session_id` and `user_id` are taken from the record, where a call gives
    them by `extra`. Closing it, as `logging.shutdown` does when the program ends, waits up to `grace` seconds."""

    def __init__(
        self,
        events: EventPipeline,
        *,
        source: str,
        level: int = logging.ERROR,
        capacity: int = 1_000,
        grace: float = 2.0,
        event_type: str = "error_occurred",
        on_refused: Callable[[Any, Exception], None] | None = None,
    ) -> None:
        super().__init__(level)
        self._publisher: Publisher = events.publisher(
            capacity=capacity, when_full="drop_oldest", on_refused=on_refused or (lambda event, error: None)
        )
        self._source, self._event_type, self._grace = source, event_type, grace
        self._is_open = False

    @property
    def dropped(self) -> int:
        """How many records the server did not get."""
        return self._publisher.counts.dropped + self._publisher.counts.refused if self._is_open else 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in _OWN:
            return
        try:
            if not self._is_open:
                self._publisher.open()
                self._is_open = True
            self._publisher.put(self._event(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        try:
            if self._is_open:
                self._publisher.close(self._grace)
        except Exception:
            pass  # The program ends: what the server could not be told is lost, as the class says.
        finally:
            super().close()

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        payload = {
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:_TEXT_CHARS_MAX],
            "file": f"{record.pathname}:{record.lineno}",
            "logged_at": record.created,
        }
        if record.exc_info:
            trace = (self.formatter or logging.Formatter()).formatException(record.exc_info)
            payload["exception"] = trace[-_TEXT_CHARS_MAX:]
        fields = {name: getattr(record, name) for name in ("session_id", "user_id") if hasattr(record, name)}
        return {"event_type": self._event_type, "source": self._source, "payload": payload, **fields}

"""What both clients are given: address, credentials, backoff; and what they make of it for each connection. No IO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from . import protocol
from .errors import Disconnected, EventPipelineError, Refused, Unavailable, WrongServer
from .events import Keys
from .lifecycle import Backoff, Lifecycle, State

USER_AGENT = f"event-pipeline-python/{protocol.CLIENT_VERSION}"
SOCKET: dict[str, Any] = {
    "compression": None,
    "max_size": 16 * 1024 * 1024,  # The largest message of the server.
    "open_timeout": 10,
    "close_timeout": 2,
    "user_agent_header": USER_AGENT,
}
"""How both shells open a WebSocket. What a slow reader does not take stays with the server, where `on_lag` does its work:
the libraries stop reading the socket when 16 messages wait."""


class Settings:
    def __init__(
        self, url: str, key: str | None, token: Callable[[], Any] | None, backoff: Backoff | None, timeout: float
    ) -> None:
        if key is not None and token is not None:
            raise ValueError("key, token: give one of them")
        if token is not None and not callable(token):
            raise TypeError("token: a callable is needed that returns the next token; a key is given by `key`")
        self.address = protocol.Address(url)
        self.key = None if key is None else protocol.credential(key, "key")
        self.token, self.backoff, self.timeout = token, backoff or Backoff(), timeout
        self.keys = Keys()

    def headers(self, token: str | None) -> dict[str, str]:
        """The credential, in a header: URLs end up in logs."""
        if token is not None:
            return {"Authorization": f"Bearer {protocol.credential(token, 'token')}"}
        return {} if self.key is None else {"X-API-Key": self.key}

    def lifecycle(self, on_state: Callable[[State], None] | None = None) -> Lifecycle:
        return Lifecycle(self.backoff, has_tokens=self.token is not None, on_state=on_state)

    def tries(self, timeout: float | None) -> Tries:
        return Tries(self.lifecycle(), self.timeout if timeout is None else timeout)


class Tries:
    """The tries of one request."""

    def __init__(self, life: Lifecycle, timeout: float) -> None:
        self._life, self._deadline = life, time.monotonic() + timeout

    def pause(self, error: EventPipelineError) -> float:
        """How long to wait after a try has failed. Raises the error where another try would be in vain or too late."""
        self._life.lost(error)
        if self._life.is_closed or time.monotonic() + self._life.pause > self._deadline:
            raise error
        return self._life.pause


def error_of(error: Exception, where: str) -> EventPipelineError:
    """What an error of the libraries means."""
    match error:
        case EventPipelineError():
            return error
        case ConnectionClosed():
            close = error.rcvd
            return Disconnected(close.code, close.reason) if close else Disconnected(1006)
        case InvalidStatus():
            response = error.response
            headers: Mapping[str, str] = {k.lower(): v for k, v in response.headers.raw_items()}
            return Refused.of_answer(where, response.status_code, headers, bytes(response.body or b""))
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return WrongServer(f"{where}: {error}")
        case httpx2.TransportError() | httpx2.StreamError() | InvalidHandshake() | WebSocketException() | OSError():
            return Unavailable(f"{where}: {error or type(error).__name__}")
    raise error


FAILURES = (EventPipelineError, httpx2.TransportError, httpx2.StreamError, WebSocketException, OSError)
"""What a connection can end with. A `TimeoutError` is an `OSError`."""

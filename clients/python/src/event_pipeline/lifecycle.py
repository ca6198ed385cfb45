"""The states of a connection that mends itself, and how long it waits before it tries again. No IO."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .errors import Disconnected, EventPipelineError, Refused, WrongServer

Phase = Literal["connecting", "catching-up", "live", "waiting", "closed"]


@dataclass(frozen=True, slots=True)
class State:
    """Where a connection stands.

    `connecting`, then `catching-up` while stored events come, and `live`. After a loss it is `waiting`, with the reason
    and the time (`time.time()`) of the next try, and ends `closed`, with the reason, when another try would be in vain.
    """

    phase: Phase
    why: str = ""
    retry_at: float | None = None


STEADY_SECONDS = 5.0
"""A connection that was there for so long has worked, even if nothing was sent on it."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next try: seconds.

    The first pause is anywhere between 0 and `first`, so that 1,000 clients of a server that restarts come back spread
    over a second. The ceiling doubles with each further try, up to `most`, and the pause is at least half of it.
    """

    first: float = 1.0
    most: float = 15.0

    def pause(self, failures: int, at_least: float | None = None) -> float:
        """The pause after so many failures in a row, from 1; at least as long as the server has asked for."""
        ceiling: float = min(self.most, self.first * 2.0 ** min(failures - 1, 16))
        pause = random.uniform(0 if failures == 1 else ceiling / 2, ceiling)
        # Those who were told the same time should not come back at the same time.
        return pause if at_least is None else at_least + min(pause, self.first)


class Lifecycle:
    """The state of one connection, and what follows from its end."""

    def __init__(self, backoff: Backoff, *, has_tokens: bool, on_state: Callable[[State], None] | None = None) -> None:
        self._backoff, self._has_tokens, self._on_state = backoff, has_tokens, on_state
        self._failures = 0
        self._was_unauthorized = self._was_connected = False
        self._pause_until = self._connected_at = 0.0
        self.state = State("connecting", "nothing is sent yet")
        self.error: EventPipelineError | None = None
        """Why it is closed; `None` if the client or the server's `until` has ended it."""

    @property
    def is_closed(self) -> bool:
        return self.state.phase == "closed"

    @property
    def pause(self) -> float:
        """Seconds until the next try is due."""
        return max(0.0, self._pause_until - time.monotonic())

    def connecting(self) -> None:
        self._enter(State("connecting"))

    def connected(self, phase: Literal["catching-up", "live"]) -> None:
        if self.state.phase == "connecting":
            self._connected_at, self._was_connected, self._was_unauthorized = time.monotonic(), True, False
        self._enter(State(phase))

    def progressed(self) -> None:
        """The connection has done what it is for. A handshake alone is not enough: a server that accepts and closes again
        would be asked without a longer pause."""
        self._failures = 0

    def lost(self, error: EventPipelineError) -> None:
        """A try has failed or a connection has ended: afterwards the state is `waiting` or `closed`."""
        if self.is_closed:
            return
        was_steady = (
            self.state.phase in ("live", "catching-up") and time.monotonic() - self._connected_at > STEADY_SECONDS
        )
        self._failures = 1 if was_steady else self._failures + 1
        # What was the server a moment ago has a proxy before it, which answers in its place while it is away.
        is_absence = isinstance(error, WrongServer) and self._was_connected
        if not error.again and not is_absence and not self._can_renew(error):
            self.close(error)
            return
        pause = self._backoff.pause(self._failures, error.retry_after)
        self._pause_until = time.monotonic() + pause
        self._enter(State("waiting", str(error), time.time() + pause))

    def close(self, error: EventPipelineError | None = None) -> None:
        if not self.is_closed:
            self.error = None if isinstance(error, Disconnected) and error.code == 1000 else error
            self._enter(State("closed", str(error) if error else "closed by the client"))

    def _can_renew(self, error: EventPipelineError) -> bool:
        """Whether the next token may do what this one could not. One that was just issued and is refused twice will not."""
        if not self._has_tokens:
            return False
        if isinstance(error, Refused) and error.status == 401:
            again, self._was_unauthorized = not self._was_unauthorized, True
            return again
        return isinstance(error, Disconnected) and error.code == 4001

    def _enter(self, state: State) -> None:
        if state != self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state)

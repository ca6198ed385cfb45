"""What can go wrong. Every error says what, and where; `again` says whether the same may succeed later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .close_codes import CLOSE_CODES, Again


class EventPipelineError(Exception):
    """Every error of this package but those of wrong arguments, which are a `ValueError` or a `TypeError`."""

    again: bool = False
    """Whether the client tries again by itself."""
    retry_after: float | None = None
    """Seconds before which another try is in vain, if the server has named them."""


class InvalidEvent(EventPipelineError, ValueError):
    """An event that the server would not take. Nothing was sent."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


class Unavailable(EventPipelineError):
    """The server cannot be reached, or a proxy says so in its place."""

    again = True


class WrongServer(EventPipelineError):
    """Something answers at this address, but it is no event pipeline, or one of a version that this client cannot speak
    with."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a request, and where: `("body", 3, "source")`."""

    loc: tuple[str | int, ...]
    msg: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.loc))}: {self.msg}"


class Refused(EventPipelineError):
    """The server does not carry this out, and says why."""

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        problem: str | None = None,
        faults: tuple[Fault, ...] = (),
        again: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail if status is None else f"{detail} ({status})")
        self.status, self.problem, self.detail, self.faults = status, problem, detail, faults
        self.again, self.retry_after = again, retry_after

    @classmethod
    def of_answer(cls, where: str, status: int, headers: Mapping[str, str], body: bytes) -> EventPipelineError:
        """The error that an answer means whose status is not a good one. Only the server answers with a problem (RFC
        9457); another answer is that of a proxy, or of something else at this address."""
        retry_after = _seconds(headers.get("retry-after"))
        try:
            problem: Any = json.loads(body) if "problem+json" in headers.get("content-type", "") else None
            detail = problem["detail"] if problem else None
            faults = () if isinstance(detail, str) else tuple(Fault(tuple(f["loc"]), f["msg"]) for f in detail or ())
        except (ValueError, TypeError, KeyError):
            problem = None
        if not problem:
            error: EventPipelineError
            if status in (408, 425, 429) or status >= 500:
                error = Unavailable(f"{where} was answered with {status}, not by the event pipeline")
                error.retry_after = retry_after
            else:
                error = WrongServer(f"{where} was answered with {status}, but not by an event pipeline")
            return error
        return cls(
            detail if isinstance(detail, str) else "; ".join(map(str, faults)),
            status=status,
            problem=str(problem.get("type", "")).rpartition("/")[2],
            faults=faults,
            # The server names a time if and only if the same request may succeed later.
            again=retry_after is not None or status == 408,
            retry_after=retry_after,
        )


class Disconnected(EventPipelineError):
    """How a WebSocket ended: its close code, and the server's reason. Without a Close frame the code is 1006."""

    def __init__(self, code: int, reason: str = "") -> None:
        self.code, self.reason = code, reason
        why = CLOSE_CODES[code][1] if code in CLOSE_CODES else "the connection was lost" if code == 1006 else ""
        super().__init__(": ".join(filter(None, (f"the connection was closed with {code}", reason or why))))
        # After a code that is not the server's, such as that of a proxy, it is worth a try.
        self.again = CLOSE_CODES.get(code, (Again.YES, ""))[0] in (Again.YES, Again.LATER)
        if CLOSE_CODES.get(code, (Again.YES, ""))[0] is Again.LATER:
            self.retry_after = LATER_SECONDS


LATER_SECONDS = 2.0
"""For how long a client stays away that the server has no room for. A slot of another client is rarely free sooner."""


class RefusedEvents(EventPipelineError):
    """Events that a publisher has put and the server has refused, each with the reason; at most the first 100."""

    def __init__(self, refusals: list[tuple[Any, Refused]], count: int) -> None:
        event, error = refusals[0]
        others = f", and {count - 1} more" if count > 1 else ""
        super().__init__(f"the server refused {event!r}: {error}{others}")
        self.refusals, self.count = refusals, count


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None

"""The codes that the server closes a WebSocket with, and whether to connect again. A test compares the table with the
server's own, `x-close-codes` in docs/asyncapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Again(Enum):
    YES = "yes"
    LATER = "later"
    NO = "no"
    NOT_THE_SAME = "not the same"
    """Only with something else, such as another token."""


CLOSE_CODES: Mapping[int, tuple[Again, str]] = MappingProxyType(
    {
        1000: (Again.NO, "everything before `until` was sent, or the client closed without a code"),
        1001: (Again.YES, "the server is shutting down"),
        1002: (Again.NO, "the client broke a rule of the protocol"),
        1007: (Again.NO, "a text message is not UTF-8"),
        1008: (Again.NOT_THE_SAME, "no first message in time, or it was refused"),
        1009: (Again.NO, "a message is larger than 16 MiB"),
        1011: (Again.YES, "an internal error, or the client did not answer pings"),
        1013: (Again.LATER, "the server is at its capacity of subscribers"),
        4001: (Again.NOT_THE_SAME, "the key was revoked or has expired"),
        4002: (Again.LATER, "too many WebSockets with this key or, without a key, from this address"),
        4008: (Again.YES, 'too slow, with `"on_lag": "disconnect"` or in a group'),
        4009: (Again.NO, "another connection continues under this name"),
        4010: (Again.NO, "the durable subscription was deleted"),
    }
)

"""The client of the event pipeline: publishes events once, follows them without a gap.

`EventPipeline` is for threads, `AsyncEventPipeline` the same for asyncio. Both do nothing but IO: the modules `lifecycle`,
`subscription`, `publication` and `protocol` decide, and do none.
"""

from .aio import AsyncEventPipeline, AsyncPublisher, AsyncSubscription
from .blocking import EventPipeline, Publisher, Subscription
from .close_codes import CLOSE_CODES, Again
from .errors import (
    Disconnected,
    EventPipelineError,
    Fault,
    InvalidEvent,
    Refused,
    RefusedEvents,
    Unavailable,
    WrongServer,
)
from .events import Event, Gap, NewEvent, Publishable, Receipt
from .lifecycle import Backoff, State
from .publication import Counts

__all__ = [
    "CLOSE_CODES",
    "Again",
    "AsyncEventPipeline",
    "AsyncPublisher",
    "AsyncSubscription",
    "Backoff",
    "Counts",
    "Disconnected",
    "Event",
    "EventPipeline",
    "EventPipelineError",
    "Fault",
    "Gap",
    "InvalidEvent",
    "NewEvent",
    "Publishable",
    "Publisher",
    "Receipt",
    "Refused",
    "RefusedEvents",
    "State",
    "Subscription",
    "Unavailable",
    "WrongServer",
]

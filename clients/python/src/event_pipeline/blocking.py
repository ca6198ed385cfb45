"""The client for threads. It does the IO, and leaves decisions to the modules that do none."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, cast, overload

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from . import protocol
from .aio import GRACE_SECONDS, AsyncEventPipeline, AsyncPublisher
from .errors import Refused
from .events import AckLevel, Event, Gap, Publishable, Receipt
from .lifecycle import Backoff, State
from .protocol import Filters, Options, Request
from .publication import Counts, WhenFull
from .settings import FAILURES, SOCKET, USER_AGENT, Settings, error_of
from .subscription import SubscriptionCore

Item = TypeVar("Item", bound=Event | Gap)
Result = TypeVar("Result")


class EventPipeline:
    """A client of the event pipeline at `url`, such as `http://localhost:8001` or `https://school.example/events`.

    * `key` is sent in a header. Instead of one, `token` is called for the next token at each connection, and when the
      server says that the token of an open one ends.
    * `timeout` is for how long a request is tried again while the server cannot be reached, in seconds.

    Nothing is sent before it is used. A wrong argument is a `ValueError`; what is no event pipeline is a `WrongServer`.
    Threads may share a client.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        token: Callable[[], str] | None = None,
        timeout: float = 60.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings = Settings(url, key, token, backoff, timeout)
        self._make_async = lambda: AsyncEventPipeline(url, key=key, token=token, timeout=timeout, backoff=backoff)
        self._http = httpx2.Client(headers={"User-Agent": USER_AGENT}, timeout=30)
        self._is_known = False
        self._token: str | None = None

    def publish(self, event: Publishable, *, ack: AckLevel = "synced", timeout: float | None = None) -> Receipt:
        """Publishes an event, once: returns when it is on the server's disk. A try whose answer is lost is repeated under
        the same idempotency key."""
        request = protocol.publish([event], ack, self._settings.keys, is_one=True)
        return protocol.receipt(*self._request(request, timeout))

    def publish_all(
        self, events: Iterable[Publishable], *, ack: AckLevel = "synced", timeout: float | None = None
    ) -> Receipt:
        """Publishes several events in one request: all of them are stored, or none."""
        request = protocol.publish(list(events), ack, self._settings.keys, is_one=False)
        return protocol.receipt(*self._request(request, timeout))

    def publisher(
        self,
        *,
        capacity: int = 10_000,
        batch: int = 256,
        when_full: WhenFull = "wait",
        on_refused: Callable[[Publishable, Refused], None] | None = None,
        on_state: Callable[[State], None] | None = None,
    ) -> Publisher:
        """Publishes in the background, in order, over one WebSocket: what waits is sent together, at most `batch` events
        in a message. At most `capacity` events wait: then `put` waits, too, or the oldest event is dropped and counted.

        What the server refuses is handed to `on_refused`; without it, `flush` and `close` raise. The callbacks are
        called on the publisher's thread.
        """
        options = (("capacity", capacity), ("batch", batch), ("when_full", when_full))
        return Publisher(self._make_async, {**dict(options), "on_refused": on_refused, "on_state": on_state})

    @overload
    def subscribe(
        self, *, on_gap: None = None, on_state: Callable[[State], None] | None = None, **options: Unpack[Options]
    ) -> Subscription[Event | Gap]: ...
    @overload
    def subscribe(
        self,
        *,
        on_gap: Callable[[Gap], None],
        on_state: Callable[[State], None] | None = None,
        **options: Unpack[Options],
    ) -> Subscription[Event]: ...
    def subscribe(
        self,
        *,
        on_gap: Callable[[Gap], None] | None = None,
        on_state: Callable[[State], None] | None = None,
        **options: Unpack[Options],
    ) -> Subscription[Any]:
        """An iterator over the events that pass, each once, in order. It connects when the first one is asked for, or by
        `with`; it reconnects and continues by itself.

        A `Gap` is an item among the events. With `on_gap` it is handed to that instead, and all items are events.
        """
        core = SubscriptionCore(protocol.subscribe(options), self._settings.lifecycle(on_state), on_gap)
        return Subscription(self, core)

    def query(
        self,
        *,
        since: Any = None,
        until: Any = None,
        before_id: str | None = None,
        oldest_first: bool = False,
        page: int = 500,
        timeout: float | None = None,
        **filters: Unpack[Filters],
    ) -> Iterator[Event]:
        """The stored events that pass, the newest first; fetched in pages of at most `page` as they are needed."""
        bounds = {"since": since, "until": until, "before_id": before_id}
        request: Request | None = protocol.query(filters, page, oldest_first=oldest_first, **bounds)
        while request is not None:
            events, request = protocol.page(*self._request(request, timeout))
            yield from events

    def stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The answer to `GET /stats`."""
        return protocol.stats(*self._request(Request("GET", "/stats"), timeout))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, request: Request, timeout: float | None) -> tuple[httpx2.Headers, bytes]:
        tries = self._settings.tries(timeout)
        while True:
            try:
                self._know_server()
                if self._token is None:
                    self._token = self._next_token()
                headers = {**(request.headers or {}), **self._settings.headers(self._token)}
                response = self._http.request(
                    request.method,
                    self._settings.address.http + request.path,
                    content=request.body,
                    params=request.params,
                    headers=headers,
                )
                protocol.answer(request, response.status_code, response.headers, response.content)
                return response.headers, response.content
            except FAILURES as error:
                self._token = None
                pause = tries.pause(error_of(error, self._settings.address.http))
            time.sleep(pause)

    def _connect(self, path: str) -> ClientConnection:
        self._know_server()
        headers = self._settings.headers(self._next_token())
        return connect(self._settings.address.ws + path, additional_headers=headers, legacy=True, **SOCKET)

    def _know_server(self) -> None:
        if not self._is_known:
            response = self._http.get(f"{self._settings.address.http}/health")
            protocol.check_health(self._settings.address.http, response.status_code, response.content)
            self._is_known = True

    def _next_token(self) -> str | None:
        return None if self._settings.token is None else cast(str, self._settings.token())


class Subscription(Generic[Item]):
    """An iterator over events. Leaving its `with`, or `close`, unsubscribes. One thread reads; others may `ack` or `close`."""

    def __init__(self, client: EventPipeline, core: SubscriptionCore) -> None:
        self._client, self._core = client, core
        self._socket: ClientConnection | None = None
        self._closing = threading.Event()

    @property
    def state(self) -> State:
        return self._core.life.state

    @property
    def cursor(self) -> str | None:
        """The last event that was received. `subscribe(after=cursor, epoch=epoch)` continues after it, in any process."""
        return self._core.cursor

    @property
    def epoch(self) -> str | None:
        """The life of the database in which the cursor means that event."""
        return self._core.epoch

    def open(self) -> Self:
        """Waits until the server serves the subscription. What is stored after that is delivered."""
        while not self._core.is_open and not self._core.life.is_closed:
            self._step(None)
        if self._core.life.error is not None:
            raise self._core.life.error
        return self

    def next(self, timeout: float | None = None) -> Item:
        """The next event. Raises `TimeoutError` where none comes in time; nothing is lost by that."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._core.items and not self._core.life.is_closed:
            self._step(deadline)
        if self._core.items:
            return cast(Item, self._core.items.popleft())
        raise self._core.life.error or StopIteration

    def ack(self, event: Event | str) -> None:
        """Confirms that this event and all before it are processed. Needs a name or a group."""
        message = self._core.confirm(event)
        if message is not None and (socket := self._socket) is not None:
            # After a loss the next step mends the connection, and the confirmation is sent on it.
            with contextlib.suppress(ConnectionClosed):
                socket.send(message)

    def close(self) -> None:
        self._closing.set()
        self._core.life.close()
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _step(self, deadline: float | None) -> None:
        """Receives one message, or mends the connection."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            if self._socket is None:
                pause = self._core.life.pause
                self._closing.wait(pause if left is None else min(pause, left))
                if self._closing.is_set():
                    return
                if left is not None and pause > left:
                    raise OutOfTime
                self._core.life.connecting()
                socket = self._client._connect("/ws/subscribe")
                socket.send(self._core.opened())
                self._socket = socket
                if self._closing.is_set():  # By another thread, which has not seen this socket.
                    socket.close()
                    return
            socket = self._socket
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                text = socket.recv(left)
            except TimeoutError:
                raise OutOfTime from None
            self._core.receive(text)
            if self._core.wants_token and (token := self._client._next_token()) is not None:
                socket.send(self._core.renew(token))
            while self._core.outgoing:
                socket.send(self._core.outgoing.popleft())
        except OutOfTime:
            raise TimeoutError("no event came in time") from None
        except FAILURES as error:
            ended, self._socket = self._socket, None
            self._core.lost(error_of(error, f"{self._client._settings.address.ws}/ws/subscribe"))
            if ended is not None:
                ended.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        return self.next()

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class OutOfTime(Exception):
    """The time of the caller is over, which is no failure of the connection."""


class Publisher:
    """Publishes in the background: an `AsyncPublisher` on a thread of its own. Any thread may `put`."""

    def __init__(self, make_client: Callable[[], AsyncEventPipeline], options: dict[str, Any]) -> None:
        self._make_client, self._options = make_client, options
        self._room = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher: AsyncPublisher | None = None

    @property
    def state(self) -> State:
        return self._inner.state

    @property
    def counts(self) -> Counts:
        return self._inner.counts

    def open(self) -> Self:
        """Begins. A server that cannot be reached now is tried again in the background; a wrong one is an error."""
        if self._publisher is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="event-pipeline publisher", daemon=True)
            self._thread.start()
            try:
                self._publisher = self._run(self._start())
                self._run(self._publisher.open())
            except BaseException:
                self._stop()
                raise
        return self

    def put(self, event: Publishable, timeout: float | None = None) -> None:
        """Takes an event, to be sent soon. Raises `InvalidEvent` for a bad one, `TimeoutError` where there is no room in
        time, and the reason where the connection has ended for good."""
        inner = self._inner
        entry = inner.encode(event)
        if inner.is_full:
            with self._room:
                if not self._room.wait_for(lambda: not inner.is_full, timeout):
                    raise TimeoutError("the publisher is full")
        if inner.take(entry):
            self._loop_of_thread.call_soon_threadsafe(inner.wake)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything that was put is acknowledged. Raises `RefusedEvents` if the server has refused some."""
        self._run(self._inner.flush(timeout))

    def close(self, timeout: float | None = None) -> None:
        """Flushes and ends."""
        if self._publisher is not None and self._loop is not None:
            try:
                self._run(self._publisher.close(timeout))
            finally:
                self._stop()

    async def _start(self) -> AsyncPublisher:
        self._client = self._make_client()
        publisher = self._client.publisher(**self._options)
        publisher.on_progress = self._progressed
        return publisher

    def _stop(self) -> None:
        loop = self._loop_of_thread
        self._run(self._client.close())
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()
        self._loop = None

    @property
    def _loop_of_thread(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise ValueError("the publisher is closed")
        return self._loop

    @property
    def _inner(self) -> AsyncPublisher:
        if self._publisher is None:
            raise ValueError("the publisher is not open: use `with`")
        return self._publisher

    def _run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(call, self._loop_of_thread).result()

    def _progressed(self) -> None:
        with self._room:
            self._room.notify_all()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(Exception):
                self.close(GRACE_SECONDS)

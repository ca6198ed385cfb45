"""The client for asyncio. It does the IO, and leaves decisions to the modules that do none."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, cast, overload

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from . import protocol
from .errors import EventPipelineError, Refused
from .events import AckLevel, Event, Gap, Publishable, Receipt
from .lifecycle import Backoff, Lifecycle, State
from .protocol import Filters, Options, Request
from .publication import Counts, Entry, PublisherCore, WhenFull
from .settings import FAILURES, SOCKET, USER_AGENT, Settings, error_of
from .subscription import SubscriptionCore

Item = TypeVar("Item", bound=Event | Gap)
GRACE_SECONDS = 5.0
"""For how long a `with` that an exception ends waits for what its publisher has put before."""


class AsyncEventPipeline:
    """A client of the event pipeline at `url`, for asyncio. `EventPipeline` is the same for threads, and describes each
    argument. `token` may be a coroutine function."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        token: Callable[[], str | Awaitable[str]] | None = None,
        timeout: float = 60.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings = Settings(url, key, token, backoff, timeout)
        self._http = httpx2.AsyncClient(headers={"User-Agent": USER_AGENT}, timeout=30)
        self._is_known = False
        self._token: str | None = None

    async def publish(self, event: Publishable, *, ack: AckLevel = "synced", timeout: float | None = None) -> Receipt:
        request = protocol.publish([event], ack, self._settings.keys, is_one=True)
        return protocol.receipt(*await self._request(request, timeout))

    async def publish_all(
        self, events: Iterable[Publishable], *, ack: AckLevel = "synced", timeout: float | None = None
    ) -> Receipt:
        request = protocol.publish(list(events), ack, self._settings.keys, is_one=False)
        return protocol.receipt(*await self._request(request, timeout))

    def publisher(
        self,
        *,
        capacity: int = 10_000,
        batch: int = 256,
        when_full: WhenFull = "wait",
        on_refused: Callable[[Publishable, Refused], None] | None = None,
        on_state: Callable[[State], None] | None = None,
    ) -> AsyncPublisher:
        core = PublisherCore(capacity=capacity, batch=batch, when_full=when_full, on_refused=on_refused)
        return AsyncPublisher(self, core, self._settings.lifecycle(on_state))

    @overload
    def subscribe(
        self, *, on_gap: None = None, on_state: Callable[[State], None] | None = None, **options: Unpack[Options]
    ) -> AsyncSubscription[Event | Gap]: ...
    @overload
    def subscribe(
        self,
        *,
        on_gap: Callable[[Gap], None],
        on_state: Callable[[State], None] | None = None,
        **options: Unpack[Options],
    ) -> AsyncSubscription[Event]: ...
    def subscribe(
        self,
        *,
        on_gap: Callable[[Gap], None] | None = None,
        on_state: Callable[[State], None] | None = None,
        **options: Unpack[Options],
    ) -> AsyncSubscription[Any]:
        core = SubscriptionCore(protocol.subscribe(options), self._settings.lifecycle(on_state), on_gap)
        return AsyncSubscription(self, core)

    async def query(
        self,
        *,
        since: Any = None,
        until: Any = None,
        before_id: str | None = None,
        oldest_first: bool = False,
        page: int = 500,
        timeout: float | None = None,
        **filters: Unpack[Filters],
    ) -> AsyncIterator[Event]:
        bounds = {"since": since, "until": until, "before_id": before_id}
        request: Request | None = protocol.query(filters, page, oldest_first=oldest_first, **bounds)
        while request is not None:
            events, request = protocol.page(*await self._request(request, timeout))
            for event in events:
                yield event

    async def stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        return protocol.stats(*await self._request(Request("GET", "/stats"), timeout))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(self, request: Request, timeout: float | None) -> tuple[httpx2.Headers, bytes]:
        tries = self._settings.tries(timeout)
        while True:
            try:
                await self._know_server()
                if self._token is None:
                    self._token = await self._next_token()
                headers = {**(request.headers or {}), **self._settings.headers(self._token)}
                response = await self._http.request(
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
            await asyncio.sleep(pause)

    async def _connect(self, path: str, first: Callable[[], str] | None = None) -> ClientConnection:
        await self._know_server()
        headers = self._settings.headers(await self._next_token())
        socket = await connect(self._settings.address.ws + path, additional_headers=headers, **SOCKET)
        try:
            if first is not None:
                await socket.send(first())
        except BaseException:
            socket.transport.abort()
            raise
        return socket

    async def _know_server(self) -> None:
        if not self._is_known:
            response = await self._http.get(f"{self._settings.address.http}/health")
            protocol.check_health(self._settings.address.http, response.status_code, response.content)
            self._is_known = True

    async def _next_token(self) -> str | None:
        if self._settings.token is None:
            return None
        token = self._settings.token()
        return cast(str, await token if inspect.isawaitable(token) else token)


class AsyncSubscription(Generic[Item]):
    """As `Subscription`, for asyncio."""

    def __init__(self, client: AsyncEventPipeline, core: SubscriptionCore) -> None:
        self._client, self._core = client, core
        self._socket: ClientConnection | None = None

    @property
    def state(self) -> State:
        return self._core.life.state

    @property
    def cursor(self) -> str | None:
        return self._core.cursor

    @property
    def epoch(self) -> str | None:
        return self._core.epoch

    async def open(self) -> Self:
        while not self._core.is_open and not self._core.life.is_closed:
            await self._step()
        if self._core.life.error is not None:
            raise self._core.life.error
        return self

    async def next(self, timeout: float | None = None) -> Item:
        async with asyncio.timeout(timeout):
            while not self._core.items and not self._core.life.is_closed:
                await self._step()
        if self._core.items:
            return cast(Item, self._core.items.popleft())
        raise self._core.life.error or StopAsyncIteration

    async def ack(self, event: Event | str) -> None:
        message = self._core.confirm(event)
        if message is not None and self._socket is not None:
            try:
                await self._socket.send(message)
            except ConnectionClosed:
                pass  # The next step meets it, and the confirmation is sent on the next connection.

    async def close(self) -> None:
        self._core.life.close()
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _step(self) -> None:
        """Receives one message, or mends the connection."""
        try:
            if self._socket is None:
                await asyncio.sleep(self._core.life.pause)
                if self._core.life.is_closed:
                    return
                self._core.life.connecting()
                self._socket = await self._client._connect("/ws/subscribe", self._core.opened)
                if self._core.life.is_closed:  # By another task, which has not seen this socket.
                    return await self.close()
            self._core.receive(await self._socket.recv())
            if self._core.wants_token and (token := await self._client._next_token()) is not None:
                await self._socket.send(self._core.renew(token))
            while self._core.outgoing:
                await self._socket.send(self._core.outgoing.popleft())
        except FAILURES as error:
            socket, self._socket = self._socket, None
            self._core.lost(error_of(error, f"{self._client._settings.address.ws}/ws/subscribe"))
            if socket is not None:
                await socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        return await self.next()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if self._socket is not None:
            self._socket.transport.abort()


class AsyncPublisher:
    """As `Publisher`, for asyncio."""

    def __init__(self, client: AsyncEventPipeline, core: PublisherCore, life: Lifecycle) -> None:
        self._client, self._core, self._life = client, core, life
        self._wake, self._progress = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_progress: Callable[[], None] | None = None

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def counts(self) -> Counts:
        return self._core.counts

    async def open(self) -> Self:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        while self._life.state.phase == "connecting":
            await self._progressed()
        self._raise_closed()
        return self

    async def put(self, event: Publishable) -> None:
        entry = self.encode(event)
        while self.is_full:
            await self._progressed()
        self.take(entry)
        self.wake()

    # The parts of `put`, for a caller on another thread.
    def encode(self, event: Publishable) -> Entry:
        return self._core.encode(event)

    @property
    def is_full(self) -> bool:
        return self._core.is_full and not self._life.is_closed

    def take(self, entry: Entry) -> bool:
        """Whether the sender has to be woken."""
        self._raise_closed()
        self._core.put(entry)
        return not self._wake.is_set()

    def wake(self) -> None:
        self._wake.set()

    async def flush(self, timeout: float | None = None) -> None:
        async with asyncio.timeout(timeout):
            while self._core.unacknowledged and not self._life.is_closed:
                await self._progressed()
        if self._core.unacknowledged:
            self._raise_closed()
        self._core.raise_refused()

    async def close(self, timeout: float | None = None) -> None:
        try:
            if self._task is not None:
                await self.flush(timeout)
        finally:
            self._life.close()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while not self._life.is_closed:
                await asyncio.sleep(self._life.pause)
                try:
                    self._life.connecting()
                    async with await self._client._connect("/ws/publish?ack=each,synced") as socket:
                        self._life.connected("live")
                        self._moved()
                        await self._exchange(socket)
                except FAILURES as error:
                    self._core.lost()
                    self._life.lost(error_of(error, f"{self._client._settings.address.ws}/ws/publish"))
                    self._moved()
        except Exception as error:  # A callback or the token has raised: nobody else would hear of it.
            self._life.close(error if isinstance(error, EventPipelineError) else EventPipelineError(repr(error)))
            raise
        finally:
            self._moved()

    async def _exchange(self, socket: ClientConnection) -> None:
        sender = asyncio.create_task(self._send(socket))
        try:
            while True:
                self._core.answered(await socket.recv())
                self._life.progressed()
                if self._core.wants_token and (token := await self._client._next_token()) is not None:
                    self._core.renew(token)
                self._moved()
        finally:
            sender.cancel()
            await asyncio.wait([sender])

    async def _send(self, socket: ClientConnection) -> None:
        try:
            while True:
                self._wake.clear()
                if self._core.pause:
                    await asyncio.sleep(self._core.pause)
                    self._core.pause = 0
                while (message := self._core.next_message()) is not None:
                    await socket.send(message)
                await self._wake.wait()
        except ConnectionClosed:
            pass  # The receiver meets it, too, and knows how it ended.

    def _moved(self) -> None:
        self._wake.set()
        self._progress.set()
        if self.on_progress is not None:
            self.on_progress()

    async def _progressed(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _raise_closed(self) -> None:
        if self._life.is_closed:
            raise self._life.error or EventPipelineError("the publisher is closed")

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            with contextlib.suppress(Exception):
                await self.close(GRACE_SECONDS)

"""The architecture that the event pipeline replaced, written anew from the contract and nothing else, so
that a ratio to it can be measured on any day and on any machine.

One process, one thread, FastAPI. Every publish opens a connection to SQLite, commits, and closes it; then a
linear scan of all subscribers puts the event into the asyncio queue of each that matches, and a task for
each subscriber sends it. Nothing is slow on purpose: where two ways would be faithful, the faster is taken.

Durability is that of the event pipeline: a write-ahead log with `synchronous=FULL`, synced at each commit.
That is fair to both: an acknowledgement promises the same, and a rollback journal would need more syncs for
it. A connection's first commit also syncs the folder, so opening one for each event costs a second sync. One
connection stays open beside the others, or closing the last would move the log into the database each time.

Left out, for no load needs it: access, other paths, deleting, idempotency, `ack=` modes, history for
subscribers. A payload's numbers come back as Python spells them (`0.10` as `0.1`).
"""

import asyncio
import json
import os
import sqlite3
import uuid
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.exceptions import HTTPException as AnyHTTPException

EVENT_TYPES = {
    "quiz_started",
    "quiz_completed",
    "quiz_timeout",
    "answer_submitted",
    "answer_changed",
    "question_viewed",
    "question_skipped",
    "timer_started",
    "timer_tick",
    "timer_warning",
    "mastery_updated",
    "learning_gap_detected",
    "session_created",
    "session_ended",
    "error_occurred",
}
PAYLOAD_KEYS_MAX, PAYLOAD_BYTES_MAX = 50, 64 * 1024
FIRST_MESSAGE_SECONDS, KEEPALIVE_SECONDS = 10, 30
# Deliveries that may wait for one subscriber: with more it is disconnected, so that it costs bounded memory.
WAITING_MAX = 10_000
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Content-Security-Policy": "default-src 'self'",
}


def render(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


ID_CHARACTERS = len("evt_") + 12


def event_id(seq: int) -> str:
    return f"evt_{seq:012x}"


def spell_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("no offset")
    return time


class NewEvent(BaseModel):
    """An event as it is published."""

    model_config = ConfigDict(strict=True)
    event_type: str
    source: Annotated[str, Field(pattern=r"\A[A-Za-z0-9_.-]{1,100}\z")]
    session_id: Annotated[str, Field(max_length=200)] | None = None
    user_id: Annotated[str, Field(max_length=200)] | None = None
    payload: dict[str, Any] = Field(default_factory=dict, max_length=PAYLOAD_KEYS_MAX)

    @field_validator("event_type")
    @classmethod
    def is_registered(cls, event_type: str) -> str:
        if event_type not in EVENT_TYPES:
            raise ValueError(f"Unknown event type '{event_type}'")
        return event_type

    @field_validator("payload")
    @classmethod
    def can_be_stored(cls, payload: dict[str, Any]) -> dict[str, Any]:
        # Also refuses what is not JSON (`NaN`) and not UTF-8 (lone surrogates).
        if len(render(payload).encode()) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"Payload must be at most {PAYLOAD_BYTES_MAX} bytes")
        return payload


class Filters(BaseModel):
    """What a subscriber asks for; what is empty or null may be anything."""

    model_config = ConfigDict(strict=True)
    event_types: list[str] | None = None
    session_id: str | None = None
    user_id: str | None = None
    source: str | None = None

    def match(self, event: dict[str, Any]) -> bool:
        return (
            (not self.event_types or event["event_type"] in self.event_types)
            and (not self.session_id or event["session_id"] == self.session_id)
            and (not self.user_id or event["user_id"] == self.user_id)
            and (not self.source or event["source"] == self.source)
        )


class Store:
    SCHEMA = """
        PRAGMA journal_mode = WAL;
        CREATE TABLE IF NOT EXISTS events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, event_type TEXT NOT NULL, source TEXT NOT NULL,
            session_id TEXT, user_id TEXT, payload TEXT NOT NULL, timestamp TEXT NOT NULL);
        CREATE INDEX IF NOT EXISTS events_by_type ON events(event_type);
        CREATE INDEX IF NOT EXISTS events_by_session ON events(session_id);
        CREATE INDEX IF NOT EXISTS events_by_user ON events(user_id);
        CREATE INDEX IF NOT EXISTS events_by_timestamp ON events(timestamp);
        CREATE TABLE IF NOT EXISTS event_stats (
            event_type TEXT PRIMARY KEY, count INTEGER NOT NULL, last_seen TEXT NOT NULL);"""
    INSERT = """
        INSERT INTO events (event_type, source, session_id, user_id, payload, timestamp)
        VALUES (:event_type, :source, :session_id, :user_id, :payload, :timestamp)"""
    COUNT = """
        INSERT INTO event_stats VALUES (:event_type, 1, :timestamp)
        ON CONFLICT (event_type) DO UPDATE SET count = count + 1, last_seen = excluded.last_seen"""
    NEWEST = "SELECT seq, timestamp FROM events ORDER BY seq DESC LIMIT 1"

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept_open = self.connect()
        self.kept_open.executescript(self.SCHEMA)
        newest = self.query(self.NEWEST)
        self.last_time = parse_time(newest[0]["timestamp"] if newest else "1970-01-01T00:00:00Z")

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def query(self, sql: str, values: tuple | list = ()) -> list[sqlite3.Row]:
        with closing(self.connect()) as connection:
            return connection.execute(sql, values).fetchall()

    def append(self, events: list[NewEvent]) -> list[dict[str, Any]]:
        """Stores all of them in one transaction, or none, and returns them as they are delivered."""
        stored = []
        with closing(self.connect()) as connection, connection:
            for event in events:
                # Times rise with the numbers, also when the clock steps back.
                self.last_time = max(datetime.now(UTC), self.last_time + timedelta(microseconds=1))
                row = event.model_dump() | {"payload": render(event.payload), "timestamp": spell_time(self.last_time)}
                row["seq"] = connection.execute(self.INSERT, row).lastrowid
                connection.execute(self.COUNT, row)
                stored.append(as_delivered(row))
        return stored


def as_delivered(row: dict[str, Any] | sqlite3.Row) -> dict[str, Any]:
    event = {key: row[key] for key in ("event_type", "source", "session_id", "user_id")}
    return {"id": event_id(row["seq"])} | event | {"payload": parse(row["payload"]), "timestamp": row["timestamp"]}


class Subscriber:
    def __init__(self, socket: WebSocket, filters: Filters) -> None:
        self.socket = socket
        self.filters = filters
        self.queue: asyncio.Queue[str] = asyncio.Queue(WAITING_MAX)

    async def run(self) -> None:
        """Sends what comes into the queue, until the client leaves or is too slow."""
        self.sending = asyncio.create_task(self.send())
        leaving = asyncio.create_task(self.leave())
        subscribers.add(self)
        try:
            await asyncio.wait((self.sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            subscribers.discard(self)
            self.sending.cancel()
            leaving.cancel()
            await asyncio.gather(self.sending, leaving, return_exceptions=True)

    async def send(self) -> None:
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    text = await self.queue.get()
            except TimeoutError:
                text = '{"type":"keepalive"}'
            await self.socket.send_text(text)

    async def leave(self) -> None:
        """Whatever a subscriber says later is not understood, and so ignored."""
        with suppress(WebSocketDisconnect):
            while True:
                await receive(self.socket)

    def push(self, text: str) -> None:
        try:
            self.queue.put_nowait(text)
        except asyncio.QueueFull:
            self.sending.cancel()


subscribers: set[Subscriber] = set()
store: Store
api = APIRouter()


def publish(events: list[NewEvent]) -> list[str]:
    """Stores the events, hands them to their subscribers, and returns them as they are delivered."""
    texts = []
    for event in store.append(events):
        texts.append(render(event))
        for subscriber in subscribers:
            if subscriber.filters.match(event):
                subscriber.push(texts[-1])
    return texts


def ids(texts: list[str]) -> list[str]:
    return [text[len('{"id":"') :][:ID_CHARACTERS] for text in texts]


async def receive(socket: WebSocket) -> str:
    """The next message; one in binary is taken for text."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    text = message.get("text")
    return message["bytes"].decode() if text is None else text


def in_words(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"Not valid JSON: {error}"
    return "; ".join(f"Field '{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in error.errors())


@api.post("/events")
async def post_events(request: Request) -> Response:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "application/x-ndjson"):
        raise HTTPException(415, "Content-Type must be application/json or application/x-ndjson")
    place: tuple[str | int, ...] = ("body",)
    try:
        text = (await request.body()).decode()
        lines = content_type == "application/x-ndjson"
        body = [parse(line) for line in text.split("\n") if line.strip()] if lines else parse(text)
        if not isinstance(body, list):
            return reply(201, publish([NewEvent.model_validate(body)])[0])
        events = []
        for index, item in enumerate(body):
            place = ("body", index)
            events.append(NewEvent.model_validate(item))
    except UnicodeDecodeError:
        raise HTTPException(400, "The body is not UTF-8") from None
    except ValidationError as error:
        raise RequestValidationError([e | {"loc": place + e["loc"]} for e in error.errors()]) from None
    except ValueError as error:
        raise RequestValidationError([{"loc": place, "msg": str(error), "type": "json_invalid"}]) from None
    all_ids = ids(publish(events))
    first, last = (all_ids[0], all_ids[-1]) if all_ids else (None, None)
    return reply(201, render({"count": len(all_ids), "first_id": first, "last_id": last, "ids": all_ids}))


@api.get("/events")
async def get_events(
    event_type: str | None = None,
    session_id: str | None = None,
    user_id: str | None = None,
    source: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    conditions, values = ["true"], []
    if event_type:
        types = event_type.split(",")
        conditions.append(f"event_type IN ({','.join('?' * len(types))})")
        values += types
    for column, value in (("session_id", session_id), ("user_id", user_id), ("source", source)):
        if value:
            conditions.append(f"{column} = ?")
            values.append(value)
    for bound, operator, value in (("since", ">", since), ("until", "<", until)):
        if value is not None:
            try:
                values.append(spell_time(parse_time(value)))
            except ValueError:
                raise HTTPException(400, f"'{bound}' is not a time") from None
            conditions.append(f"timestamp {operator} ?")
    sql = f"SELECT * FROM events WHERE {' AND '.join(conditions)} ORDER BY seq DESC LIMIT ?"
    rows = store.query(sql, [*values, limit])
    return reply(200, render([as_delivered(row) for row in rows]))


@api.get("/stats")
async def stats() -> Response:
    by_type = [dict(row) for row in store.query("SELECT * FROM event_stats ORDER BY count DESC, event_type")]
    hour_ago = spell_time(datetime.now(UTC) - timedelta(hours=1))
    [(last_hour,)] = store.query("SELECT count(*) FROM events WHERE timestamp > ?", (hour_ago,))
    total = sum(row["count"] for row in by_type)
    waiting = sum(subscriber.queue.qsize() for subscriber in subscribers)
    router = {"active_subscribers": len(subscribers), "queue_size": waiting}
    counts = {"total_events": total, "events_last_hour": last_hour, "by_type": by_type}
    return reply(200, render(counts | {"router": router}))


@api.get("/health")
async def health() -> Response:
    return reply(200, '{"status":"ok","service":"event-pipeline","version":"baseline"}')


@api.websocket("/ws/publish")
async def ws_publish(socket: WebSocket) -> None:
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            text, message = await receive(socket), None
            try:
                message = parse(text)
                many = isinstance(message, list)
                its_ids = ids(publish([NewEvent.model_validate(item) for item in (message if many else [message])]))
                answer = {"status": "ok"} | ({"event_ids": its_ids} if many else {"event_id": its_ids[0]})
            except ValueError as error:
                answer = {"status": "error", "message": in_words(error)}
            if isinstance(message, dict) and "ref" in message:
                answer["ref"] = message["ref"]
            await socket.send_text(render(answer))


@api.websocket("/ws/subscribe")
async def ws_subscribe(socket: WebSocket) -> None:
    await socket.accept()
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            asked = parse(await receive(socket))
        subscriber = Subscriber(socket, Filters.model_validate(asked))
        newest = store.query(store.NEWEST)
        answer = {"status": "subscribed", "subscriber_id": f"sub_{uuid.uuid4().hex[:8]}", "filters": asked}
        subscriber.push(render(answer | {"last_event_id": event_id(newest[0]["seq"]) if newest else None}))
        await subscriber.run()
        await socket.close(1013, "Too slow")
    except (TimeoutError, ValueError) as error:
        await socket.send_text(render({"status": "error", "message": in_words(error)}))
        await socket.close(1008)
    except (WebSocketDisconnect, RuntimeError):
        # It has left already.
        pass


def reply(status: int, body: str) -> Response:
    return Response(body, status, SECURITY_HEADERS, "application/json")


def problem(status: int, detail: Any) -> Response:
    return Response(render({"status": status, "detail": detail}), status, SECURITY_HEADERS, "application/problem+json")


async def refuse(_: Request, error: AnyHTTPException) -> Response:
    return problem(error.status_code, error.detail)


async def refuse_invalid(_: Request, error: RequestValidationError) -> Response:
    return problem(422, [{key: e[key] for key in ("loc", "msg", "type")} for e in error.errors()])


@asynccontextmanager
async def lifespan(_: FastAPI):
    global store
    store = Store(os.environ["DATABASE_PATH"])
    with closing(store.kept_open):
        yield


app = FastAPI(lifespan=lifespan, exception_handlers={AnyHTTPException: refuse, RequestValidationError: refuse_invalid})
app.include_router(api)
app.include_router(api, prefix="/api/v1")

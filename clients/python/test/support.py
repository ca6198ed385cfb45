"""What the tests run against: the real server, a proxy that breaks connections, and both shells behind one interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from event_pipeline import AsyncEventPipeline, Backoff, EventPipeline

PACKAGE = Path(__file__).parent.parent
ROOT = PACKAGE.parent.parent
PROGRAM = Path(os.environ.get("EVENT_PIPELINE") or ROOT / "target/debug/event-pipeline").resolve()
DEADLINE = 30.0
"""Every wait ends after it, with an error that says what was waited for."""
QUICK = Backoff(first=0.05, most=0.2)


def await_true(what: str, is_true: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := is_true():
            return value
        time.sleep(0.005)
    raise AssertionError(f"in vain: {what}")


def tick(n: int, session: str = "exam-08") -> dict[str, Any]:
    return {"event_type": "timer_tick", "source": "timer", "session_id": session, "payload": {"n": n}}


def free_port() -> int:
    """A port that no outgoing connection gets while its server is down: those begin at 32768."""
    for port in random.sample(range(16384, 32768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Server:
    """A server of its own for each test, in a temporary folder, on one port for all its lives."""

    def __init__(self, **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"DURABILITY": "off", **settings}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        env = {"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": str(self.port), "LOG_FORMAT": "json"}
        with (self.folder / "log").open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [PROGRAM, "serve"], cwd=self.folder, env=env | self.settings, stdout=log, stderr=log
            )
        await_true("the server listens", lambda: b'"listening"' in (self.folder / "log").read_bytes()[begin:])
        return self

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(DEADLINE)
            self.process = None

    def command(self, *arguments: str) -> str:
        run = subprocess.run([PROGRAM, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=DEADLINE)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def stored(self) -> list[dict[str, Any]]:
        """What is stored, in order, by way of the server's own client."""
        lines = self.command("query", "--url", self.url, "--all", "--json").splitlines()
        return sorted((json.loads(line) for line in lines), key=lambda event: str(event["id"]))

    def count(self) -> int:
        with urllib.request.urlopen(f"{self.url}/stats", timeout=DEADLINE) as answer:
            total: int = json.load(answer)["total_events"]
            return total

    def close(self) -> None:
        self.end()
        log = (self.folder / "log").read_text()
        self._folder.cleanup()
        assert not re.search(r'"level":"ERROR"|panicked', log), log


class Proxy:
    """Passes bytes on between clients and a server, until it is told to cut a connection or to hold bytes back."""

    def __init__(self, port: int) -> None:
        self._port, self._listener = port, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_after: int | None = None
        """The next connection that says `pattern` in its request ends after so many bytes from the server."""
        self.cut_request_after: int | None = None
        self.pattern = b""
        self.delay = 0.0
        self.cuts = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            client.close()
            return
        pair = (client, server)
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.update(pair)
        # How many bytes each direction may still pass; set by the first request that has the pattern.
        left: dict[str, int | None] = {"answers": None, "requests": None}

        def pump(source: socket.socket, sink: socket.socket, way: str) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if way == "requests" and self.pattern in data:
                        if self.cut_after is not None:
                            left["answers"], self.cut_after = self.cut_after, None
                        if self.cut_request_after is not None:
                            left["requests"], self.cut_request_after = self.cut_request_after, None
                    if self.delay:
                        time.sleep(self.delay)
                    most = left[way]
                    if most is not None:
                        sink.sendall(data[:most])
                        left[way] = most - len(data)
                        if len(data) >= most:
                            self.cuts += 1
                            break
                    else:
                        sink.sendall(data)
            for end in pair:
                self._open.discard(end)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        threads = [
            threading.Thread(target=pump, args=(client, server, "requests"), daemon=True),
            threading.Thread(target=pump, args=(server, client, "answers"), daemon=True),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        server.close()

    def cut(self) -> None:
        """Ends every connection that is open now."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


class Driven:
    """A part of the asyncio shell, driven from a thread that is not its loop's: its methods block."""

    def __init__(self, inner: Any, call: Callable[[Any], Any]) -> None:
        self._inner, self._call = inner, call

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                result = value(*args, **kwargs)
                return await result if asyncio.iscoroutine(result) else result

            result = self._call(run())
            if result is self._inner:
                return self
            return Driven(result, self._call) if type(result).__module__.startswith("event_pipeline.aio") else result

        return method

    def query(self, **kwargs: Any) -> Any:
        async def run() -> list[Any]:
            return [event async for event in self._inner.query(**kwargs)]

        return self._call(run())

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield self._call(self._inner.__anext__())
            except StopAsyncIteration:
                return

    def __enter__(self) -> Driven:
        self._call(self._inner.__aenter__())
        return self

    def __exit__(self, *raised: Any) -> None:
        self._call(self._inner.__aexit__(*raised))


class Shells:
    """Makes clients of one shell, and ends what they left open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._clients: list[Any] = []

    def client(self, url: str, **options: Any) -> Any:
        options = {"backoff": QUICK, "timeout": DEADLINE, **options}
        if self.name == "blocking":
            client: Any = EventPipeline(url, **options)
        else:

            async def make() -> AsyncEventPipeline:
                return AsyncEventPipeline(url, **options)

            client = Driven(self.call(make()), self.call)
        self._clients.append(client)
        return client

    def call(self, what: Any) -> Any:
        async def run() -> Any:
            try:
                return await what
            except StopAsyncIteration:
                return self  # A coroutine cannot raise it.

        result = asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE)
        if result is self:
            raise StopAsyncIteration
        return result

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

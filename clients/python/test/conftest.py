from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from support import Proxy, Server, Shells

# A failure prints what repeats it; nothing is kept between runs.
settings.register_profile("here", database=None, print_blob=True)
settings.load_profile("here")


@pytest.fixture(params=["blocking", "asyncio"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shells]:
    shells = Shells(request.param)
    yield shells
    shells.close()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**settings: str) -> Server:
        servers.append(Server(**settings))
        return servers[-1].start()

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[Server], Proxy]]:
    proxies: list[Proxy] = []

    def make(server: Server) -> Proxy:
        proxies.append(Proxy(server.port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def proxy(server: Server, make_proxy: Callable[[Server], Proxy]) -> Proxy:
    return make_proxy(server)


@pytest.fixture
def client(shell: Shells, server: Server) -> Any:
    return shell.client(server.url)


@pytest.fixture
def through(shell: Shells, proxy: Proxy) -> Any:
    """A client that reaches the server through the proxy."""
    return shell.client(proxy.url)

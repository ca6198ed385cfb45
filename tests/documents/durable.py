"""Makes durable subscriptions, so that there is something to list, explain and delete. Only a WebSocket can do that."""

import json
import socket
import sys
from urllib.parse import urlsplit


def subscribe(server: str, first: dict[str, str]) -> None:
    address = urlsplit(server)
    with socket.create_connection((address.hostname, address.port)) as wire:
        wire.sendall(
            b"GET /ws/subscribe HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        message = json.dumps(first).encode()
        # A text frame of less than 126 bytes, masked with zeros.
        wire.sendall(bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message)
        answer = b""
        while b'"status":"subscribed"' not in answer:
            part = wire.recv(4096)
            assert part, f"{first} is answered with {answer!r}"
            answer += part


for first in sys.argv[2:]:
    subscribe(sys.argv[1], json.loads(first))

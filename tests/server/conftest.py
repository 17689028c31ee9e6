from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from django_obs.server.listener import Limits, Listener

Serve = Callable[..., Any]


@contextmanager
def serving(application: Any, **options: Any) -> Iterator[Listener]:
    listener = Listener(application, "127.0.0.1", 0, **options)
    thread = threading.Thread(target=listener.serve)
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        # The connections' threads, too: what one says later would be said in the midst of another test.
        for each in [thread, *(other for other in threading.enumerate() if other.name == "django_obs-admin")]:
            each.join(60)
            assert not each.is_alive()


class Client:
    """A connection that sends what it is told and reads until the other side closes."""

    def __init__(self, listener: Listener) -> None:
        self.socket = socket.create_connection((listener.address, listener.port), timeout=60)

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def read_all(self) -> bytes:
        chunks = []
        while chunk := self.socket.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            chunk = self.socket.recv(65536)
            assert chunk, f"closed after {data!r}"
            data += chunk
        return data

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Listener], Client]]:
    clients: list[Client] = []

    def make(listener: Listener) -> Client:
        clients.append(Client(listener))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


# Without the short times, which are for tests of those: a busy machine is late now and then.
ROOMY = Limits(connections=4, head_bytes=2048, body_bytes=4096, request_seconds=60, idle_seconds=60, write_seconds=60)
QUICK = replace(ROOMY, request_seconds=0.6, idle_seconds=0.6, write_seconds=2)

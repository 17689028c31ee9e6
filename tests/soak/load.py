"""The load: each request goes to both twins, and what they answer is compared."""

from __future__ import annotations

import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

from .twins import PATIENCE, Twins

# Headers that say when and by whom a response was sent, and the one that the app adds by its settings.
PASSING = frozenset({"date", "connection", "x-trace-id"})
CLIENTS = 3


@dataclass(frozen=True)
class Kind:
    """A request that a client sends again and again."""

    name: str
    path: str
    method: str = "GET"
    body: str | None = None
    counts: bool = False  # its response has numbers that other requests change


KINDS = (
    Kind("page", "/", counts=True),
    Kind("product", "/products/leek/", counts=True),
    Kind("list", "/api/products/", counts=True),
    Kind("order", "/api/orders/", "POST", '{"product": "leek", "quantity": 1}', counts=True),
    Kind("bad order", "/api/orders/", "POST", "{"),
    Kind("async view", "/stock/", counts=True),
    Kind("not found", "/nothing/here/"),
    Kind("failure", "/broken/"),
    Kind("chatty", "/chatty/20/"),
)


@dataclass(frozen=True)
class Answer:
    """What is compared of a response."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...]


@dataclass
class Sent:
    """A request that our twin has got, or may have got."""

    kind: str
    request_id: str
    trace_id: str
    status: int | None  # None if there was no answer


@dataclass
class Load:
    """Clients that send until they are told to stop."""

    twins: Twins
    rate: float  # requests a second, to each of the two
    kinds: tuple[Kind, ...] = KINDS
    sent: list[Sent] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "bare": []})
    # Whether both twins are in such straits that neither's answer says anything about the other's.
    straits: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._number = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def send_each(self) -> None:
        """Send each kind once, before anything happens."""
        for kind in self.kinds:
            self.compare(kind)

    def _run(self) -> None:
        pause = CLIENTS / self.rate
        while not self._stopping.is_set():
            started = time.monotonic()
            with self._lock:
                number, self._number = self._number, self._number + 1
            self.compare(self.kinds[number % len(self.kinds)], ours_first=number // len(self.kinds) % 2 == 0)
            self._stopping.wait(max(0.0, pause - (time.monotonic() - started)))

    def compare(self, kind: Kind, *, ours_first: bool = True) -> None:
        """Send a request to both."""
        straits = self.straits.is_set()
        sent = Sent(kind.name, uuid.uuid4().hex, uuid.uuid4().hex, None)
        answers: dict[str, Answer | None] = {}
        for server in self.twins.both if ours_first else reversed(self.twins.both):
            headers = {
                "connection": "close",
                "x-request-id": sent.request_id,
                "traceparent": f"00-{sent.trace_id}-00f067aa0ba902b7-01",
            }
            started = time.perf_counter()
            answers[server.name] = fetch(server.port, kind, headers)
            self.seconds[server.name].append(time.perf_counter() - started)
        ours, bare = answers["ours"], answers["bare"]
        sent.status = ours.status if ours else None
        self.sent.append(sent)
        if ours is None or bare is None:
            self.unanswered["ours"] += ours is None
            self.unanswered["bare"] += bare is None
        elif not (straits or self.straits.is_set()) and ours != bare:
            self.differing.append(f"{kind.name}: {difference(ours, bare)}")

    def answered(self) -> Iterator[Sent]:
        return (each for each in self.sent if each.status is not None)


def fetch(port: int, kind: Kind, headers: dict[str, str]) -> Answer | None:
    """Send a request on a connection of its own; None if there was no whole answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(kind.method, kind.path, kind.body, headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
    found = sorted((name.lower(), value) for name, value in response.getheaders() if name.lower() not in PASSING)
    if kind.counts:
        body = re.sub(rb"\d+", b"0", body).replace(b"0 items ", b"0 item ")
        found = [(name, value if name != "content-length" else "") for name, value in found]
    return Answer(response.status, body, tuple(found))


def difference(ours: Answer, bare: Answer) -> str:
    if ours.status != bare.status:
        return f"status {ours.status}, bare {bare.status}"
    if ours.headers != bare.headers:
        return f"headers {sorted(set(ours.headers) ^ set(bare.headers))}"
    at = next((at for at, pair in enumerate(zip(ours.body, bare.body, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, at - 50)
    return f"body ...{ours.body[start : at + 100]!r}, bare ...{bare.body[start : at + 100]!r}"


def hostile_requests() -> Iterator[bytes]:
    """Yield requests as no honest client sends them; the server itself refuses some."""
    good_id, trace = b"a" * 32, b"4bf92f3577b34da6a3ce929d0e0e4736"
    headers: list[tuple[bytes, bytes]] = [
        (b"traceparent", value)
        for value in (
            b"",
            b"00",
            b"\x00" * 55,
            b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
            b"00-" + trace + b"-0000000000000000-01",
            b"ff-" + trace + b"-00f067aa0ba902b7-01",
            b"cc-" + trace + b"-00f067aa0ba902b7-01-what-the-future-holds",
            b"00-" + trace.upper() + b"-00f067aa0ba902b7-01",
            b"00-" + b"\xff" * 32 + b"-00f067aa0ba902b7-01",
            b"00-" + trace + b"-00f067aa0ba902b7-01" * 200,
            b"-" * 4000,
            "\u0660\u0660-".encode() + trace + b"-00f067aa0ba902b7-01",
        )
    ]
    headers += [
        (b"tracestate", value) for value in (b"=", b"a=b," * 900, b"\xe2\x98\x83=1", b"a=" + b"z" * 4000, b",,,")
    ]
    headers += [
        (b"baggage", value) for value in (b"a=%00%ff%", b"k=v," * 1000, b"\x80=\x81", b";;;===", b"a=" + b"%41" * 1300)
    ]
    headers += [
        (b"x-request-id", value)
        for value in (b"", b'"}\\n{"level":"ERROR"', b"\x1b[31m", b"x" * 4000, b"\xff\xfe", b"a b", b"\xe2\x80\xa8")
    ]
    headers += [(b"x-request-start", value) for value in (b"t=" + b"9" * 16, b"t=-1", b"1e308", b"t=0000000000")]
    headers += [(b"accept", b"*/*;q=" + b"9" * 4000), (b"accept", b",;=" * 1000), (b"accept", b"\xff;q=\xfe")]
    headers += [(b"user-agent", b"\xff\xfe" * 1000), (b"user-agent", b""), (b"x-forwarded-for", b"127.0.0.1," * 400)]
    headers += [(b"host", b"127.0.0.1:99999999999"), (b"host", b"[::1"), (b"host", b"\xff"), (b"cookie", b"=" * 4000)]
    for name, value in headers:
        host = b"" if name == b"host" else b"Host: 127.0.0.1\r\n"
        yield b"GET /api/products/ HTTP/1.1\r\n%s%s: %s\r\nConnection: close\r\n\r\n" % (host, name, value)
    paths = [
        *(b"/%ff%fe%00", b"/products/%F0%9F%A6%84/", b"/" + b"a" * 3500, b"/%2e%2e/%2e%2e/etc/passwd", b"//", b"/\xff"),
        *(b"/?password=%00&" + b"a=b&" * 800, b"/?" + b"%" * 3000, b"/;x=y?a=[", b"/products/%0d%0aX-Evil:1/", b"/*?#"),
        b"/%E2%80%AE%1b%5b31m/",
    ]
    for each in paths:
        yield b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: %s\r\nConnection: close\r\n\r\n" % (each, good_id)
    for method in (b"BREW", b"get", b"X" * 20, b"TRACE", b"M-SEARCH"):
        yield b"%s / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % method
    yield b"POST /api/orders/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\n\xff\xfe{"
    yield b"POST /api/orders/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\nConnection: close\r\n\r\n{}"
    yield b"GET / HTTP/1.0\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00" * 20


def send_raw(port: int, request: bytes) -> bytes:
    """Send bytes and read to the end; what a client gets, without when."""
    received = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(65536):
            received += chunk
    received = re.sub(rb"(?mi)^(date|x-trace-id):.*\r\n", b"", received)
    # Orders change what is in stock meanwhile.
    head, _, body = received.partition(b"\r\n\r\n")
    return re.sub(rb"(?mi)^content-length:.*", b"", head) + re.sub(rb"\d+", b"0", body)

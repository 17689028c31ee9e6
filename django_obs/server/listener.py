"""An HTTP/1.1 server for the admin port: one thread per connection, and a deadline for every step.

``wsgiref`` would do but for its trust in clients: it waits without end for a header that never comes. Here whoever is
slow, huge or malformed gets a status that says so, and whoever merely sits there makes room for the next scrape.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

logger = logging.getLogger("django_obs")

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# RFC 9112, section 3 and 5; a header name is a token and nothing stands between it and its colon.
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
# Bytes of a line between chunks, and lines behind the last of them.
MAX_LINE, MAX_TRAILERS = 1024, 16
# Each costs a few copies of what has been received. Nobody who has something to say says it byte by byte.
MAX_CHUNKS = 16384
TLS_HANDSHAKE = b"\x16"  # the first byte of a TLS record that opens a connection, RFC 8446, section 5.1
# A header that may stand once only: two of them are two opinions about one request (RFC 9112, section 6.3).
SINGLE = frozenset({b"host", b"content-length", b"authorization", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Chunked:
    """In place of a length: the body comes in chunks, and may have so many bytes."""

    limit: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Sizes are bytes, times are seconds."""

    connections: int = 64
    head_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    # From the first byte, or the start of the TLS handshake, to the last of the request.
    request_seconds: float = 5.0
    # Longer than the usual scrape intervals, so that Prometheus keeps its connection.
    idle_seconds: float = 130.0
    write_seconds: float = 10.0
    # How long to read on after an error, so that the client sees the answer and not a reset.
    linger_seconds: float = 1.0


class Tls(Protocol):
    """Where the listener gets its TLS from; asked for every connection, so that certificates can rotate."""

    def context(self) -> ssl.SSLContext | None:
        """Return what to shake hands with, or None to speak plain HTTP."""

    def admits(self, certificate: Any) -> bool:
        """Tell whether a client with this certificate (of ``SSLSocket.getpeercert``) may come in."""


class Refused(Exception):
    """The request cannot be served; the status tells the client why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Listener:
    """A socket that answers with a WSGI application."""

    def __init__(
        self,
        application: Application,
        address: str,
        port: int,
        *,
        tls: Tls | None = None,
        limits: Limits | None = None,
        body_limit: Callable[[Environ], int] | None = None,
    ) -> None:
        """Bind the socket; port 0 takes a free one. Raises OSError if it cannot be had.

        ``body_limit`` is asked what the body of a request may have, once its headers are read: bytes, or less than the
        limits have for all.
        """
        self.application = application
        self.tls = tls
        self.limits = limits or Limits()
        self.body_limit = body_limit
        self.socket = _bind(address, port)
        self.address, self.port = self.socket.getsockname()[:2]
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # What wakes accept(): closing a socket under it does not, on Linux.
        self._alarm, self._wake = socket.socketpair()

    def serve(self) -> None:
        """Accept connections until ``stop()``."""
        import selectors

        self.socket.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._alarm, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set():
                    break
                try:
                    client, peer = self.socket.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    # Out of descriptors, or the client has gone. Those who hold descriptors time out; wait for one.
                    logger.warning("The admin port cannot accept: %s", error)
                    self._make_room()
                    self._stopping.wait(0.05)
                    continue
                self._admit(client, peer)
        for closing in (self.socket, self._alarm, self._wake):
            closing.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()

    def stop(self) -> None:
        """End ``serve()`` and cut all connections; safe in a signal handler."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _admit(self, client: socket.socket, peer: Any) -> None:
        with self._lock:
            crowded = len(self._connections) >= self.limits.connections
        if crowded and not self._make_room():
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.send(_answer(HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests at once."))
            client.close()
            return
        connection = Connection(self, client, str(peer[0]), int(peer[1]))
        with self._lock:
            self._connections.add(connection)
        try:
            threading.Thread(target=connection.run, name="django_obs-admin", daemon=True).start()
        except RuntimeError:  # no more threads
            self._forget(connection)
            client.close()

    def _make_room(self) -> bool:
        """Cut the connection that has waited longest; one that is being answered is never cut."""
        with self._lock:
            idlers = [connection for connection in self._connections if connection.waiting]
            if not idlers:
                return False
            longest = min(idlers, key=lambda connection: (not connection.idle, connection.since))
            self._connections.discard(longest)
        longest.hang_up()
        return True

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


class Connection:
    """One client and its requests, one after the other."""

    def __init__(self, listener: Listener, client: socket.socket, peer: str, peer_port: int) -> None:
        self.listener = listener
        self.limits = listener.limits
        self.socket = client
        self.peer = peer
        self.peer_port = peer_port
        self.scheme = "http"
        self.certified = False  # the client has shown a certificate that our authority has signed
        self.buffer = b""
        self.waiting = True  # for the client: may be cut to make room
        self.idle = False  # between two requests
        self.since = monotonic()
        self.deadline = self.since + self.limits.request_seconds

    def hang_up(self) -> None:
        """Cut the line under a thread that may be reading from it."""
        # Not SSLSocket.shutdown(): it takes the TLS object away from the reading thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def run(self) -> None:
        """Answer until the client goes or errs."""
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._shake_hands():
                return
            while self._answer_one():
                pass
        except (OSError, ValueError):
            pass  # the client has gone, or was cut
        except Exception:
            logger.warning("The admin port failed to serve %s", self.peer, exc_info=True)
        finally:
            self.listener._forget(self)
            with contextlib.suppress(OSError):
                self.socket.close()

    def _shake_hands(self) -> bool:
        tls = self.listener.tls
        context = tls.context() if tls is not None else None
        if tls is None or context is None:
            return True
        self._wait_no_longer_than(self.deadline)
        if self.socket.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE:
            self._refuse(Refused(HTTPStatus.BAD_REQUEST, "This port speaks HTTPS."))
            return False
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        try:
            self.socket.do_handshake()
        except ssl.SSLError as error:
            logger.debug("TLS handshake with %s failed: %s", self.peer, error)
            return False
        certificate = self.socket.getpeercert()
        if not tls.admits(certificate):
            logger.warning("The certificate of %s names none of the client_allowed_sans.", self.peer)
            return False
        self.scheme = "https"
        self.certified = bool(certificate)
        return True

    def _answer_one(self) -> bool:
        """Read a request and answer it; tell whether another one may follow."""
        environ: Environ | None = None
        try:
            head = self._read_head()
            if head is None:
                return False
            environ, length, keep = self._parse(head)
            environ["wsgi.input"] = io.BytesIO(self._read_body(environ, length))
        except Refused as refusal:
            self._refuse(refusal)
            return False
        self.waiting = False
        status, headers, body = self._call(environ)
        if environ["REQUEST_METHOD"] == "HEAD":
            body = b""
        headers.append(("Connection", "keep-alive" if keep else "close"))
        payload = _head(status, headers) + body
        # A reader that dawdles over its answer may be cut like one that dawdles over its question.
        self.since = monotonic()
        self.waiting = True
        self._write(payload, self.since + self.limits.write_seconds)
        self.since = monotonic()
        self.idle = True
        return keep

    def _read_head(self) -> bytes | None:
        """Return the request line and the headers, or None if the client has left without asking."""
        if self.idle and not self.buffer:
            self._wait_no_longer_than(monotonic() + self.limits.idle_seconds)
            self.buffer = self._receive()
            if not self.buffer:
                return None
        if self.idle:
            self.idle = False
            self.since = monotonic()
            self.deadline = self.since + self.limits.request_seconds
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > self.limits.head_bytes:
                raise Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"The request line and headers are longer than {self.limits.head_bytes} bytes.",
                )
            chunk = self._receive_in_time()
            if not chunk:
                if self.buffer:
                    raise Refused(HTTPStatus.BAD_REQUEST, "The request ends before its headers do.")
                return None
            self.buffer += chunk
        if end > self.limits.head_bytes:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The request line and headers are longer than {self.limits.head_bytes} bytes.",
            )
        head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
        return head

    def _parse(self, head: bytes) -> tuple[Environ, int | Chunked, bool]:
        """Return the WSGI environment, the length of the body, and whether the client wants to stay."""
        first, *lines = head.split(b"\r\n")
        match = REQUEST_LINE.fullmatch(first)
        if match is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "The request line is malformed.")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "This port speaks HTTP/1.1.")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            match = HEADER_LINE.fullmatch(line)
            if match is None:
                raise Refused(HTTPStatus.BAD_REQUEST, "A header is malformed.")
            name, value = match[1].lower(), match[2]
            if name in headers:
                if name in SINGLE:
                    raise Refused(HTTPStatus.BAD_REQUEST, f"The header {name.decode()} stands there twice.")
                value = headers[name] + b", " + value
            headers[name] = value
        if minor != b"0" and b"host" not in headers:
            raise Refused(HTTPStatus.BAD_REQUEST, "The header Host is missing.")
        coding = headers.pop(b"transfer-encoding", None)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(HTTPStatus.BAD_REQUEST, "The Content-Length is no number.")
        tokens = {token.strip().lower() for token in headers.get(b"connection", b"").split(b",")}
        keep = b"close" not in tokens and (minor != b"0" or b"keep-alive" in tokens)
        environ = self._environ(method, target, f"HTTP/1.{int(minor)}", headers)
        limit = self.limits.body_bytes
        if coding is not None:
            if self.listener.body_limit is not None:
                limit = self.listener.body_limit(environ)
            # Senders of telemetry zip as they send. All others know what they send, and two opinions about where a
            # request ends are one too many.
            if limit <= self.limits.body_bytes or coding.lower() != b"chunked" or minor == b"0":
                raise Refused(HTTPStatus.LENGTH_REQUIRED, "Send a Content-Length, not a Transfer-Encoding.")
            if b"content-length" in headers:
                raise Refused(HTTPStatus.BAD_REQUEST, "A Content-Length and a Transfer-Encoding are one too many.")
            return environ, Chunked(limit), keep
        if len(length) > 18 or int(length) > limit:
            if self.listener.body_limit is not None:
                limit = max(limit, self.listener.body_limit(environ))
            if len(length) > 18 or int(length) > limit:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {limit} bytes.")
        return environ, int(length), keep

    def _environ(self, method: bytes, target: bytes, protocol: str, headers: dict[bytes, bytes]) -> Environ:
        try:
            url = urlsplit(target.decode("ascii"))
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "The target is malformed.") from None
        # WSGI wants the bytes of the decoded path as Latin-1 (PEP 3333).
        path = unquote_to_bytes(url.path).decode("latin-1")
        if not path.startswith("/"):
            raise Refused(HTTPStatus.BAD_REQUEST, "The target is no path.")
        environ: Environ = {
            "REQUEST_METHOD": method.decode("ascii"),
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": url.query,
            "SERVER_NAME": self.listener.address,
            "SERVER_PORT": str(self.listener.port),
            "SERVER_PROTOCOL": protocol,
            "REMOTE_ADDR": self.peer,
            "REMOTE_PORT": str(self.peer_port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": self.scheme,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "django_obs.client_certified": self.certified,
        }
        for name, value in headers.items():
            key = name.decode("ascii").upper().replace("-", "_")
            # An underscore in a header's name would pass for the hyphen of another header.
            if b"_" not in name:
                environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value.decode("latin-1")
        return environ

    def _read_body(self, environ: Environ, length: int | Chunked) -> bytes:
        if isinstance(length, Chunked):
            return self._read_chunks(environ, length.limit)
        if length > len(self.buffer) and environ.get("HTTP_EXPECT", "").lower() == "100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n", self.deadline)
        return self._take(length)

    def _read_chunks(self, environ: Environ, limit: int) -> bytes:
        """Return a body that comes in chunks, RFC 9112, section 7.1."""
        if environ.get("HTTP_EXPECT", "").lower() == "100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n", self.deadline)
        body = bytearray()
        for _ in range(MAX_CHUNKS):
            match = CHUNK_LINE.fullmatch(self._take_line())
            if match is None:
                raise Refused(HTTPStatus.BAD_REQUEST, "A chunk is malformed.")
            size = int(match[1], 16)
            if size == 0:
                return self._end_of_chunks(environ, bytes(body))
            if len(body) + size > limit:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {limit} bytes.")
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise Refused(HTTPStatus.BAD_REQUEST, "A chunk is malformed.")
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {MAX_CHUNKS} chunks.")

    def _end_of_chunks(self, environ: Environ, body: bytes) -> bytes:
        # Trailers tell nothing that anybody here asks for.
        for _ in range(MAX_TRAILERS):
            if not self._take_line():
                environ["CONTENT_LENGTH"] = str(len(body))
                return body
        raise Refused(HTTPStatus.BAD_REQUEST, "There are too many trailers.")

    def _take(self, length: int) -> bytes:
        """Return the next bytes of the body."""
        while len(self.buffer) < length:
            chunk = self._receive_in_time()
            if not chunk:
                raise Refused(HTTPStatus.BAD_REQUEST, "The body ends before it should.")
            self.buffer += chunk
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return body

    def _take_line(self) -> bytes:
        """Return the next line of a body in chunks, without its end."""
        while (end := self.buffer.find(b"\r\n", 0, MAX_LINE)) < 0:
            if len(self.buffer) >= MAX_LINE:
                raise Refused(HTTPStatus.BAD_REQUEST, "A chunk is malformed.")
            chunk = self._receive_in_time()
            if not chunk:
                raise Refused(HTTPStatus.BAD_REQUEST, "The body ends before it should.")
            self.buffer += chunk
        line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
        return line

    def _call(self, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes]:
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
            started[:] = [status, headers]
            return lambda data: None

        try:
            chunks = self.listener.application(environ, start_response)
            try:
                body = b"".join(chunks)
            finally:
                close = getattr(chunks, "close", None)
                if close is not None:
                    close()
            status, headers = started
        except Exception:
            logger.exception("The admin port failed at %s", environ["PATH_INFO"])
            body = b"Internal error; the log of runmetrics tells more.\n"
            status, headers = "500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")]
        # A list of our own: the application may hand out the same one each time.
        headers = list(headers)
        # The answer to HEAD has the length of the body that it does not have.
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(body))))
        return status, headers, body

    def _refuse(self, refusal: Refused) -> None:
        self._write(_answer(refusal.status, refusal.reason), monotonic() + self.limits.linger_seconds)
        # Closing with unread input makes the kernel send a reset, which can overtake the answer.
        deadline = monotonic() + self.limits.linger_seconds
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
            while monotonic() < deadline:
                self._wait_no_longer_than(deadline)
                if not self.socket.recv(65536):
                    break

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except TimeoutError:
            return b""

    def _receive_in_time(self) -> bytes:
        self._wait_no_longer_than(self.deadline)
        try:
            return self.socket.recv(65536)
        except TimeoutError:
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT, f"The request took longer than {self.limits.request_seconds:g} seconds."
            ) from None

    def _wait_no_longer_than(self, deadline: float) -> None:
        # A time-out of 0 would mean "do not block".
        self.socket.settimeout(max(0.001, deadline - monotonic()))

    def _write(self, payload: bytes, deadline: float) -> None:
        rest = memoryview(payload)
        while rest:
            if monotonic() > deadline:
                raise TimeoutError
            self._wait_no_longer_than(deadline)
            rest = rest[self.socket.send(rest[: 256 * 1024]) :]


def _bind(address: str, port: int) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(
        address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    both = family == socket.AF_INET6 and place[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((str(place[0]), port), family=family, backlog=128, dualstack_ipv6=both)


def _head(status: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Date: {formatdate(usegmt=True)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _answer(status: HTTPStatus, reason: str) -> bytes:
    body = f"{reason}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    return _head(f"{status.value} {status.phrase}", headers) + body

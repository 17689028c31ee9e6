"""Providers, sinks and collectors of the tests."""

from __future__ import annotations

import gzip
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from django_obs.traces.encoder import LeafSource, encode_request, encode_resource, encode_scope
from django_obs.traces.limits import SpanLimits
from django_obs.traces.provider import TracerProvider
from django_obs.traces.sampler import KeepRule, RatioSampler
from example_project.demo.processes import free_port as free_port


def describe(sql: str) -> tuple[str, dict[str, Any]]:
    return sql.split()[0], {"db.query.text": sql, "db.system.name": "sqlite"}


# In the scope of the tests' tracers, and in that of the pipeline's.
QUERIES = LeafSource(describe, repeats=True, scope=encode_scope("shop"))
PIPELINE_QUERIES = LeafSource(describe, repeats=True)


class ListSink:
    """Keeps encoded spans, and decodes them with the official classes."""

    def __init__(self) -> None:
        self.groups: list[tuple[bytes, int, bytes]] = []

    def offer(self, groups: Sequence[tuple[bytes, int, bytes]]) -> None:
        self.groups.extend(groups)

    def scope_spans(self) -> list[Any]:
        payload = encode_request(encode_resource({}), [(scope, [spans]) for scope, _, spans in self.groups])
        request = ExportTraceServiceRequest.FromString(payload)
        assert sum(count for _, count, _ in self.groups) == sum(
            len(each.spans) for each in request.resource_spans[0].scope_spans
        )
        return list(request.resource_spans[0].scope_spans)

    def spans(self) -> list[Any]:
        return [span for each in self.scope_spans() for span in each.spans]

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]


def make_provider(
    ratio: float = 1.0,
    *,
    errors: bool = False,
    slower_than: float | None = None,
    limits: SpanLimits | None = None,
    parent_based: bool = True,
) -> tuple[TracerProvider, ListSink]:
    sink = ListSink()
    provider = TracerProvider(
        RatioSampler(ratio, parent_based=parent_based),
        keep=KeepRule(errors, slower_than),
        limits=limits or SpanLimits(),
        resource={},
        sink=sink,
    )
    return provider, sink


def attributes(message: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in message.attributes}


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)


def wait_for(condition: Callable[[], object], timeout: float = 60.0) -> None:
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.01)


Answer = Callable[[BaseHTTPRequestHandler], None]


def accept(handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


class Collector:
    """An OTLP/HTTP receiver on a real socket, that answers as told."""

    def __init__(self, port: int = 0, ssl_context: Any = None) -> None:
        self.bodies: list[tuple[str, bytes]] = []  # of all signals, with the path
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[Answer] = []  # the next ones; then every request is accepted
        self.handlers: list[tuple[socket.socket, threading.Thread]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = collector.answers.pop(0) if collector.answers else accept
                if answer is accept:
                    collector.bodies.append((self.path, body))
                    if not self.path.endswith("/logs"):
                        collector.requests.append(ExportTraceServiceRequest.FromString(body))
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                    collector.paths.append(self.path)
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def process_request(self, request: Any, client_address: Any) -> None:
                thread = threading.Thread(
                    target=self.process_request_thread, args=(request, client_address), daemon=True
                )
                collector.handlers.append((request, thread))
                thread.start()

            def handle_error(self, request: Any, client_address: Any) -> None:
                # A client that has gone, or that trusts nobody.
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", port), Handler)
        if ssl_context is not None:
            # Hands are shaken in the handler's thread: a client that dawdles holds up nobody.
            self.server.socket = ssl_context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self.server.server_address[1]
        self.scheme = "https" if ssl_context is not None else "http"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1/traces"

    def spans(self) -> list[Any]:
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def close(self) -> None:
        """End like a process: with the connections that were kept alive, and with the threads.

        Close clients of TLS before: before 3.13, Python leaves one to the garbage collector that is reset between its
        connect() and its handshake.
        """
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        end(self.handlers)


def end(handlers: list[tuple[socket.socket, threading.Thread]]) -> None:
    """Cut connections and wait for the threads that close them."""
    for connection, _ in handlers:
        # Not SSLSocket.shutdown(): it takes the TLS object away from the reading thread.
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
    for _, thread in handlers:
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def collector(**arguments: Any) -> Iterator[Collector]:
    running = Collector(**arguments)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def socket_server(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that does to each connection what it is told; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    handlers: list[tuple[socket.socket, threading.Thread]] = []
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            handlers.append((connection, threading.Thread(target=serve, args=(connection,), daemon=True)))
            handlers[-1][1].start()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behave(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopping.set()
        # close() alone would leave accept() waiting.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        end(handlers)


def hang(connection: socket.socket) -> None:
    """Take everything and answer nothing."""
    while connection.recv(65536):
        pass

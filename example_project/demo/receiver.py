"""A very small OTLP/HTTP receiver: what arrives is kept, and whoever waits for it is woken."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire: ids in hex, times in nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    status: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) / 1e6


@dataclass(frozen=True)
class ReceivedRecord:
    """One log record as it came over the wire."""

    body: Any
    severity: str
    trace_id: str
    span_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Receiver:
    """Receive OTLP over HTTP on a free loopback port until closed.

    `delay` seconds pass before an answer, and `status` is its code: what slow and failing collectors do.
    """

    def __init__(self, *, port: int = 0, status: int = 200, delay: float = 0.0) -> None:
        self.status = status
        self.delay = delay
        self.spans: list[ReceivedSpan] = []
        self.records: list[ReceivedRecord] = []
        self.requests = 0
        self._arrival = threading.Condition()
        self._closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                status, answer = receiver.take(self.path, body)
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                """Keep the terminal for the demonstration."""

        class Server(ThreadingHTTPServer):
            # A sender that was stopped leaves its connection open; nobody should wait for it.
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A sender may hang up when it likes."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="otlp-receiver", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Keep what a request carries; return status and body of the answer."""
        self._closing.wait(self.delay)
        if self.status != 200:
            with self._arrival:
                self.requests += 1
                self._arrival.notify_all()
            return self.status, b""
        spans: list[ReceivedSpan] = []
        records: list[ReceivedRecord] = []
        answer = b""
        if path == "/v1/traces":
            spans = list(read_spans(body))
            answer = ExportTraceServiceResponse().SerializeToString()
        elif path == "/v1/logs":
            records = list(read_records(body))
            answer = ExportLogsServiceResponse().SerializeToString()
        with self._arrival:
            self.requests += 1
            self.spans += spans
            self.records += records
            self._arrival.notify_all()
        return 200, answer

    def wait(self, ready: Callable[[Receiver], bool], timeout: float = 10.0) -> bool:
        """Wait until `ready(self)`; False after `timeout` seconds."""
        with self._arrival:
            return self._arrival.wait_for(lambda: ready(self), timeout)

    def trace(self, trace_id: str, *, timeout: float = 10.0, settle: float = 0.5) -> list[ReceivedSpan]:
        """Return the spans of a trace once its root is here, ordered by start; empty after `timeout` seconds.

        A root whose parent is remote counts too. Spans of other processes may follow, so the trace should
        have been still for `settle` seconds.
        """

        def spans() -> list[ReceivedSpan]:
            return [span for span in self.spans if span.trace_id == trace_id]

        deadline = time.monotonic() + timeout
        self.wait(lambda _: any(span.kind == "SERVER" for span in spans()), timeout)
        with self._arrival:
            seen = -1
            while seen != len(spans()) and time.monotonic() < deadline:
                seen = len(spans())
                self._arrival.wait_for(lambda seen=seen: len(spans()) > seen, settle)
            return sorted(spans(), key=lambda span: (span.start, -span.end))

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def value_of(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [value_of(item) for item in value.array_value.values]
        case "kvlist_value":
            return fields_of(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)


def fields_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in pairs}


def read_spans(body: bytes) -> Iterable[ReceivedSpan]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = fields_of(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    name=span.name,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    status=("UNSET", "OK", "ERROR")[span.status.code],
                    attributes=fields_of(span.attributes),
                    resource=resource,
                    scope=scope_spans.scope.name,
                )


def read_records(body: bytes) -> Iterable[ReceivedRecord]:
    for resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs:
        resource = fields_of(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                yield ReceivedRecord(
                    body=value_of(record.body),
                    severity=record.severity_text,
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    attributes=fields_of(record.attributes),
                    resource=resource,
                )

"""A collector that can be killed, hang, dawdle and come back, and that counts what it has acknowledged."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from example_project.demo.processes import poll

# Seconds until a dawdling collector answers.
DAWDLE = 0.5


class Receiver:
    """An OTLP/HTTP receiver on one port for its whole life, whether anybody listens there or not.

    What counts is what was acknowledged: a batch whose answer could not be sent is sent again, rightly.
    """

    def __init__(self) -> None:
        self.mode = "takes"  # or "hangs", "dawdles", "garbles"
        self.spans: list[Any] = []
        self.unacknowledged = 0
        # Nobody else gets the port while nobody listens there.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = int(self._reserved.getsockname()[1])
        self._connections: set[socket.socket] = set()
        self._changed = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver._connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                receiver._connections.discard(self.request)
                with suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with suppress(OSError, ValueError):
                    super().handle()

            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and cut who is connected."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.become("takes")
        self.settle()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def settle(self) -> None:
        """Wait until what was received is answered and counted."""
        poll(lambda: not self._busy, 30)

    def close(self) -> None:
        """Be gone for good."""
        self.stop()
        self._reserved.close()

    def become(self, mode: str) -> None:
        self.mode = mode
        self._changed.set()
        self._changed = threading.Event()

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._busy += 1
        try:
            self._take(handler)
        finally:
            with self._lock:
                self._busy -= 1

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        if handler.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        mode = self.mode
        if mode == "hangs":
            self._changed.wait(600)
            handler.close_connection = True
            return
        if mode == "garbles":
            handler.wfile.write(GARBAGE[len(self.spans) % len(GARBAGE)])
            handler.close_connection = True
            return
        if mode == "dawdles":
            time.sleep(DAWDLE)
        try:
            handler.send_response(200)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            handler.wfile.flush()
        except OSError:
            self.unacknowledged += 1
            return
        request = ExportTraceServiceRequest.FromString(body)
        self.spans += [
            span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]


GARBAGE = (
    b"HTTP/1.1 503 No\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 No\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n",
)

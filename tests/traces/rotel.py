"""The real collector of the tests: rotel, which takes OTLP over HTTP and gRPC and passes it on to a sink."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import ssl
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .support import wait_for


def rotel_binary() -> Path | None:
    found = importlib.util.find_spec("rotel")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(found.submodule_search_locations[0]) / "rotel-agent"
    return binary if binary.exists() else None


class Rotel:
    """A collector process; ``sink`` is the endpoint that it exports to."""

    def __init__(self, sink: str, grpc_port: int, http_port: int, log: Path) -> None:
        self.grpc_port, self.http_port = grpc_port, http_port
        command = [
            *(str(rotel_binary()), "start"),
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", sink),
            *("--traces-batch-timeout", "100ms", "--otlp-exporter-compression", "none"),
        ]
        # The binary links libpython dynamically.
        libraries = os.pathsep.join([sysconfig.get_config_var("LIBDIR") or "", os.environ.get("LD_LIBRARY_PATH", "")])
        self.log = log.open("ab")
        self.process = subprocess.Popen(
            command, env=os.environ | {"LD_LIBRARY_PATH": libraries}, stdout=self.log, stderr=self.log
        )
        wait_for(lambda: self.process.poll() is not None or (listens(grpc_port) and listens(http_port)))
        assert self.process.poll() is None, log.read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.log.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def tls_in_front_of(port: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """End TLS before a collector that has none, as a load balancer does; yield the port to connect to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    loop = asyncio.new_event_loop()

    open_writers: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.add(writer)
        with suppress(OSError, asyncio.CancelledError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            open_writers.add(inner_writer)
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        writer.close()

    async def close() -> None:
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for writer in open_writers:
            writer.transport.abort()
        # An aborted transport is closed in the loop's next rounds.
        for _ in range(10):
            await asyncio.sleep(0.01)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()

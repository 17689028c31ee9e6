"""The official exporters' HTTP and gRPC clients, handed encoded bytes.

Connections, headers, compression, credential providers, timeouts and the retry with its ``Retry-After`` are theirs;
only their encoder is passed by, and which HTTP library they send with is chosen here. Whatever they import is imported
with the first export, in the exporter's thread.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextlib import suppress as suppress_errors
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from django_obs.lifecycle import opening

from .propagation import detach, suppress

Signal = Literal["traces", "logs"]

# https://opentelemetry.io/docs/specs/otlp/#failures-1: these may pass; every other answer is final.
RETRYABLE_STATUS = frozenset({429, 502, 503, 504})
RETRYABLE_CODES = frozenset(
    {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)
# What the exporters and their libraries log while they send is said by our own warning, once.
NOISY_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http._common",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "urllib3.connectionpool",
    "urllib3.util.retry",
)
# Variables that name who makes the session.
CREDENTIALS: Mapping[Signal, tuple[str, str]] = {
    "traces": (
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    ),
    "logs": (
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_LOGS_CREDENTIAL_PROVIDER",
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    ),
}
GRPC_EXPORTERS: Mapping[Signal, tuple[str, str, str]] = {
    "traces": (
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "OTLPSpanExporter",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    ),
    "logs": (
        "opentelemetry.exporter.otlp.proto.grpc._log_exporter",
        "OTLPLogExporter",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    ),
}


class Batch(NamedTuple):
    """An encoded export request, and how many spans or records it has."""

    spans: int
    payload: bytes


class Outcome(NamedTuple):
    """What became of a batch. What may be tried again was not taken by the collector, as far as we can know."""

    delivered: bool
    again: bool = False
    reason: str = ""


DELIVERED = Outcome(True)


class Transport(Protocol):
    """A connection to the collector, used by one thread."""

    def send(self, batch: Batch, timeout: float, *, retry: bool) -> Outcome:
        """Deliver a batch within so many seconds, if ``retry`` with the exporter's retries. Never raises."""

    def interrupt(self) -> None:
        """End waits between the retries of an export that is going on. Called by other threads."""


class _Muted(logging.Filter):
    """Drops what is logged by a thread that is sending, and remembers what it said of the collector last."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[int, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        thread = record.thread
        if thread not in self.threads:
            return True
        said = record.getMessage()
        # Why it tried again is worth knowing, not that it was told to leave that.
        if not said.startswith("Shutdown in progress"):
            self.threads[thread] = said
        return False

    def install(self) -> None:
        for name in NOISY_LOGGERS:
            logging.getLogger(name).addFilter(self)


_muted = _Muted()


@contextmanager
def _sending() -> Iterator[None]:
    """Mute the exporters' loggers and suppress instrumentation of their requests in this thread."""
    thread = threading.get_ident()
    token = suppress()
    _muted.threads[thread] = ""
    try:
        yield
    finally:
        del _muted.threads[thread]
        detach(token)


def _variable(signal: Signal, name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"


def _set_for(signal: Signal, name: str) -> str | None:
    """Return what a variable of the exporters is set to: the signal's own goes before the one for all."""
    return os.environ.get(_variable(signal, name)) or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}")


class HTTPTransport:
    """OTLP over HTTP: the client that the official exporters have inside takes bytes.

    The exporter around it would import the SDK and the messages of protobuf, which nothing here uses.
    """

    def __init__(self, signal: Signal, endpoint: str | None, headers: Mapping[str, str]) -> None:
        exporters: Any = import_module("opentelemetry.exporter.otlp.proto.http._common")
        client: Any = import_module("opentelemetry.exporter.otlp.common.http")
        url: str = endpoint or exporters._resolve_endpoint(_variable(signal, "ENDPOINT"), f"v1/{signal}")
        self._client = client._OTLPHTTPClient(
            transport=_http_library(exporters, signal, url),
            endpoint=url,
            kind="spans" if signal == "traces" else signal,
            timeout=exporters._resolve_timeout(_variable(signal, "TIMEOUT")),
            compression=exporters._resolve_compression(_variable(signal, "COMPRESSION")),
            headers=exporters._resolve_headers(dict(headers), _variable(signal, "HEADERS")),
        )
        self._timeout: float = self._client._timeout

    def send(self, batch: Batch, timeout: float, *, retry: bool) -> Outcome:
        """Post the batch."""
        client = self._client
        client._timeout = min(self._timeout, timeout)
        (client._shutdown_event.clear if retry else client._shutdown_event.set)()
        with _sending():
            result = client.export(batch.payload)
            said = _muted.threads[threading.get_ident()]
        status = result.status_code
        # A redirect is not followed, so nothing was delivered, though the client takes it for a success.
        if result.success and (status is None or status < 300):
            return DELIVERED
        if status is not None:
            return Outcome(False, status in RETRYABLE_STATUS, f"{status} {result.reason}")
        error = result.error
        # No error at all: the export was interrupted.
        again = error is None or client._transport.is_connection_error(error)
        return Outcome(False, again, str(error or said or "interrupted"))

    def interrupt(self) -> None:
        """End waits between retries."""
        self._client._shutdown_event.set()


def _http_library(exporters: Any, signal: Signal, url: str) -> Any:
    """Return the exporters' own transport over urllib3, or over requests where the environment asks for that."""
    key, certificate = _set_for(signal, "CLIENT_KEY"), _set_for(signal, "CLIENT_CERTIFICATE")
    cert = (certificate, key) if certificate and key else certificate
    authorities = _set_for(signal, "CERTIFICATE")
    for file in (authorities, certificate, key):
        if file and not os.path.exists(file):
            # urllib3 would name no file, and fail anew with each batch.
            raise FileNotFoundError(errno.ENOENT, "a certificate or key of OTEL_EXPORTER_OTLP_* is not there", file)
    verify: str | bool = authorities or True
    if needs_requests(signal, url) or os.path.isdir(authorities or ""):
        session = exporters._load_session_from_envvar(CREDENTIALS[signal][0])
        requests: Any = import_module("opentelemetry.exporter.http.transport._requests")
        # Release 1.45.0 of the exporters does without it.
        with suppress_errors(ModuleNotFoundError):
            return requests.RequestsHTTPTransport(verify=verify, cert=cert, session=session)
    if verify is True and urlsplit(url).scheme == "https":
        # Those of requests: a slim container has none of its own.
        with suppress_errors(ModuleNotFoundError):
            verify = import_module("certifi").where()
    return _urllib3_transport(verify=verify, cert=cert)


def needs_requests(signal: Signal, url: str) -> bool:
    """Tell whether the environment has what requests heeds and urllib3 does not: a proxy, a password, a bundle."""
    from urllib.request import getproxies

    parts = urlsplit(url)
    names = [*CREDENTIALS[signal], "NETRC"]
    if parts.scheme == "https":
        names += ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
    return (
        "@" in parts.netloc
        or any(os.environ.get(name) for name in names)
        or any(os.path.exists(os.path.expanduser(name)) for name in ("~/.netrc", "~/_netrc"))
        or bool(getproxies().keys() - {"no"})
    )


def _urllib3_transport(**options: Any) -> Any:
    # One megabyte of a process, where requests would take three and a half on top.
    urllib3: Any = import_module("opentelemetry.exporter.http.transport._urllib3")
    exceptions: Any = import_module("urllib3.exceptions")

    class Transport(urllib3.Urllib3HTTPTransport):  # type: ignore[misc]
        """Takes an answer that does not come in time for what it is, as the transport over requests does."""

        def is_connection_error(self, exception: Exception | None) -> bool:
            return isinstance(exception, exceptions.TimeoutError) or bool(super().is_connection_error(exception))

    return Transport(**options)


def _grpc_exporter(signal: Signal) -> Any:
    """Import an exporter class. That of the spans, which sends bytes just as well, serves where that fails.

    The SDK's logs start a thread pool when they are imported, which Python refuses at its end. A command that is over
    within a second sends its first records then.
    """
    wanted, stand_in = GRPC_EXPORTERS[signal], GRPC_EXPORTERS["traces"]
    try:
        return getattr(import_module(wanted[0]), wanted[1])
    except RuntimeError:
        return getattr(import_module(stand_in[0]), stand_in[1])


class GRPCTransport:
    """OTLP over gRPC: the official exporter with a stub that takes bytes."""

    def __init__(self, signal: Signal, endpoint: str | None, headers: Mapping[str, str]) -> None:
        official: Any = _grpc_exporter(signal)
        method = GRPC_EXPORTERS[signal][2]
        errors: list[Any] = []
        self._errors = errors

        class BytesStub:
            """Sends bytes as they are, and keeps the error that the exporter turns into a mere failure."""

            def __init__(self, channel: Any) -> None:
                self._call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)

            def Export(self, request: bytes, metadata: Any = None, timeout: float | None = None) -> None:
                try:
                    self._call(request, metadata=metadata, timeout=timeout)
                except Exception as error:
                    errors[:] = [error]
                    raise

        class BytesExporter(official):  # type: ignore[misc]
            """The official exporter without its encoder."""

            def _initialize_channel_and_stub(self) -> None:
                super()._initialize_channel_and_stub()
                self._client = BytesStub(self._channel)

            def _translate_data(self, data: Batch) -> bytes:
                return data.payload

            def _count_data(self, data: Batch) -> int:
                return data.spans

        # gRPC refuses metadata with upper-case keys.
        metadata = {key.lower(): value for key, value in headers.items()}
        self._exporter = BytesExporter(endpoint=endpoint or None, headers=metadata or None)
        self._timeout: float = self._exporter._timeout

    def send(self, batch: Batch, timeout: float, *, retry: bool) -> Outcome:
        """Call Export with the batch."""
        exporter = self._exporter
        exporter._timeout = min(self._timeout, timeout)
        (exporter._shutdown_in_progress.clear if retry else exporter._shutdown_in_progress.set)()
        self._errors.clear()
        with _sending():
            result = exporter.export(batch)
        if result.name == "SUCCESS":
            return DELIVERED
        if not self._errors:
            return Outcome(False, False, "the exporter gave no reason")
        error = self._errors.pop()
        code = getattr(error.code(), "name", "UNKNOWN")
        again = code in RETRYABLE_CODES
        if code == "RESOURCE_EXHAUSTED":
            # Without a delay to wait for it means that the message is too large, now and for ever.
            again = "google.rpc.retryinfo-bin" in dict(error.trailing_metadata() or ())
        return Outcome(False, again, f"{code} {error.details()}")

    def interrupt(self) -> None:
        """End waits between retries."""
        self._exporter._shutdown_in_progress.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_muted.threads.clear)


def open_transport(signal: Signal, protocol: str, endpoint: str | None, headers: Mapping[str, str]) -> Transport:
    """Return a client for the protocol, "http/protobuf" or "grpc"; what is not given is found in ``OTEL_*``."""
    with opening.lock, _sending():
        _muted.install()
        if protocol != "grpc":
            return HTTPTransport(signal, endpoint, headers)
        try:
            return GRPCTransport(signal, endpoint, headers)
        except RuntimeError:
            with _nothing_detected():
                return GRPCTransport(signal, endpoint, headers)


@contextmanager
def _nothing_detected() -> Iterator[None]:
    """Keep the SDK from detecting resources, which it does in a thread pool, while it is imported.

    At the exit of a process, which for a short command is the first export, no pool takes work any more. What would be
    detected is a default that nothing here reads.
    """
    resources: Any = import_module("opentelemetry.sdk.resources")
    detect = resources.get_aggregated_resources
    resources.get_aggregated_resources = lambda detectors, initial_resource=None, timeout=5: (
        initial_resource or resources.Resource.get_empty()
    )
    try:
        yield
    finally:
        resources.get_aggregated_resources = detect

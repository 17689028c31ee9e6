"""The way to the collector: name, connection, TLS, status, and whether a span or record is taken.

What is sent goes through a pipeline like that of every process, with the same transport and options; what went wrong
is found out step by step.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from time import time
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from django_obs.conf import Settings, get_settings, logs_collector, place_of, without_credentials
from django_obs.log_export import LogExport
from django_obs.logs.entry import Entry
from django_obs.traces.pipeline import TracePipeline
from django_obs.traces.resource import resource_attributes
from django_obs.traces.transport import Batch, Outcome, Transport

from .finding import Finding, broken, off, ok, warning

# Says of a span, a line and a sample that nobody but the doctor has made it.
MARK = "django_obs.doctor"
TEST = "manage.py obs doctor: a test"
PORTS = {"http/protobuf": 4318, "grpc": 4317}


class Witness:
    """A transport that remembers what became of each batch."""

    def __init__(self, transport: Transport, outcomes: list[Outcome]) -> None:
        self.transport = transport
        self.outcomes = outcomes

    def send(self, batch: Batch, timeout: float, *, retry: bool) -> Outcome:
        """Send once: a doctor has no patience."""
        outcome = self.transport.send(batch, timeout, retry=False)
        self.outcomes.append(outcome)
        return outcome

    def interrupt(self) -> None:
        """End waits."""
        self.transport.interrupt()


class TestTraces(TracePipeline):
    """The pipeline of the spans with a witness at its end. Whatever the ratio is, it samples."""

    __test__ = False  # for pytest, which takes the name for its own

    def __init__(self, settings: Settings, outcomes: list[Outcome]) -> None:
        super().__init__(replace(settings.traces, sample_ratio=1.0), service_name=settings.service_name)
        self.outcomes = outcomes

    def _open_transport(self) -> Transport:
        return Witness(super()._open_transport(), self.outcomes)


class TestLogs(LogExport):
    """The export of the records with a witness at its end."""

    __test__ = False

    def __init__(self, settings: Settings, outcomes: list[Outcome]) -> None:
        super().__init__(
            settings, resource=lambda: resource_attributes(settings.service_name), flush_lines=lambda timeout: True
        )
        self.outcomes = outcomes

    def open_transport(self) -> Transport:
        """Return the transport of the records, with a witness."""
        return Witness(super().open_transport(), self.outcomes)


def examine(timeout: float) -> Iterator[Finding]:
    """Send a span, and a record where records are sent; each step takes at most so many seconds."""
    settings = get_settings()
    if settings.traces.enabled:
        yield from _way("collector", settings.traces.endpoint, settings.traces.protocol, timeout, send_span)
    else:
        yield off("collector.accepted", f"No spans are sent: {_switch('traces')} switches traces off.")
    if settings.logs.enabled and settings.logs.otlp:
        collector = logs_collector()
        yield from _way("log_collector", collector.endpoint, collector.protocol, timeout, send_record)


def _switch(section: str) -> str:
    from django_obs.conf import origin_of

    return origin_of(section, "enabled")


def send_span(timeout: float) -> Outcome:
    """Send a span through a whole pipeline; return what became of it."""
    outcomes: list[Outcome] = []
    pipeline = TestTraces(get_settings(), outcomes)
    pipeline.tracer.start_span(TEST, attributes={MARK: True}).end()
    return _delivered(pipeline.shutdown, outcomes, timeout)


def send_record(timeout: float) -> Outcome:
    """Send a log record through the export; return what became of it."""
    outcomes: list[Outcome] = []
    export = TestLogs(get_settings(), outcomes)
    export([Entry(time(), 20, "INFO", MARK, TEST, "", "", "", {MARK: True}, None, None)])
    return _delivered(export.shutdown, outcomes, timeout)


def _delivered(shutdown: Callable[[float], bool], outcomes: list[Outcome], timeout: float) -> Outcome:
    from django_obs.traces.exporter import logger

    # The exporter says what the findings will say.
    level, logger.disabled = logger.disabled, True
    try:
        shutdown(timeout)
    finally:
        logger.disabled = level
    if outcomes:
        return outcomes[-1]
    return Outcome(False, True, f"nothing came back within {timeout:g} s")


def _way(
    part: str, endpoint: str, protocol: str, timeout: float, send: Callable[[float], Outcome]
) -> Iterator[Finding]:
    url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    host, port = url.hostname or "localhost", url.port or _default_port(url, protocol)
    what = f"the collector at {host}:{port}"
    setting = place_of(("traces", "endpoint"))
    via = proxy(url.scheme, host)
    if via:
        # Without a scheme it is a proxy as well.
        shown = without_credentials(via if "//" in via else f"//{via}").removeprefix("//")
        yield ok(f"{part}.resolves", f"{host} is left to the proxy {shown}, as HTTP_PROXY and its like have it.")
    else:
        try:
            addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except OSError as error:
            yield broken(
                f"{part}.resolves",
                f"The name of {what} is not known here: {error.strerror or error}.",
                f"Correct {setting} (it is {without_credentials(endpoint)!r}), or what looks names up on this machine.",
            )
            return
        yield ok(f"{part}.resolves", f"{host} is {', '.join(sorted(addresses))}.")
        try:
            socket.create_connection((host, port), timeout=timeout).close()
        except OSError as error:
            yield broken(f"{part}.connects", f"No connection to {what}: {error}.", _no_connection(error, setting, port))
            return
        yield ok(f"{part}.connects", f"Somebody listens at {host}:{port}.")
    outcome = send(timeout)
    if outcome.delivered:
        if url.scheme == "https":
            yield ok(f"{part}.tls", "The certificate is trusted.")
        yield ok(f"{part}.accepted", f"It took a test over {protocol}, marked {MARK}.")
        return
    yield _why(part, outcome.reason, url, protocol, host, port, timeout)


def _default_port(url: SplitResult, protocol: str) -> int:
    return {"http": 80, "https": 443}.get(url.scheme, PORTS[protocol])


def proxy(scheme: str, host: str) -> str:
    """Return the proxy that a request would take, empty for none."""
    with suppress(OSError):
        if proxy_bypass(host):
            return ""
    return getproxies().get(scheme, "")


def _no_connection(error: OSError, setting: str, port: int) -> str:
    if isinstance(error, ConnectionRefusedError):
        other = {4317: 4318, 4318: 4317}.get(port)
        convention = f" By convention it takes HTTP at 4318 and gRPC at 4317, not only at {port}." if other else ""
        return f"Nothing listens there: start the collector, or set {setting} to where it is.{convention}"
    if isinstance(error, TimeoutError):
        return f"Nothing answered: a firewall may drop what is sent. Set {setting} to what can be reached from here."
    return f"Set {setting} to what can be reached from here."


def speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Tell whether TLS is spoken there, whoever the certificate is for."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        # An alert is an answer in TLS: a client certificate is wanted, say.
        return "ALERT" in str(error).upper()
    except OSError:
        return False


STATUS_HINTS: Mapping[str, str] = {
    "401": "It wants to know who sends: set {headers} (OTEL_EXPORTER_OTLP_HEADERS).",
    "403": "It does not take it from whom sends: correct {headers} (OTEL_EXPORTER_OTLP_HEADERS).",
    "404": "There is no such path: {endpoint} is the full URL of the spans, as a rule ending in /v1/traces.",
    "405": "That path takes no POST: {endpoint} is the full URL of the spans, as a rule ending in /v1/traces.",
    "413": "A batch is too large for it: raise its limit.",
    "415": "It does not know the encoding: it has to take OTLP as protobuf.",
    "429": "It takes no more for the moment: what is not taken in time is dropped and counted.",
    "UNAUTHENTICATED": "It wants to know who sends: set {headers} (OTEL_EXPORTER_OTLP_HEADERS).",
    "PERMISSION_DENIED": "It does not take it from whom sends: correct {headers} (OTEL_EXPORTER_OTLP_HEADERS).",
    "UNIMPLEMENTED": "It has no receiver for this signal: enable OTLP there, or set {endpoint} to one that has.",
}


def _why(part: str, reason: str, url: SplitResult, protocol: str, host: str, port: int, timeout: float) -> Finding:
    names: dict[str, Any] = {
        "endpoint": place_of(("traces", "endpoint")),
        "headers": place_of(("traces", "headers")),
    }
    code = reason.partition(" ")[0]
    if (url.scheme == "https") != (tls := speaks_tls(host, port, timeout)) and not proxy(url.scheme, host):
        spoken, wanted = ("TLS", "https") if tls else ("no TLS", "http")
        return broken(
            f"{part}.tls",
            f"{host}:{port} speaks {spoken}, and the endpoint begins with {url.scheme or 'no scheme'}.",
            f"Begin {names['endpoint']} with {wanted}://.",
        )
    if tls and ("certificate" in reason.lower() or "ssl" in reason.lower()):
        return broken(
            f"{part}.tls",
            f"The certificate of {host}:{port} is not trusted, or ours is not: {reason}",
            _untrusted(protocol),
        )
    if code.isdigit() or code in STATUS_HINTS:
        fallback = "The collector's own log tells why."
        make = warning if code == "429" else broken
        return make(
            f"{part}.status",
            f"{host}:{port} answered {reason.strip()}.",
            STATUS_HINTS.get(code, fallback).format(**names),
        )
    other = "grpc" if protocol == "http/protobuf" else "http/protobuf"
    return broken(
        f"{part}.accepted",
        f"{host}:{port} did not take a test over {protocol}: {reason}",
        f"If it speaks {other}, set {place_of(('traces', 'protocol'))} to that; else its own log tells why.",
    )


def _untrusted(protocol: str) -> str:
    bundle = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)), "")
    if bundle and protocol != "grpc":
        return (
            f"{bundle} is set, and goes before OTEL_EXPORTER_OTLP_CERTIFICATE: add the authority to that file, or "
            "unset the variable."
        )
    return (
        "OTEL_EXPORTER_OTLP_CERTIFICATE names the authority that has signed it, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE "
        "and _CLIENT_KEY what we show; the name in it must be that of the endpoint."
    )

"""Bytes from outside: whatever they are, they are read or refused, in bounded time and room, and nothing breaks.

Other tests fuzz directives (`logs/test_directives.py`), settings and their variables (`test_conf.py`), the control file
(`test_runtime.py`) and trace context against the official propagator (`traces/test_propagation.py`).
``HYPOTHESIS_PROFILE=long`` tries many more examples of all of them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext

from django_obs.conf import TraceSettings
from django_obs.lifecycle import Worker
from django_obs.metrics.exposition import ESCAPINGS, Format, accepts_gzip, negotiate
from django_obs.metrics.index import Definition, Request
from django_obs.metrics.scraper import Scraper
from django_obs.metrics.store import Store
from django_obs.middleware import waited_ns
from django_obs.semconv import is_request_id
from django_obs.server.app import AdminApplication
from django_obs.server.listener import Limits, Listener
from django_obs.server.web_config import Gatekeeper, Logins, WebConfig, WebConfigError, read
from django_obs.testing import capture_logs, capture_spans
from django_obs.traces.limits import SpanLimits
from django_obs.traces.options import RequestOptions
from django_obs.traces.pipeline import TracePipeline
from django_obs.traces.propagation import parse_traceparent
from django_obs.traces.resource import resource_attributes
from django_obs.traces.transport import Batch, HTTPTransport
from tests.server.conftest import serving
from tests.traces.support import socket_server

# Fixtures of these tests hold no state that an example could change.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# Latin-1, as servers hand header values over.
latin = st.binary(max_size=300).map(lambda data: data.decode("latin-1"))
hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=40)


def almost(*valid: str) -> st.SearchStrategy[str]:
    """Text that is nearly right: pieces of what is valid, with anything in between."""
    pieces = st.sampled_from([piece for text in valid for piece in (text, text[: len(text) // 2], text[-3:])])
    return st.lists(pieces | latin, max_size=6).map("".join)


# -- Requests ----------------------------------------------------------------------------------------------------------

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HEADERS = {
    "HTTP_TRACEPARENT": almost(TRACEPARENT, "-", "ff"),
    "HTTP_TRACESTATE": almost("vendor=value", "a@b=c", ",", "=", ", "),
    "HTTP_BAGGAGE": almost("key=value;property", "%41%ff", ",", "=", ";"),
    "HTTP_X_REQUEST_ID": almost("0123-abcd", "\n", '"}'),
    "HTTP_X_REQUEST_START": almost("t=1700000000.123", "1700000000123", "."),
    "HTTP_HOST": almost("testserver", "[::1]:80", ":", "@"),
    "HTTP_USER_AGENT": latin,
    "HTTP_COOKIE": latin,
    "HTTP_X_FORWARDED_FOR": almost("127.0.0.1", ","),
    "HTTP_X_FORWARDED_PROTO": latin,
    "HTTP_X_REQUESTED_WITH": latin,
    # Django itself fails at a NUL in the name of a character set, before any middleware; servers let none through.
    "CONTENT_TYPE": almost("text/html; charset=utf-8", "multipart/form-data; boundary=").map(
        lambda text: text.replace("\0", "")
    ),
    "CONTENT_LENGTH": almost("0", "-1", "9" * 30),
    "QUERY_STRING": almost("password=secret", "&", "=", "%", "a[]=1"),
    "PATH_INFO": almost("/items/7/", "/", "//", "/fail/").map(lambda text: "/" + text),
    "REQUEST_METHOD": almost("GET", "POST", "BREW").filter(bool),
    "SERVER_PORT": almost("80", "²", "-1"),
    "SERVER_PROTOCOL": almost("HTTP/1.1", "/"),
    "REMOTE_ADDR": almost("127.0.0.1", "unix:"),
}


@pytest.fixture(scope="module")
def application() -> Any:
    return get_wsgi_application()


def serve(application: Any, environ: dict[str, Any]) -> int:
    """Answer a request; return the status."""
    found: list[str] = []
    body = {"wsgi.input": open(os.devnull, "rb"), "wsgi.errors": open(os.devnull, "w"), "wsgi.url_scheme": "http"}  # noqa: SIM115
    plain = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_NAME": "testserver", "SERVER_PORT": "80"}
    try:
        response = application({**plain, **environ, **body}, lambda status, headers, *rest: found.append(status))
        b"".join(response)
        response.close()
    finally:
        body["wsgi.input"].close()  # type: ignore[attr-defined]
        body["wsgi.errors"].close()  # type: ignore[attr-defined]
    return int(found[0][:3])


@pytest.mark.django_db
@shared
@given(environ=st.fixed_dictionaries({}, optional=HEADERS))
def test_any_request_is_answered_and_has_one_line_and_one_span(application: Any, environ: dict[str, str]) -> None:
    with capture_logs() as lines, capture_spans() as spans:
        status = serve(application, environ)

    assert 200 <= status < 600
    (access,) = [line for line in lines if line["logger"] == "django_obs.access"]
    assert access["status"] == status
    assert is_request_id(access["request_id"])
    (server,) = [span for span in spans if span.kind == "server"]
    assert server.trace_id == access["trace_id"]
    for parameter in str(server.attributes.get("url.query", "")).split("&"):
        name, _, value = parameter.partition("=")
        assert name != "password" or value in ("", "REDACTED")
    assert not [line for line in lines if "reported once" in line["message"]]


@given(header=almost(TRACEPARENT, "-") | latin, state=almost("vendor=value", "a@b=c", ",") | st.none())
def test_any_trace_context_is_a_valid_parent_or_none(header: str, state: str | None) -> None:
    parent = parse_traceparent(header, state)
    assert parent is None or (isinstance(parent, SpanContext) and parent.is_valid)


@given(almost("t=1700000000.123", "1700000000123", ".", "9" * 16))
def test_any_queue_start_is_a_time_or_none(header: str) -> None:
    waited = waited_ns(header)
    assert waited is None or 0 <= waited < 3600 * 10**9


# -- The admin port ----------------------------------------------------------------------------------------------------

ACCEPT = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5"


@given(almost(ACCEPT, "text/plain;version=0.0.4", "*/*", ",", ";", "q=nan", "q=1e999"))
def test_any_accept_gets_a_format_that_there_is(accept: str) -> None:
    chosen = negotiate(accept)
    assert isinstance(chosen, Format)
    assert chosen.version in ("0.0.1", "0.0.4", "1.0.0")
    assert chosen.escaping in ESCAPINGS
    assert isinstance(accepts_gzip(accept), bool)


class Page:
    """The metrics of nobody."""

    def render(self, dialect: Format, names: frozenset[str] | None = None) -> bytes:
        return b"# metrics\n" * 200

    def ready(self) -> str | None:
        return None

    def processes(self) -> list[dict[str, object]]:
        return []


class Filter:
    """A filter that refuses what is not ASCII."""

    def read(self) -> dict[str, object]:
        return {}

    def write(self, directives: str, seconds: float | None) -> dict[str, object]:
        assert seconds is None or 0 < seconds < math.inf
        if not directives.isascii():
            raise ValueError("not ASCII")
        return {}

    clear = read


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    limits = Limits(head_bytes=2000, body_bytes=1000, linger_seconds=0.05)
    with serving(AdminApplication(Page(), Gatekeeper(None), Filter()), limits=limits) as running:
        yield running


def converse(listener: Listener, data: bytes) -> bytes:
    """Send bytes and hang up; return all that was answered."""
    answer = b""
    with socket.create_connection((listener.address, listener.port), timeout=30) as client, suppress(OSError):
        # Whoever has heard enough may hang up before we have said it all.
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(65536):
            answer += chunk
    return answer


REQUEST = b"PUT /filter?seconds=60 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\ninfo"
PIECES = [
    *(
        b"GET ",
        b"PUT ",
        b"HEAD ",
        b"/metrics",
        b"/filter",
        b"?seconds=",
        b"nan",
        b"1e999",
        b"//",
        b"[",
        b"%",
        b" HTTP/1.1",
    ),
    *(
        b" HTTP/2.0",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b": ",
        b"Host: localhost",
        b"Accept: */*;q=",
        b"Accept-Encoding: gzip;q=0",
    ),
    *(
        b"Content-Length: ",
        b"99999999999999999999",
        b"-1",
        b"Transfer-Encoding: chunked",
        b"Authorization: Basic ",
        b"=",
    ),
    *(b"Origin: ", b"X-Forwarded-For: 1", b"Expect: 100-continue", b"Connection: keep-alive", b"\x00", b"\xff"),
]


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """A request that is nearly right, or none at all."""
    data = draw(
        st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=20).map(b"".join) | st.just(REQUEST)
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + draw(st.integers(0, 8)) :]
    return data + draw(st.sampled_from([b"", b"\r\n\r\n"]))


STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


@shared
@example(REQUEST)
@example(b"GET /metrics?name[]=" + b"a&" * 900 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
@given(conversations())
def test_any_bytes_are_answered_or_cut_off_by_the_admin_port(
    listener: Listener, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    caplog.clear()
    answer = converse(listener, data)

    assert not answer or STATUS_LINE.match(answer)
    assert not [status for status in STATUS_LINE.findall(answer) if status == b"500"]
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


@shared
@given(almost("Basic dXNlcjpwYXNz", "Basic ", "=", "é") | latin)
def test_any_authorization_is_known_or_not(authorization: str) -> None:
    users = {"user": b"$2b$04$" + b"." * 53}
    assert Logins().valid(users, authorization) is False


# -- web-config --------------------------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
KEYS = st.sampled_from(
    [
        *("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "cert_file", "key_file"),
        *("client_auth_type", "client_ca_file", "client_allowed_sans", "min_version", "max_version", "cipher_suites"),
        *("headers", "http2", "X-Frame-Options", "RequireAndVerifyClientCert", "TLS12"),
    ]
)
DOCUMENTS = st.recursive(
    SCALARS | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=4),
    max_leaves=12,
)
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in range(ord("b"), ord("k"))
)


@shared
@example(b"tls_server_config: {cert_file: [], key_file: {}, min_version: []}")
@example(b"tls_server_config: {cert_file: a, key_file: b, client_auth_type: {}}")
@example(b"basic_auth_users: {? [a] : b}")
@example(b"a: 2001-99-99")
@example(b"a: 0b")
@example(b"a: !!int ''")
@example(b"a: !!float x")
@example(b"a: &a [*a]")
@example(b"[" * 5000)
@example(BOMB + b"tls_server_config: {cert_file: *j, key_file: b}")
@example(b"tls_server_config: {cert_file: a, key_file: b, min_version: &a [[[[x]]]]}")
@example(b"\xff\xfe\x00")
@given(DOCUMENTS.map(lambda document: yaml.safe_dump(document).encode()) | st.binary(max_size=60))
def test_any_web_config_is_read_or_refused_with_its_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "web.yml"
    path.write_bytes(content)
    said = ""
    try:
        assert isinstance(read(path), WebConfig)
        Gatekeeper(path)
    except WebConfigError as error:
        said = str(error)
    assert not said or str(path) in said
    assert len(said) < 2000


# -- The metrics store -------------------------------------------------------------------------------------------------


def written(*record: object) -> bytes:
    """A line of the index, with its right checksum."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


HUGE = 2**62
NUMBERS = st.integers(-3, 600) | st.sampled_from([HUGE, -HUGE, 2**70])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
TAGS = st.sampled_from(["series", "metric", "help", "current", "index", "other"])
TEXTS = st.lists(st.text(max_size=4), max_size=3)
RECORDS = (
    st.tuples(TAGS, *[JSON] * 3).map(list)
    | st.tuples(TAGS, *[JSON] * 5).map(list)
    | st.lists(JSON, max_size=4)
    | JSON
    | st.tuples(st.just("series"), NUMBERS, NUMBERS, NUMBERS, TEXTS, st.floats())
    | st.tuples(
        *(st.just("metric"), NUMBERS, st.sampled_from(["counter", "gauge", "histogram", "summary", "odd"])),
        *(st.text(max_size=4), TEXTS, st.sampled_from(["", "sum", "livemax", "all", "odd"])),
        *(st.lists(st.sampled_from(["1.0", "2.0", "+Inf", "-1.0", "x"]), max_size=3), st.text(max_size=3), st.just("")),
    )
)
LINES = (
    RECORDS.map(lambda record: written(*record) if isinstance(record, (list, tuple)) else written(record))
    | JSON.map(lambda value: b"%08x %s\n" % (zlib.crc32(json.dumps(value).encode()), json.dumps(value).encode()))
    | st.binary(max_size=30).map(lambda data: data + b"\n")
    | st.binary(max_size=30)
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store in which all kinds of metrics have counted."""
    directory = tmp_path_factory.mktemp("sound") / "metrics"
    code = """
import pathlib, sys
from prometheus_client import Counter, Gauge, Histogram, Summary
from django_obs.metrics import adoption
from django_obs.metrics.store import Store
adoption.install(Store(lambda: pathlib.Path(sys.argv[1])))
counter = Counter("jobs", "Jobs.", ["kind"])
for kind in ("a", "b", "c"):
    counter.labels(kind).inc(3, exemplar={"trace_id": "1"})
counter.remove("b")
Gauge("level", "Level.", multiprocess_mode="max").set(5)
Histogram("seconds", "Seconds.", ["view"]).labels("index").observe(0.3)
Summary("bytes", "Bytes.").observe(7)
"""
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, timeout=60)
    # A column is mostly a hole.
    return {path.name: path.read_bytes().rstrip(b"\0") for path in directory.iterdir()}


@st.composite
def damages(draw: st.DrawFn) -> dict[str, tuple[int, int, bytes]]:
    """For some files: where bytes are cut out, how many, and what comes in their place."""
    names = st.sampled_from(["index", "lane-0000", "archive", "removed", "exemplars-0000", "lane-0001", "lane-x"])
    place = st.integers(0, 400) | st.integers(4000, 4300) | st.just(1 << 20)
    damage = st.tuples(place, st.integers(0, 300) | st.just(1 << 20), st.binary(max_size=300))
    return draw(st.dictionaries(names, damage, max_size=4))


def spoil(directory: Path, sound: dict[str, bytes], damages: dict[str, tuple[int, int, bytes]], lines: bytes) -> None:
    """Write the files of a store, damaged."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    for name in sound.keys() | damages.keys():
        data = sound.get(name, b"")
        if name in damages:
            start, length, other = damages[name]
            data = data[:start] + other + data[start + length :]
        (directory / name).write_bytes(data + (lines if name == "index" else b""))


@shared
@example({}, [written("series", 0, HUGE, 1, ["x"], 0.0)])
@example({}, [b"\n" * 100_000])
@example({}, [written("metric", 9, "histogram", "h", [], "", [], "", ""), written("series", 9, 50, 3, [], 0.0)])
@example({}, [b"%08x " % zlib.crc32(b"[" * 9999) + b"[" * 9999 + b"\n"])
@example({"lane-0000": (8, 8, b"\xff" * 8)}, [])
@example({"removed": (0, 4, b"\xff" * 4)}, [])
@given(damages(), st.lists(LINES, max_size=6))
def test_any_damage_to_the_store_costs_what_it_hits_and_no_more(
    tmp_path: Path, sound: dict[str, bytes], damages: dict[str, tuple[int, int, bytes]], lines: list[bytes]
) -> None:
    directory = tmp_path / "metrics"
    spoil(directory, sound, damages, b"".join(lines))
    scraper = Scraper(lambda: directory)
    page = scraper.read()
    list(page.collect())
    scraper.lanes()
    scraper.exemplars()
    store = Store(lambda: directory, 1000)
    try:
        if store.open() and store._index is not None:
            wanted = Request(Definition("counter", "fresh", ("kind",)), "Fresh.", "", ("new",))
            store._index.place([wanted], math.inf, 1000)
        store.tend()
        text = scraper.text()
    finally:
        store.close()

    # In cells: a quarter of a million is what is read at least, be the index what it may.
    assert len(page.totals) <= 1 << 18
    assert len(page.text()) < 100_000
    assert len(text) < 100_000


@shared
@example([b""] * 1000, b"")
@given(st.lists(st.binary(max_size=300), max_size=20), st.binary(max_size=100))
def test_any_garbage_in_the_index_leaves_what_is_sound_and_room_for_more(
    tmp_path: Path, sound: dict[str, bytes], garbage: list[bytes], torn: bytes
) -> None:
    directory = tmp_path / "metrics"
    spoil(directory, sound, {}, b"".join(line + b"\n" for line in garbage) + torn)
    text = Scraper(lambda: directory).text()
    store = Store(lambda: directory)
    try:
        assert store.open()
        assert store._index is not None
        wanted = Request(Definition("counter", "fresh", ("kind",)), "Fresh.", "", ("new",))
        (place,) = store._index.place([wanted], math.inf, 100_000)
    finally:
        store.close()

    assert 'jobs_total{kind="a"} 3.0' in text
    assert 'seconds_count{view="index"} 1.0' in text
    assert place is not None
    assert 'fresh_total{kind="new"} 0.0' in Scraper(lambda: directory).text()


# -- The environment ---------------------------------------------------------------------------------------------------

VARIABLES = [
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
    "OTEL_PYTHON_DJANGO_TRACED_REQUEST_ATTRS",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",
]
WORTH = st.text(max_size=30) | st.sampled_from(
    ["9" * 5000, "1" + "0" * 400, "²", "(", "*", "a=b,c=%zz", "[a-", "-1", "0", "1e9"]
)


@shared
@given(environ=st.fixed_dictionaries({}, optional=dict.fromkeys(VARIABLES, WORTH)))
def test_any_standard_variable_is_used_or_reported(environ: dict[str, str]) -> None:
    attributes = resource_attributes("shop", environ)
    assert attributes["service.name"] == "shop"
    limits = SpanLimits.from_environment(environ)
    assert limits.attributes is None or limits.attributes >= 0
    RequestOptions.from_environment(environ).is_excluded("http://testserver/")
    pipeline = TracePipeline(TraceSettings(), service_name="shop", worker=Worker("fuzz"), environ=environ)
    (job,) = pipeline.worker.jobs
    # What a lock can wait for.
    assert 0 < job.seconds <= threading.TIMEOUT_MAX
    assert pipeline.exporter.batch_spans > 0


# -- The collector -----------------------------------------------------------------------------------------------------

ANSWERS = st.builds(
    lambda status, name, value, body: (
        b"HTTP/1.1 %s X\r\n%s: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (status, name, value, len(body), body)
    ),
    st.sampled_from([b"200", b"204", b"301", b"400", b"429", b"503", b"999", b"0", b"-1", b"abc"]),
    st.sampled_from([b"Retry-After", b"Location", b"Content-Encoding", b"Content-Type", b"Transfer-Encoding", b"X"]),
    st.sampled_from(
        [b"", b"-1", b"9" * 30, b"nan", b"inf", b"Wed, 21 Oct 9999 07:28:00 GMT", b"gzip", b"chunked", b"\xff"]
    )
    | st.binary(max_size=20).filter(lambda value: b"\n" not in value and b"\r" not in value),
    st.binary(max_size=40),
) | st.binary(max_size=100)


@settings(deadline=None, max_examples=max(20, settings().max_examples // 10))
@given(ANSWERS)
def test_any_answer_of_a_collector_delivers_or_loses_the_batch_in_time(answer: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with socket_server(behave) as port:
        transport = HTTPTransport("traces", f"http://127.0.0.1:{port}/v1/traces", {})
        outcome = transport.send(Batch(1, b""), 5.0, retry=False)
    assert isinstance(outcome.delivered, bool)
    assert not outcome.delivered or b" 20" in answer

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from django_obs.server.listener import MAX_CHUNKS
from django_obs.server.receiver import BODY_BYTES, JSON, PROTOBUF, UNZIPPED_BYTES
from django_obs.server.recent import Recent
from tests.server.conftest import Client, serving
from tests.server.otlp import logs, record, span, traces, traces_request
from tests.server.test_app import Port

OTLP = {"CONTENT_TYPE": PROTOBUF}


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Port:
    return Port(tmp_path_factory.mktemp("fuzzed"))


def recent(port: Port) -> Recent:
    return port.application.recent


def test_spans_and_lines_are_taken(port: Port) -> None:
    answer = port("POST", "/v1/traces", traces(span(1, 1)), **OTLP, HTTP_DJANGO_OBS_ROLE="web")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"", PROTOBUF)
    answer = port("POST", "/v1/logs", gzip.compress(logs(record(trace=1))), **OTLP, HTTP_CONTENT_ENCODING="gzip")
    assert (answer.status, answer.body) == (200, b"")

    (summary,) = recent(port).traces()
    assert (summary.role, summary.line_count) == ("web", 1)


def test_spans_in_json_are_taken(port: Port) -> None:
    # As the exporters of JavaScript send them.
    body = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "front"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "js"},
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "EEE19B7EC3C1B174",
                                "name": "click",
                                "kind": 1,
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": "1544712661000000000",
                                "unknown": 1,
                            }
                        ],
                    }
                ],
            }
        ]
    }
    answer = port("POST", "/v1/traces", json.dumps(body).encode(), CONTENT_TYPE="application/json; charset=utf-8")
    assert (answer.status, json.loads(answer.body), answer.headers["Content-Type"]) == (200, {}, JSON)
    trace = recent(port).trace("5b8efff798038103d269b633813fc60c")
    assert trace is not None
    assert trace.spans[0].span_id == "eee19b7ec3c1b174"
    assert (trace.summary.name, trace.summary.service, trace.summary.duration_ns) == ("click", "front", 10**9)


def test_refused_spans_are_told(port: Port) -> None:
    answer = port("POST", "/v1/traces", traces(span(0, 1), span(1, 1)), **OTLP)
    assert answer.status == 200
    assert ExportTraceServiceResponse.FromString(answer.body).partial_success.rejected_spans == 1
    body = json_format.MessageToJson(traces_request(span(1, 1)))
    body = body.replace('"traceId": "', '"traceId": "00", "x": "').replace('"spanId": "', '"spanId": "00", "y": "')
    answer = port("POST", "/v1/traces", body.encode(), CONTENT_TYPE=JSON)
    assert json.loads(answer.body)["partialSuccess"]["rejectedSpans"] == "1"


@pytest.mark.parametrize(
    ("body", "environ", "status"),
    [
        (b"\xff", OTLP, 400),
        (b"{", {"CONTENT_TYPE": JSON}, 400),
        (b"[]", {"CONTENT_TYPE": JSON}, 400),
        (b"[" * 100_000, {"CONTENT_TYPE": JSON}, 400),
        (b'{"resourceSpans": {"a": 1}}', {"CONTENT_TYPE": JSON}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', {"CONTENT_TYPE": JSON}, 400),
        (b"", {"CONTENT_TYPE": "text/plain"}, 415),
        (b"", {}, 415),
        (b"", {**OTLP, "HTTP_CONTENT_ENCODING": "zstd"}, 415),
        (b"not gzip", {**OTLP, "HTTP_CONTENT_ENCODING": "gzip"}, 400),
        (gzip.compress(b"")[:-4], {**OTLP, "HTTP_CONTENT_ENCODING": "gzip"}, 400),
        (b"a" * (BODY_BYTES + 1), OTLP, 413),
        (gzip.compress(b"\0" * (UNZIPPED_BYTES + 1)), {**OTLP, "HTTP_CONTENT_ENCODING": "gzip"}, 413),
        (gzip.compress(b"\0" * (UNZIPPED_BYTES // 2)) * 3, {**OTLP, "HTTP_CONTENT_ENCODING": "gzip"}, 413),
        (b"", {**OTLP, "CONTENT_LENGTH": "x"}, 400),
        (gzip.compress(b"") * 100, {**OTLP, "HTTP_CONTENT_ENCODING": "gzip"}, 413),
    ],
    ids=range(16),
)
def test_what_is_not_taken_is_answered_as_specified(port: Port, body: bytes, environ: Any, status: int) -> None:
    answer = port("POST", "/v1/traces", body, **environ)
    assert answer.status == status
    if environ.get("CONTENT_TYPE") == JSON:
        assert json.loads(answer.body)["message"]
    else:
        assert Status.FromString(answer.body).message
    assert recent(port).stats()["spans"] == 0


def test_gzip_in_parts_is_one_body(port: Port) -> None:
    body = traces(span(1, 1))
    answer = port(
        "POST", "/v1/traces", gzip.compress(body[:5]) + gzip.compress(body[5:]), **OTLP, HTTP_CONTENT_ENCODING="gzip"
    )
    assert answer.status == 200
    assert recent(port).stats()["spans"] == 1


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"HTTP_HOST": "evil.example:9000"},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_X_FORWARDED_FOR": "192.0.2.1"},
        {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": "Bearer guess"},
        {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": "Bearer \xe9"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs"])
def test_stranger_is_kept_out(port: Port, environ: dict[str, str], path: str) -> None:
    answer = port("POST", path, b"", **OTLP, **environ)
    assert answer.status == 403
    assert Status.FromString(answer.body).message


def test_token_opens_what_a_password_does(tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    port = Port(tmp_path, f"basic_auth_users: {{prometheus: {hashed}}}")
    assert port("POST", "/v1/traces", b"", **OTLP).status == 401
    ours = {"HTTP_AUTHORIZATION": f"Bearer {port.application.token}"}
    assert port("POST", "/v1/traces", b"", **OTLP, **ours).status == 200
    assert port("GET", "/metrics", **ours).status == 200
    # A browser would not know it, but whoever taught it to one is not our friend.
    assert port("POST", "/v1/traces", b"", **OTLP, **ours, HTTP_ORIGIN="http://evil.example").status == 403


def test_any_other_method_is_told_the_right_one(port: Port) -> None:
    answer = port("GET", "/v1/traces")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@settings(deadline=None)
@given(
    st.binary(max_size=300) | st.binary(max_size=300).map(gzip.compress) | st.binary(max_size=50).map(zlib.compress),
    st.sampled_from([PROTOBUF, JSON, "text/plain"]),
    st.sampled_from(["gzip", "identity", "deflate"]),
    st.sampled_from(["/v1/traces", "/v1/logs"]),
)
def test_no_bytes_break_it(fuzzed: Port, body: bytes, kind: str, encoding: str, path: str) -> None:
    answer = fuzzed("POST", path, body, CONTENT_TYPE=kind, HTTP_CONTENT_ENCODING=encoding)
    assert answer.status in (200, 400, 415)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["ff", "00" * 16]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans",
                    "scopeSpans",
                    "spans",
                    "traceId",
                    "spanId",
                    "attributes",
                    "key",
                    "value",
                    "stringValue",
                    "intValue",
                    "kind",
                    "status",
                    "code",
                    "resourceLogs",
                    "scopeLogs",
                    "logRecords",
                    "body",
                    "timeUnixNano",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON_VALUES, st.sampled_from(["/v1/traces", "/v1/logs"]))
def test_no_json_breaks_it(fuzzed: Port, content: Any, path: str) -> None:
    answer = fuzzed("POST", path, json.dumps(content).encode(), CONTENT_TYPE=JSON)
    assert answer.status in (200, 400)


def test_large_body_comes_through_the_listener_and_a_larger_one_does_not(port: Port) -> None:
    application = port.application
    body = traces(*(span(1, number, text="x" * 1000) for number in range(1, 1000)))
    with serving(application, body_limit=application.body_limit) as listener:
        client = http.client.HTTPConnection(listener.address, listener.port, timeout=20)
        client.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
        assert client.getresponse().read() == b""
        client.request("PUT", "/filter", b"a" * 100_000)
        assert client.getresponse().status == 413
        client.close()
        client.request("POST", "/v1/traces", b"a" * 100_000, {"Content-Type": PROTOBUF, "Host": "evil.example"})
        assert client.getresponse().status == 413
        client.close()
    assert recent(port).stats()["spans"] == 999


def test_official_exporters_are_served(port: Port) -> None:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    application = port.application
    with serving(application, body_limit=application.body_limit) as listener:
        endpoint = f"http://127.0.0.1:{listener.port}/v1/traces"
        provider = TracerProvider()
        provider.add_span_processor(
            SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint, compression=Compression.Gzip))
        )
        with provider.get_tracer("other").start_as_current_span("outer"):
            pass
        provider.shutdown()
    (summary,) = recent(port).traces()
    assert (summary.name, summary.complete) == ("outer", True)


def test_body_in_chunks_is_taken(port: Port) -> None:
    # As the exporters of Java and JavaScript send what they zip.
    application = port.application
    body = gzip.compress(traces(*(span(1, number, text="x" * 1000) for number in range(1, 100))))
    headers = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
    with serving(application, body_limit=application.body_limit) as listener:
        client = http.client.HTTPConnection(listener.address, listener.port, timeout=20)
        for _ in range(2):
            pieces = (body[at : at + 700] for at in range(0, len(body), 700))
            client.request("POST", "/v1/traces", pieces, headers, encode_chunked=True)
            assert client.getresponse().read() == b""
        client.close()
    assert recent(port).stats()["spans"] == 99


CHUNKED = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: "


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (CHUNKED + b"chunked\r\n\r\n0\r\n\r\n", 200),
        (CHUNKED + b"Chunked\r\n\r\n0;x=y\r\nTrailer: x\r\n\r\n", 200),
        (CHUNKED + b"chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400),
        (CHUNKED + b"chunked\r\n\r\n-1\r\n\r\n", 400),
        (CHUNKED + b"chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", 400),
        (CHUNKED + b"chunked\r\n\r\n" + b"0" * 2000 + b"\r\n\r\n", 400),
        (CHUNKED + b"chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 20 + b"\r\n", 400),
        (CHUNKED + b"chunked\r\n\r\nffffffff\r\n", 413),
        (CHUNKED + b"chunked\r\n\r\n" + b"1\r\na\r\n" * MAX_CHUNKS, 413),
        (CHUNKED + b"gzip, chunked\r\n\r\n0\r\n\r\n", 411),
        (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"chunked\r\n\r\n0\r\n\r\n", 411),
        (CHUNKED.replace(b"/v1/traces", b"/filter") + b"chunked\r\n\r\n0\r\n\r\n", 411),
        (CHUNKED.replace(b"localhost", b"evil.example") + b"chunked\r\n\r\n0\r\n\r\n", 411),
    ],
    ids=range(13),
)
def test_chunks_are_read_as_they_are_specified(port: Port, sent: bytes, status: int) -> None:
    application = port.application
    with serving(application, body_limit=application.body_limit) as listener:
        client = Client(listener)
        client.send(sent.replace(b"Host", b"Connection: close\r\nHost"))
        assert int(client.read_all().split(b" ", 2)[1]) == status
        client.close()

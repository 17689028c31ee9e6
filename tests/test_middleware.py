from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest
from django.test import AsyncClient, Client, RequestFactory
from django.utils.functional import SimpleLazyObject
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator

from django_obs.context import current
from django_obs.lifecycle import guard
from django_obs.middleware import waited_ns
from django_obs.semconv import loaded_user_id
from django_obs.testing import CapturedSpan, _Sink, capture_logs, capture_spans, sample_value

pytestmark = pytest.mark.django_db


class Seen:
    """What the signals saw of a block of code."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.spans: list[CapturedSpan] = []
        self.body = b""

    @property
    def access(self) -> dict[str, Any]:
        (line,) = [line for line in self.lines if line["logger"] == "django_obs.access"]
        return line

    @property
    def server(self) -> CapturedSpan:
        (span,) = [span for span in self.spans if span.kind == "server"]
        return span


def get(path: str, **headers: str) -> tuple[Any, Seen]:
    seen = Seen()
    with capture_spans() as seen.spans, capture_logs() as seen.lines:
        response = Client(raise_request_exception=False, headers=headers).get(path)
        seen.body = b"".join(response) if response.streaming else response.content
        response.close()
    return response, seen


def test_request_joins_line_span_and_header_by_the_trace_id() -> None:
    response, seen = get("/items/7/")

    trace_id = seen.server.trace_id
    assert response.headers["X-Trace-Id"] == trace_id
    assert {line["trace_id"] for line in seen.lines} == {trace_id}
    assert {line["span_id"] for line in seen.lines} == {seen.server.span_id}


def test_access_line_tells_all_that_is_known() -> None:
    _, seen = get("/queries/")

    line = seen.access
    assert line["message"] == "GET /queries/ 200"
    assert line["level"] == "INFO"
    assert line["route"] == "/queries/"
    assert (line["db_queries"], line["cache_hits"], line["cache_misses"]) == (2, 1, 1)
    assert line["response_bytes"] > 5
    assert line["client"] == "127.0.0.1"
    assert line["duration_ms"] > 0


def test_bound_and_extra_fields_are_on_the_line() -> None:
    _, seen = get("/items/7/")

    (line,) = [line for line in seen.lines if line["logger"] == "shop"]
    assert (line["message"], line["colour"], line["item"]) == ("looked at 7", "red", 7)
    assert seen.access["item"] == 7


def test_server_span_follows_the_stable_conventions() -> None:
    _, seen = get("/items/7/?token=abc&page=2", **{"User-Agent": "curl/8"})

    span = seen.server
    assert span.name == "GET /items/<int:pk>/"
    expected = {
        "http.request.method": "GET",
        "http.route": "/items/<int:pk>/",
        "http.response.status_code": 200,
        "url.path": "/items/7/",
        "url.query": "token=REDACTED&page=2",
        "url.scheme": "http",
        "server.address": "testserver",
        "server.port": 80,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
    }
    assert expected.items() <= span.attributes.items()
    assert span.status == "unset"


@pytest.mark.parametrize("query", ["", "look", "set", "look&set"])
def test_attributes_are_the_same_whoever_looks_at_them_and_when(query: str) -> None:
    response, seen = get(f"/describe/?{query}", **{"User-Agent": "curl/8"})

    attributes = seen.server.attributes
    path = "/mine/" if "set" in query else "/describe/"
    assert attributes["url.path"] == path
    assert attributes.get("shop.cart") == (7 if "set" in query else None)
    # What became of the request is ours to say.
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.route"] == "/describe/"
    assert attributes["user_agent.original"] == "curl/8"
    if "look" in query:
        looked = response.json()
        assert looked["url.path"] == "/describe/"
        assert {name: attributes[name] for name in looked if name != "url.path"} == {
            name: value for name, value in looked.items() if name != "url.path"
        }


def test_client_that_the_project_has_found_out_is_on_the_line() -> None:
    _, seen = get("/describe/?proxy")

    assert seen.access["client"] == "203.0.113.7"
    assert seen.server.attributes["client.address"] == "127.0.0.1"


def test_sampler_of_somebody_else_sees_what_is_known_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Sampler:
        def sampled(self, parent: Any, trace_id: int, name: str, attributes: dict[str, Any]) -> bool:
            seen.append(dict(attributes))
            return True

    monkeypatch.setattr(trace.get_tracer_provider(), "sampler", Sampler())
    get("/items/7/")

    assert seen[0]["url.path"] == "/items/7/"


def test_span_of_a_request_waits_with_all_that_is_to_be_said_of_it() -> None:
    """As in a server, where the worker puts the attributes together and encodes them."""
    _, at_once = get("/queries/", **{"User-Agent": "curl/8"})
    provider: Any = trace.get_tracer_provider()
    held = provider.held
    guard.worker.ensure()
    seen: list[CapturedSpan] = []
    before = provider.sink, held.sink
    provider.sink = held.sink = _Sink(seen)
    try:
        Client(headers={"User-Agent": "curl/8"}).get("/queries/")
        guard.worker.flush(60)
    finally:
        provider.sink, held.sink = before

    def said(spans: list[CapturedSpan]) -> list[Any]:
        return [
            (span.name, {**span.attributes, "django_obs.db.duration": 0, "http.response.body.size": 0})
            for span in spans
        ]

    assert said(seen) == said(at_once.spans)


def test_queries_and_cache_calls_are_children_in_order() -> None:
    _, seen = get("/queries/")

    children = [span for span in seen.spans if span is not seen.server]
    assert [span.name for span in children] == [
        "SELECT django_content_type",
        "SELECT django_content_type",
        "cache get",
        "cache set",
        "cache get",
    ]
    assert {span.parent_id for span in children} == {seen.server.span_id}
    assert [span.start for span in children] == sorted(span.start for span in children)
    print([(s.start - seen.server.start, s.end - seen.server.end) for s in children])
    assert all(seen.server.start <= span.start <= span.end <= seen.server.end for span in children)
    assert children[0].attributes["db.system.name"] == "sqlite"
    assert children[0].attributes["db.query.text"].startswith("SELECT COUNT(*)")


def test_traceparent_of_the_caller_is_continued() -> None:
    _, seen = get("/", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

    assert seen.server.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert seen.server.parent_id == "b7ad6b7169203331"


def test_failing_view_is_one_error_line_with_its_exception_and_an_error_span() -> None:
    response, seen = get("/fail/")

    assert response.status_code == 500
    assert seen.access["level"] == "ERROR"
    assert seen.access["exception"]["type"] == "ValueError"
    assert len([line for line in seen.lines if "exception" in line]) == 1
    assert seen.server.status == "error"
    assert seen.server.attributes["error.type"] == "ValueError"
    assert [name for name, _ in seen.server.events] == ["exception"]


def test_forbidden_page_is_a_warning_and_no_error_span() -> None:
    _, seen = get("/forbid/")

    assert seen.access["level"] == "WARNING"
    assert seen.server.status == "unset"
    assert seen.server.attributes["http.response.status_code"] == 403


def test_request_without_route_is_named_by_its_method() -> None:
    _, seen = get("/nowhere/")

    assert seen.server.name == "GET"
    assert "http.route" not in seen.server.attributes
    assert seen.access["route"] is None


def test_bad_host_is_still_a_span(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["example.org"]
    response, seen = get("/fail/", host="evil.example")

    assert response.status_code in (400, 500)
    assert seen.server.attributes["server.address"] == "evil.example"


def test_excluded_path_leaves_nothing_not_even_its_queries() -> None:
    before = sample_value("django_http_requests_before_middlewares_total")
    response, seen = get("/health/")

    assert response.status_code == 200
    assert seen.lines == []
    assert seen.spans == []
    assert sample_value("django_http_requests_before_middlewares_total") == before


def test_missing_page_that_is_excluded_is_not_logged_by_django_either() -> None:
    response, seen = get("/favicon.ico")

    assert response.status_code == 404
    assert seen.lines == []


def test_stream_is_one_span_to_its_last_byte() -> None:
    _, seen = get("/stream/")

    assert seen.body == b"one two"
    assert seen.access["response_bytes"] == 7
    (line,) = [line for line in seen.lines if line["logger"] == "shop"]
    assert line["span_id"] == seen.server.span_id


def test_async_stream_under_wsgi_leaves_no_context_behind() -> None:
    with pytest.warns(Warning, match="asynchronous iterator"):
        _, seen = get("/async-stream/")

    assert seen.body == b"one two"
    assert current.get() is None
    assert not trace.get_current_span().get_span_context().is_valid
    assert {line["span_id"] for line in seen.lines} == {seen.server.span_id}


@pytest.mark.parametrize("path", ["/stream/", "/file/", "/"])
def test_access_line_has_its_ids_whoever_else_listens(path: str) -> None:
    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pass

    other = Other()
    logging.getLogger().addHandler(other)
    try:
        _, seen = get(path)
    finally:
        logging.getLogger().removeHandler(other)

    assert (seen.access["trace_id"], seen.access["span_id"]) == (seen.server.trace_id, seen.server.span_id)
    assert seen.access["request_id"] == seen.server.trace_id


def test_user_that_a_view_has_set_is_noted() -> None:
    _, seen = get("/as-user/")

    assert seen.access["user_id"] == "42"
    assert seen.server.attributes["user.id"] == "42"


def test_user_that_nobody_asked_for_is_not_loaded() -> None:
    request = HttpRequest()
    request.user = SimpleLazyObject(lambda: pytest.fail("loaded"))  # type: ignore[assignment]

    assert loaded_user_id(request) is None

    request.user = SimpleLazyObject(lambda: User(pk=7))  # type: ignore[assignment]
    assert request.user.is_active
    assert loaded_user_id(request) == "7"


def test_stream_that_breaks_is_an_error() -> None:
    seen = Seen()
    with capture_spans() as seen.spans, capture_logs() as seen.lines:
        response = Client().get("/broken-stream/")
        with pytest.raises(ValueError, match="broken in the stream"):
            list(response.streaming_content)
        response.close()

    assert seen.server.status == "error"
    assert seen.access["exception"]["message"] == "broken in the stream"


def test_stream_that_nobody_reads_is_closed() -> None:
    seen = Seen()
    with capture_spans() as seen.spans, capture_logs() as seen.lines:
        Client().get("/stream/").close()

    assert seen.server.attributes["http.response.status_code"] == 200


def test_file_can_still_be_sent_by_the_server() -> None:
    sent: list[object] = []

    class FileWrapper:
        def __init__(self, file: Any, block_size: int) -> None:
            sent.append(file)
            self.close = file.close

    environ = RequestFactory().get("/file/").environ
    environ["wsgi.file_wrapper"] = FileWrapper
    with capture_spans() as spans, capture_logs():
        answer = get_wsgi_application()(environ, lambda status, headers: None)
        answer.close()

    assert len(sent) == 1
    assert [span.kind for span in spans] == ["server"]


def test_request_id_of_the_caller_is_kept_if_it_is_harmless() -> None:
    _, seen = get("/", **{"X-Request-Id": "01HZX-abc"})
    assert seen.access["request_id"] == "01HZX-abc"

    _, seen = get("/", **{"X-Request-Id": 'x"\n{'})
    assert seen.access["request_id"] == seen.server.trace_id


def test_request_leaves_no_context_behind() -> None:
    get("/stream/")
    get("/fail/")

    assert current.get() is None
    assert not trace.get_current_span().get_span_context().is_valid


def test_metrics_are_counted_once() -> None:
    labels = {"status": "500", "view": "tests.urls.fail", "method": "GET"}
    before = sample_value("django_http_responses_total_by_status_view_method_total", labels) or 0
    latencies = {"view": "tests.urls.fail", "method": "GET"}
    name = "django_http_requests_latency_seconds_by_view_method_count"
    observed = sample_value(name, latencies) or 0

    get("/fail/")

    assert sample_value("django_http_responses_total_by_status_view_method_total", labels) == before + 1
    assert sample_value(name, latencies) == observed + 1


@pytest.mark.parametrize(
    ("header", "roughly"),
    [("t={:.3f}", 1e9), ("{:.0f}000", 1e9), ("t={:.0f}000000", 1e9), ("{:.3f}", 1e9)],
)
def test_queue_time_is_read_in_all_units(header: str, roughly: float) -> None:
    import time

    waited = waited_ns(header.format(time.time() - 2))

    assert waited is not None
    assert roughly <= waited < 10 * roughly


@pytest.mark.parametrize("header", ["", "t=", "yesterday", "1", "t=9" * 9, "1000000000", "٣" * 12])
def test_queue_time_that_makes_no_sense_is_ignored(header: str) -> None:
    assert not waited_ns(header)


async def get_async(path: str) -> tuple[Any, Seen]:
    seen = Seen()
    with capture_spans() as seen.spans, capture_logs() as seen.lines:
        response = await AsyncClient(raise_request_exception=False).get(path)
        seen.body = b"".join([part async for part in response]) if response.streaming else response.content
        response.close()
    return response, seen


@pytest.mark.django_db(transaction=True)
def test_async_view_is_one_span_with_its_query_and_line() -> None:
    response, seen = asyncio.run(get_async("/async/"))

    assert response.status_code == 200
    assert [span.name for span in seen.spans if span.kind == "client"] == ["SELECT django_content_type"]
    assert {span.trace_id for span in seen.spans} == {seen.server.trace_id}
    # In development mode, asyncio logs what has held up its loop.
    lines = [line for line in seen.lines if line["logger"] != "asyncio"]
    assert {line["trace_id"] for line in lines} == {seen.server.trace_id}


def test_async_stream_is_one_span_to_its_last_byte() -> None:
    _, seen = asyncio.run(get_async("/async-stream/"))

    assert seen.body == b"one two"
    assert seen.access["response_bytes"] == 7
    (line,) = [line for line in seen.lines if line["logger"] == "shop"]
    assert line["span_id"] == seen.server.span_id


def test_client_that_goes_away_ends_span_and_line() -> None:
    async def disconnect() -> None:
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/async-forever/", "headers": []}
        server = ApplicationCommunicator(get_asgi_application(), scope)
        await server.send_input({"type": "http.request", "body": b""})
        for _ in range(10):
            await asyncio.sleep(0)
        await server.send_input({"type": "http.disconnect"})
        await server.wait(60)

    seen = Seen()
    with capture_spans() as seen.spans, capture_logs() as seen.lines:
        asyncio.run(disconnect())

    assert seen.access["status"] == 499
    assert seen.server.name == "GET /async-forever/"
    assert "http.response.status_code" not in seen.server.attributes


def test_span_lasts_as_long_as_the_access_line_says() -> None:
    _, seen = get("/items/7/")

    assert (seen.server.end - seen.server.start) / 1e6 == pytest.approx(seen.access["duration_ms"], abs=0.01)


class RaisingPropagator(TextMapPropagator):
    def extract(self, *arguments: Any, **keywords: Any) -> Any:
        raise ZeroDivisionError

    def inject(self, *arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError

    @property
    def fields(self) -> set[str]:
        return set()


def test_tracing_that_fails_leaves_line_and_sample_whole() -> None:
    provider: Any = trace.get_tracer_provider()
    usual, propagator = provider.default_propagators, propagate.get_global_textmap()
    before = sample_value("django_http_requests_before_middlewares_total") or 0
    try:
        provider.default_propagators = False
        propagate.set_global_textmap(RaisingPropagator())
        response, seen = get("/items/7/")
    finally:
        provider.default_propagators = usual
        propagate.set_global_textmap(propagator)

    assert response.status_code == 200
    assert seen.access["request_id"]
    assert sample_value("django_http_requests_before_middlewares_total") == before + 1

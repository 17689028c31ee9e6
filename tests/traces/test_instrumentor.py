from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as project
from django.db import connection
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings
from opentelemetry.instrumentation.django import DjangoInstrumentor as OfficialInstrumentor
from opentelemetry.sdk.trace import TracerProvider as SDKProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_obs.testing import capture_spans
from django_obs.traces import options
from django_obs.traces.instrumentor import MIDDLEWARE, DjangoInstrumentor
from django_obs.traces.options import NOTHING, RequestOptions

pytestmark = pytest.mark.django_db


@pytest.fixture
def instrumentor() -> Iterator[DjangoInstrumentor]:
    with override_settings(MIDDLEWARE=list(project.MIDDLEWARE)):
        found = DjangoInstrumentor()
        yield found
        if found.is_instrumented_by_opentelemetry:
            found.uninstrument()


def test_instrumentor_is_the_official_one_but_for_the_middleware(instrumentor: DjangoInstrumentor) -> None:
    assert isinstance(instrumentor, OfficialInstrumentor)
    assert instrumentor is not OfficialInstrumentor()
    assert DjangoInstrumentor() is instrumentor


def test_middleware_is_placed_once_and_stays_where_the_app_had_put_it(instrumentor: DjangoInstrumentor) -> None:
    assert list(project.MIDDLEWARE).count(MIDDLEWARE) == 1
    instrumentor.instrument()
    assert list(project.MIDDLEWARE).count(MIDDLEWARE) == 1
    instrumentor.uninstrument()
    assert list(project.MIDDLEWARE).count(MIDDLEWARE) == 1


def test_hooks_get_span_request_and_response(instrumentor: DjangoInstrumentor) -> None:
    def request_hook(span: Any, request: Any) -> None:
        span.set_attribute("tenant", request.headers["X-Tenant"])

    def response_hook(span: Any, request: Any, response: Any) -> None:
        span.update_name("named by the hook")
        response["X-Hooked"] = "yes"

    instrumentor.instrument(request_hook=request_hook, response_hook=response_hook)
    with capture_spans() as spans:
        response = Client(headers={"X-Tenant": "a"}).get("/items/7/")
    (server,) = [span for span in spans if span.kind == "server"]
    assert server.attributes["tenant"] == "a"
    assert server.name == "named by the hook"
    assert response["X-Hooked"] == "yes"


def test_hook_that_fails_does_not_fail_the_request(instrumentor: DjangoInstrumentor) -> None:
    def hook(*arguments: Any) -> None:
        raise RuntimeError("hook")

    instrumentor.instrument(request_hook=hook, response_hook=hook)
    with capture_spans() as spans:
        response = Client().get("/items/7/")
    assert response.status_code == 200
    assert len([span for span in spans if span.kind == "server"]) == 1


def test_excluded_url_makes_no_span_nor_do_its_queries(instrumentor: DjangoInstrumentor) -> None:
    instrumentor.instrument(excluded_urls="testserver/queries,other")
    with capture_spans() as spans:
        Client().get("/queries/")
        assert spans == []
        Client().get("/items/7/")
    assert [span.kind for span in spans] == ["server"]


def test_headers_are_captured_and_sanitized(instrumentor: DjangoInstrumentor, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"
    monkeypatch.setenv(prefix + "SERVER_REQUEST", "x-tenant, X-Secret.*")
    monkeypatch.setenv(prefix + "SERVER_RESPONSE", "content-.*")
    monkeypatch.setenv(prefix + "SANITIZE_FIELDS", ".*secret.*")
    instrumentor.instrument()
    with capture_spans() as spans:
        Client(headers={"X-Tenant": "a", "X-Secret-Key": "k", "X-Other": "o"}).get("/items/7/")
    attributes = spans[-1].attributes
    assert attributes["http.request.header.x_tenant"] == ["a"]
    assert attributes["http.request.header.x_secret_key"] == ["[REDACTED]"]
    assert "http.request.header.x_other" not in attributes
    assert attributes["http.response.header.content_type"][0].startswith("text/html")


def test_given_provider_makes_the_spans(instrumentor: DjangoInstrumentor) -> None:
    exporter = InMemorySpanExporter()
    provider = SDKProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    with capture_spans() as spans:
        Client().get("/items/7/")
    assert spans == []
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /items/<int:pk>/"]


def test_nothing_is_in_force_without_choice(instrumentor: DjangoInstrumentor) -> None:
    instrumentor.instrument(request_hook=print)
    assert options.in_force is not None
    instrumentor.uninstrument()
    assert options.in_force is None
    assert not NOTHING


def test_options_are_read_from_the_environment() -> None:
    found = RequestOptions.from_environment(
        {"OTEL_PYTHON_EXCLUDED_URLS": "healthz , ^http://a/", "OTEL_PYTHON_DJANGO_TRACED_REQUEST_ATTRS": "path_info,x"}
    )
    assert found
    assert found.is_excluded("http://host/healthz/")
    assert found.is_excluded("http://a/b")
    assert not found.is_excluded("http://b/")
    request = RequestFactory().get("/some/")
    assert found.of_request(request) == {"path_info": "/some/"}
    assert found.of_response(HttpResponse()) == {}


def test_variable_of_django_goes_before_that_of_all() -> None:
    found = RequestOptions.from_environment({"OTEL_PYTHON_EXCLUDED_URLS": "a", "OTEL_PYTHON_DJANGO_EXCLUDED_URLS": "b"})
    assert found.excluded_urls == re.compile("b")


def test_sqlcommenter_writes_the_trace_of_the_request_into_its_queries(instrumentor: DjangoInstrumentor) -> None:
    instrumentor.instrument(is_sql_commentor_enabled=True)
    connection.ensure_connection()
    executed: list[str] = []
    connection.connection.set_trace_callback(executed.append)
    try:
        with capture_spans() as spans:
            Client().get("/queries/")
    finally:
        connection.connection.set_trace_callback(None)

    (server,) = [span for span in spans if span.kind == "server"]
    selects = [statement for statement in executed if statement.startswith("SELECT")]
    assert len(selects) == 2
    assert all(f"traceparent='00-{server.trace_id}-" in statement for statement in selects)
    assert all("/*" not in str(span.attributes.get("db.query.text")) for span in spans)

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse
from django.test import RequestFactory
from prometheus_client import CollectorRegistry

import django_obs
from django_obs.context import Scope
from django_obs.metrics.catalogue import DECLARATIONS, Catalogue
from django_obs.metrics.instruments import (
    TALLIES,
    CacheInstruments,
    DatabaseInstruments,
    LaneTally,
    RequestInstruments,
    RequestTally,
)

BUCKETS = (0.1, 1.0, 10.0)


class Recorder:
    """Request instruments in a registry of their own, and what they have recorded."""

    def __init__(self, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.catalogue = Catalogue(latency_buckets=BUCKETS, registry=self.registry)
        self.instruments = RequestInstruments(self.catalogue, **options)

    def begin(self, method: str = "GET", **headers: str) -> tuple[Scope, Any]:
        request = RequestFactory().generic(method, "/carts/7/", **headers)
        scope = Scope("request", started=0)
        scope.method = method
        scope.request = request
        scope.scheme = request.scheme
        self.instruments.request_started(scope)
        return scope, request

    def end(
        self, scope: Scope, request: Any, response: Any, *, view: str = "cart", seconds: float = 0.5, status: int = 0
    ) -> None:
        scope.ended = int(seconds * 1e9)
        scope.name = view
        scope.route = f"/{view}/" if view else None
        scope.status = status or response.status_code
        if response is not None and not response.streaming:
            scope.size = len(response.content)
        self.instruments.request_finished(scope, request, response)

    def request(self, response: Any = None, *, method: str = "GET", headers: Any = None, **end: Any) -> None:
        scope, request = self.begin(method, **(headers or {}))
        self.end(scope, request, HttpResponse("hello") if response is None else response, **end)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def sum(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_names_that_dashboards_query_are_there(recorder: Recorder) -> None:
    recorder.instruments.prepare()
    names = {name for name in recorder.registry._names_to_collectors if not name.endswith("_created")}
    assert {
        "django_http_responses_total_by_status_view_method_total",
        "django_http_requests_total_by_view_transport_method_total",
        "django_http_requests_latency_seconds_by_view_method_bucket",
        "django_http_exceptions_total_by_view_total",
        "django_http_exceptions_total_by_type_total",
        "django_http_responses_total_by_templatename_total",
        "django_http_requests_body_total_bytes_bucket",
        "http_server_request_duration_seconds_bucket",
        "http_server_active_requests",
    } <= names


def test_declarations_have_names_of_their_own() -> None:
    names = [declaration.name.removesuffix("_total") for declaration in DECLARATIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("sent", "django_name", "semconv_name"),
    [("GET", "GET", "GET"), ("PATCH", "PATCH", "PATCH"), ("FOO1", "<invalid method>", "_OTHER")],
)
def test_unknown_methods_share_one_name(recorder: Recorder, sent: str, django_name: str, semconv_name: str) -> None:
    recorder.request(method=sent)
    assert recorder.value("django_http_requests_total_by_method_total", method=django_name)
    assert recorder.sum("django_http_requests_latency_seconds_by_view_method_count", method=django_name)
    assert recorder.sum("http_server_request_duration_seconds_count", http_request_method=semconv_name)


def test_endless_variety_fills_no_table(recorder: Recorder) -> None:
    for number in range(TALLIES + 10):
        recorder.request(method=f"FOO{number}", status=200)
        response = HttpResponse("", content_type=f"text/x-{number}")
        recorder.request(response, status=200)
    assert len(recorder.instruments._entries) < 5
    assert len(recorder.instruments._tallies) <= TALLIES
    assert recorder.value("django_http_responses_before_middlewares_total") == 2 * (TALLIES + 10)
    assert recorder.value("django_http_requests_total_by_method_total", method="<invalid method>") == TALLIES + 10


def test_request_is_active_until_it_ends(recorder: Recorder) -> None:
    scope, request = recorder.begin()
    labels = {"http_request_method": "GET", "url_scheme": "http"}
    assert recorder.value("http_server_active_requests", **labels) == 1
    assert recorder.value("django_http_requests_before_middlewares_total") == 1
    assert recorder.value("django_http_responses_before_middlewares_total") == 0
    recorder.end(scope, request, HttpResponse())
    assert recorder.value("http_server_active_requests", **labels) == 0
    assert recorder.value("django_http_responses_before_middlewares_total") == 1


@pytest.mark.parametrize(("seconds", "bucket"), [(0.1, "0.1"), (0.10001, "1.0"), (11.0, "+Inf")])
def test_latency_falls_into_the_configured_buckets(recorder: Recorder, seconds: float, bucket: str) -> None:
    recorder.request(seconds=seconds)
    name = "django_http_requests_latency_including_middlewares_seconds"
    bounds = ["0.1", "1.0", "10.0", "+Inf"]
    assert [recorder.value(f"{name}_bucket", le=bound) for bound in bounds] == [
        float(bounds.index(bound) >= bounds.index(bucket)) for bound in bounds
    ]
    assert recorder.value(f"{name}_sum") == pytest.approx(seconds)
    assert recorder.sum("http_server_request_duration_seconds_bucket", le="7.5") == (seconds < 7.5)


@pytest.mark.parametrize(
    ("length", "received"),
    [("0", 0), ("1", 1), ("129", 129), ("-5", 0), ("many", 0), ("9" * 30, 0), ("²", 0), (" 7", 0)],
)
def test_body_sizes_are_observed_and_nonsense_is_nothing(recorder: Recorder, length: str, received: int) -> None:
    recorder.request(headers={"CONTENT_LENGTH": length})
    assert recorder.value("django_http_requests_body_total_bytes_sum") == received
    assert recorder.value("django_http_requests_body_total_bytes_count") == 1
    for bound in (0, 1, 2, 128, 256):
        counted = recorder.value("django_http_requests_body_total_bytes_bucket", le=f"{float(bound)}")
        assert counted == (received <= bound)
    assert recorder.value("django_http_responses_body_total_bytes_bucket", le="4.0") == 0
    assert recorder.value("django_http_responses_body_total_bytes_bucket", le="8.0") == 1


def test_body_beyond_the_last_bucket_is_in_infinity(recorder: Recorder) -> None:
    recorder.request(headers={"CONTENT_LENGTH": str(1 << 40)})
    assert recorder.value("django_http_requests_body_total_bytes_bucket", le="5.36870912e+08") == 0
    assert recorder.value("django_http_requests_body_total_bytes_bucket", le="+Inf") == 1


def test_stream_has_no_body_size(recorder: Recorder) -> None:
    recorder.request(StreamingHttpResponse([b"a"]))
    assert recorder.value("django_http_responses_streaming_total") == 1
    assert recorder.value("django_http_responses_body_total_bytes_count") == 0


def test_request_of_a_script_is_ajax(recorder: Recorder) -> None:
    recorder.request(headers={"HTTP_X_REQUESTED_WITH": "XMLHttpRequest"})
    recorder.request(headers={"HTTP_X_REQUESTED_WITH": "me"})
    assert recorder.value("django_http_ajax_requests_total") == 1


def test_template_is_counted_by_its_name(recorder: Recorder) -> None:
    response = SimpleTemplateResponse("page.html")
    response.content = b"rendered"
    recorder.request(response)
    assert recorder.value("django_http_responses_total_by_templatename_total", templatename="page.html") == 1


def test_time_in_the_queue_is_observed_where_it_is_known(recorder: Recorder) -> None:
    scope, request = recorder.begin()
    scope.queue_ns = 2_000_000_000
    recorder.end(scope, request, HttpResponse())
    recorder.request()
    assert recorder.value("django_http_requests_queue_seconds_count") == 1
    assert recorder.value("django_http_requests_queue_seconds_sum") == 2


def test_failing_request_is_counted_once(recorder: Recorder) -> None:
    scope, request = recorder.begin()
    scope.error = scope.exception = ValueError("oh")
    recorder.end(scope, request, HttpResponse(status=500))
    assert recorder.value("django_http_exceptions_total_by_type_total", type="ValueError") == 1
    assert recorder.value("django_http_exceptions_total_by_view_total", view="cart") == 1
    assert recorder.sum("django_http_requests_latency_seconds_by_view_method_count") == 1
    assert recorder.sum("http_server_request_duration_seconds_count", error_type="ValueError") == 1


def test_request_without_response_is_counted_by_its_status(recorder: Recorder) -> None:
    scope, request = recorder.begin()
    scope.error = KeyboardInterrupt()
    recorder.end(scope, request, None, status=500, view="")
    assert recorder.value("django_http_responses_total_by_status_total", status="500") == 1
    assert recorder.sum("http_server_active_requests") == 0


@pytest.mark.parametrize(("status", "error_type"), [(200, ""), (404, ""), (503, "503")])
def test_error_type_is_of_the_servers_errors_alone(recorder: Recorder, status: int, error_type: str) -> None:
    recorder.request(HttpResponse(status=status))
    assert recorder.sum("http_server_request_duration_seconds_count", error_type=error_type) == 1


def test_scheme_follows_the_trusted_proxy(settings: Any) -> None:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    recorder = Recorder()
    recorder.request(headers={"HTTP_X_FORWARDED_PROTO": "https"})
    assert recorder.value("django_http_requests_total_by_transport_total", transport="https") == 1


def test_namespace_prefixes_the_names_of_django_prometheus_alone() -> None:
    registry = CollectorRegistry()
    RequestInstruments(Catalogue(latency_buckets=BUCKETS, registry=registry, namespace="shop")).prepare()
    names = registry._names_to_collectors
    assert "shop_django_http_requests_before_middlewares_total" in names
    assert "http_server_active_requests" in names


def test_query_is_counted_with_its_error() -> None:
    registry = CollectorRegistry()
    database = DatabaseInstruments(Catalogue(latency_buckets=BUCKETS, registry=registry))
    tally = database.tally("default", "sqlite")
    assert tally is not None
    tally.add(0.5)
    tally.add(0.5, True)
    tally.add(0.5, 7, ValueError())
    database.record_connection("default", "sqlite", None)
    database.record_connection("default", "sqlite", OSError())
    labels = {"alias": "default", "vendor": "sqlite"}
    value = registry.get_sample_value
    assert value("django_db_execute_total", labels) == 9
    assert value("django_db_execute_many_total", labels) == 8
    assert value("django_db_query_duration_seconds_count", labels) == 3
    assert value("django_db_errors_total", {**labels, "type": "ValueError"}) == 1
    assert value("django_db_new_connections_total", labels) == 2
    assert value("django_db_new_connection_errors_total", labels) == 1


def test_cache_operations_are_counted_with_what_they_found() -> None:
    registry = CollectorRegistry()
    cache = CacheInstruments(Catalogue(latency_buckets=BUCKETS, registry=registry))
    cache.record_cache("default", "locmem", "get", 1, 0, 0.5, None)
    cache.record_cache("default", "locmem", "get", 0, 1, 0.5, None)
    cache.record_cache("default", "locmem", "get", 0, 0, 0.5, OSError())
    cache.record_cache("default", "locmem", "get_many", 2, 3, 0.5, None)
    cache.record_cache("default", "locmem", "set", 0, 0, 0.5, OSError())
    value, labels = registry.get_sample_value, {"backend": "locmem"}
    assert value("django_cache_get_total", labels) == 8
    assert value("django_cache_get_hits_total", labels) == 3
    assert value("django_cache_get_misses_total", labels) == 4
    assert value("django_cache_get_fail_total", labels) == 1
    labels["alias"] = "default"
    assert value("django_cache_operation_errors_total", {**labels, "operation": "set"}) == 1
    assert value("django_cache_operation_duration_seconds_count", {**labels, "operation": "get"}) == 3


def test_metric_that_cannot_be_made_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("no room")

    catalogue = Catalogue(latency_buckets=BUCKETS, registry=CollectorRegistry(), prepare=broken)
    DatabaseInstruments(catalogue).record_connection("default", "sqlite", None)
    CacheInstruments(catalogue, counts_itself=lambda alias: 1 / 0).record_cache(  # type: ignore[arg-type, return-value]
        "default", "locmem", "get", 0, 0, 0.1, None
    )


def test_lanes_and_plain_values_record_the_same() -> None:
    """In an interpreter where nobody has replaced prometheus_client's methods, and without Django."""
    code = """
import sys
from types import SimpleNamespace as New
from prometheus_client import CollectorRegistry
from django_obs.metrics.catalogue import Catalogue
from django_obs.metrics.instruments import RequestInstruments
registry = CollectorRegistry()
instruments = RequestInstruments(Catalogue(latency_buckets=(0.1, 1.0, 10.0), registry=registry))
request = New(META={"SERVER_PROTOCOL": "HTTP/1.1", "CONTENT_LENGTH": "100"})
stored = {"content-type": ("Content-Type", "text/html; charset=utf-8")}
response = New(headers=New(_store=stored), charset="utf-8", streaming=False)
for status in (200, 200, 404):
    scope = New(request=request, method="GET", name="cart", route="/cart/", status=status, started=0, ended=10**9,
                error=None, exception=None, size=5, sampled=False, queue_ns=None, scheme="http")
    instruments.request_started(scope)
    instruments.request_finished(scope, request, response)
print(type(next(iter(instruments._tallies.values()))).__name__)
for family in registry.collect():
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            print(sample.name, sorted(sample.labels.items()), sample.value)
assert "django" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(django_obs.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    kind, *plain = done.stdout.splitlines()
    assert kind == RequestTally.__name__

    recorder = Recorder()
    for status in (200, 200, 404):
        scope, request = recorder.begin(CONTENT_LENGTH="100")
        recorder.end(scope, request, HttpResponse("hello", status=status), seconds=1)
    assert type(next(iter(recorder.instruments._tallies.values()))) is LaneTally
    in_lanes = [
        f"{sample.name} {sorted(sample.labels.items())} {sample.value}"
        for family in recorder.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    assert in_lanes == plain


def test_tallies_follow_their_cells(run_apart: Callable[[str], str]) -> None:
    """Requests and queries are counted through a store that fails, a directory that is cleaned, and a fork."""
    run_apart("""
        from types import SimpleNamespace as New
        from django_obs.metrics.catalogue import Catalogue
        from django_obs.metrics.instruments import DatabaseInstruments, RequestInstruments

        directory.parent.joinpath("metrics").write_text("a file is in the way")
        adoption.install(store)
        catalogue = Catalogue(latency_buckets=(0.1, 1.0))
        requests, database = RequestInstruments(catalogue), DatabaseInstruments(catalogue)
        request = New(META={"SERVER_PROTOCOL": "HTTP/1.1", "CONTENT_LENGTH": "100"})
        stored = {"content-type": ("Content-Type", "text/html; charset=utf-8")}
        response = New(headers=New(_store=stored), charset="utf-8", streaming=False)

        def work():
            scope = New(request=request, method="GET", name="cart", route="/cart/", status=200, started=0, size=5,
                        ended=10**9 // 2, error=None, exception=None, sampled=False, queue_ns=None, scheme="http")
            requests.request_started(scope)
            requests.request_finished(scope, request, response)
            database.tally("default", "sqlite").add(0.5)

        def counted():
            said = samples()
            said = {(name, dict(labels).get("le")): value for (name, labels), value in said.items()}
            got = {
                said[name, le]
                for name, le in (
                    ("django_http_requests_before_middlewares_total", None),
                    ("django_http_responses_total_by_charset_total", None),
                    ("django_http_requests_total_by_view_transport_method_total", None),
                    ("django_http_responses_total_by_status_view_method_total", None),
                    ("django_http_requests_latency_seconds_by_view_method_bucket", "1.0"),
                    ("http_server_request_duration_seconds_count", None),
                    ("django_http_requests_body_total_bytes_bucket", "128.0"),
                    ("django_http_responses_body_total_bytes_bucket", "8.0"),
                    ("django_db_execute_total", None),
                    ("django_db_query_duration_seconds_count", None),
                )
            }
            total, = got
            assert said["http_server_request_duration_seconds_sum", None] == total / 2
            assert said["django_http_requests_body_total_bytes_sum", None] == total * 100
            assert said["django_db_query_duration_seconds_sum", None] == total / 2
            assert said["http_server_active_requests", None] == 0
            return total

        work()
        work()
        os.unlink(directory)
        store.tend()
        work()
        assert counted() == 3
        shutil.rmtree(directory)
        work()
        store.tend()
        work()
        assert counted() == 1  # as after a restart
        in_child(work)
        assert counted() == 2
        work()
        assert counted() == 3
    """)

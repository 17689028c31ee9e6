from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from opentelemetry import trace

from django_obs.context import Scope, current
from django_obs.testing import CapturedSpan, capture_spans, sample_value

REDIS = "redis://127.0.0.1:6379/9"
BACKENDS = {
    "locmem": "django.core.cache.backends.locmem.LocMemCache",
    "filebased": "django.core.cache.backends.filebased.FileBasedCache",
    "dummy": "django.core.cache.backends.dummy.DummyCache",
    "redis": "django.core.cache.backends.redis.RedisCache",
}
tracer = trace.get_tracer("shop")


@pytest.fixture(params=BACKENDS)
def cache(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Iterator[BaseCache]:
    location = {"filebased": str(tmp_path), "redis": REDIS}.get(request.param, "")
    with own_database() if request.param == "redis" else nullcontext():
        settings.CACHES = {"default": {"BACKEND": BACKENDS[request.param], "LOCATION": location}}
        cache = caches["default"]
        cache.clear()
        yield cache
        cache.clear()
        cache.close()


@contextmanager
def own_database() -> Iterator[None]:
    """Keep other runs of these tests out of the database, which they would clear."""
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(REDIS.replace("/9", "/0"), socket_connect_timeout=20) as client:
        try:
            client.ping()
        except redis.ConnectionError as error:
            pytest.skip(f"service redis: {error}")
        with client.lock("django_obs-tests-cache", timeout=60):
            yield


def own(spans: list[CapturedSpan]) -> list[str]:
    """Return our own; an instrumentor of the client library makes some, too."""
    return [span.name for span in spans if span.name.startswith("cache ")]


def test_get_counts_hits_and_misses_and_a_stored_none_is_a_hit(cache: BaseCache) -> None:
    stores = type(cache).__name__ != "DummyCache"
    scope = Scope("task")
    token = current.set(scope)
    try:
        assert cache.get("missing", "default") == "default"
        assert cache.get("missing") is None
        cache.set("none", None)
        cache.get("none", "default")
        cache.get_many(["none", "other"])
    finally:
        current.reset(token)

    assert scope.cache_hits == (2 if stores else 0)
    assert scope.cache_hits + scope.cache_misses == 5


def test_outermost_operation_is_a_span_without_its_key(cache: BaseCache) -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"):
        cache.add("secret-key", 1)
        cache.set("secret-key", 1)
        cache.delete("secret-key")

    assert own(spans) == ["cache add", "cache set", "cache delete"]
    assert not any("secret-key" in str(span.attributes) for span in spans if span.name in own(spans))


def test_get_or_set_is_seen_through_its_parts(cache: BaseCache) -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"):
        assert cache.get_or_set("key", 7) == 7

    assert own(spans)[:2] == ["cache get", "cache add"]


def test_async_operation_is_counted_once(cache: BaseCache) -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"):
        asyncio.run(cache.aget("key"))

    assert own(spans) == ["cache get"]


def test_failing_operation_is_counted_and_raised(settings: Any) -> None:
    redis = pytest.importorskip("redis")
    settings.CACHES = {"default": {"BACKEND": BACKENDS["redis"], "LOCATION": "redis://127.0.0.1:9"}}
    with capture_spans() as spans, tracer.start_as_current_span("job"), pytest.raises(redis.ConnectionError):
        caches["default"].get("key")

    assert [span.status for span in spans if span.name == "cache get"] == ["error"]


def test_gets_are_counted_under_the_names_of_django_prometheus(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": BACKENDS["locmem"], "LOCATION": "counted"}}
    cache = caches["default"]
    cache.get("key")
    names = ("django_cache_get_total", "django_cache_get_misses_total")

    assert all(sample_value(name, {"backend": "locmem"}) for name in names)

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.exceptions import MiddlewareNotUsed
from django.core.handlers import base
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import sync_and_async_middleware
from django.utils.module_loading import import_string

from django_obs.instrumentation.middleware_spans import MiddlewareInstrumentation
from django_obs.traces.span import recording_span
from tests.traces.support import attributes, make_provider

HERE = __name__


class Outer:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_view(self, request, view, args, kwargs):
        request.seen = True


@sync_and_async_middleware
def inner(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            return await get_response(request)
    else:

        def middleware(request):
            assert request is not None
            return get_response(request)

    return middleware


def unused(get_response):
    raise MiddlewareNotUsed


MIDDLEWARE = [f"{HERE}.{name}" for name in ("Outer", "inner", "unused")]


@pytest.fixture
def sink(monkeypatch):
    monkeypatch.setattr(base, "import_string", import_string)
    provider, sink = make_provider()
    sink.tracer = provider.tracer("test")
    MiddlewareInstrumentation(tracer=sink.tracer, current_span=recording_span).install()
    return sink


@override_settings(MIDDLEWARE=MIDDLEWARE)
def test_middleware_is_nested_as_listed(sink):
    with sink.tracer.start_as_current_span("request"):
        assert Client().get("/").status_code == 200
    innermost, outer, root = sink.spans()
    assert [innermost.name, outer.name] == ["inner", "Outer"]
    assert (innermost.parent_span_id, outer.parent_span_id) == (outer.span_id, root.span_id)
    assert attributes(outer) == {"django.middleware.name": f"{HERE}.Outer"}


def test_async_middleware_stays_async(sink):
    with override_settings(MIDDLEWARE=MIDDLEWARE), sink.tracer.start_as_current_span("request"):
        assert asyncio.run(fetch()).status_code == 200
    assert sink.names()[:2] == ["inner", "Outer"]


async def fetch():
    return await AsyncClient().get("/")


@override_settings(MIDDLEWARE=MIDDLEWARE)
def test_hooks_are_found_through_the_wrapper(sink):
    response = Client().get("/")
    assert response.wsgi_request.seen


@override_settings(MIDDLEWARE=MIDDLEWARE)
def test_no_span_around_makes_none(sink):
    Client().get("/")
    assert sink.spans() == []

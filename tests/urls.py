"""Views of the tests: each does one thing that telemetry must see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse
from django.urls import path, re_path

from django_obs import bind

logger = logging.getLogger("shop")


def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def item(request: HttpRequest, pk: int) -> HttpResponse:
    bind(item=pk)
    logger.info("looked at %d", pk, extra={"colour": "red"})
    return HttpResponse("item")


def queries(request: HttpRequest) -> HttpResponse:
    count = ContentType.objects.count()
    list(ContentType.objects.filter(pk=1))
    cache.get("missing")
    cache.set("there", 1)
    cache.get("there")
    return JsonResponse({"count": count})


def describe(request: HttpRequest) -> HttpResponse:
    """Look at the span of the request, and say more of it, as far as the query asks for it."""
    # Not above: that nothing imports it at start-up is tested with these URLs.
    from opentelemetry import trace

    span = trace.get_current_span()
    seen = {}
    if "look" in request.GET:
        seen = dict(span.attributes)  # type: ignore[attr-defined]
    if "set" in request.GET:
        span.set_attributes({"shop.cart": 7, "url.path": "/mine/", "http.response.status_code": 299})
    if "proxy" in request.GET:
        # As a middleware does that knows the proxies in front of it.
        request.META["REMOTE_ADDR"] = "203.0.113.7"
    return JsonResponse(seen)


def as_user(request: HttpRequest) -> HttpResponse:
    from django.contrib.auth.models import User

    # As REST framework and django.contrib.auth.login() do it.
    request.user = User(pk=42)
    return HttpResponse("hello")


def fail(request: HttpRequest) -> HttpResponse:
    raise ValueError("broken on purpose")


def forbid(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"one "
        logger.info("in the stream")
        yield b"two"

    return StreamingHttpResponse(parts())


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"one "
        raise ValueError("broken in the stream")

    return StreamingHttpResponse(parts())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


def template(request: HttpRequest) -> SimpleTemplateResponse:
    return SimpleTemplateResponse("page.html")


async def async_index(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    logger.info("in the task")
    return HttpResponse(str(await ContentType.objects.acount()))


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        await asyncio.sleep(0)
        logger.info("in the stream")
        yield b"two"

    return StreamingHttpResponse(parts())


async def async_forever(request: HttpRequest) -> HttpResponse:
    await asyncio.Event().wait()
    return HttpResponse()


urlpatterns = [
    path("", index, name="index"),
    path("items/<int:pk>/", item, name="item"),
    re_path(r"^old/(\d+)/$", index, name="old"),
    path("queries/", queries),
    path("describe/", describe),
    path("as-user/", as_user),
    path("fail/", fail),
    path("forbid/", forbid),
    path("stream/", stream),
    path("broken-stream/", broken_stream),
    path("file/", file),
    path("template/", template),
    path("health/", queries),
    path("async/", async_index),
    path("async-stream/", async_stream),
    path("async-forever/", async_forever),
]

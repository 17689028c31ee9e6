"""The shop, and views that only a soak has a use for."""

from __future__ import annotations

import asyncio
import logging

from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from prometheus_client import Counter

logger = logging.getLogger(__name__)
distinct = Counter("soak_distinct", "Counted once for each label value.", ["value"])


async def wait(request: HttpRequest) -> HttpResponse:
    """Take longer than the client has patience."""
    await asyncio.sleep(float(request.GET.get("seconds", "1")))
    return HttpResponse("waited")


def label(request: HttpRequest, start: int, count: int) -> HttpResponse:
    """Count each of so many label values once."""
    for value in range(start, start + count):
        distinct.labels(f"value-{value}").inc()
    return HttpResponse("counted")


def chatty(request: HttpRequest, count: int) -> HttpResponse:
    """Log so many lines."""
    for number in range(count):
        logger.info("line", extra={"number": number, "padding": "x" * 200})
    return HttpResponse("said")


urlpatterns = [
    path("", include("example_project.shop.urls")),
    path("wait/", wait),
    path("label/<int:start>/<int:count>/", label),
    path("chatty/<int:count>/", chatty),
]

from __future__ import annotations

import asyncio

from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from benchmarks.project.models import Author, Book


def trivial(request: HttpRequest, pk: int = 0) -> HttpResponse:
    """Answer at once: whatever telemetry adds is seen best here."""
    return HttpResponse("ok")


def page(request: HttpRequest) -> HttpResponse:
    """Render a list: three queries and a template, the ordinary page."""
    books = Book.objects.select_related("author").order_by("title")[:23]
    authors = Author.objects.annotate(written=Count("books")).order_by("name")[:10]
    return render(request, "project/page.html", {"books": books, "authors": authors, "total": Book.objects.count()})


def queries(request: HttpRequest) -> HttpResponse:
    """Render a shorter list and ask 27 times for one author more, as a loop over a relation does: 30 queries."""
    books = Book.objects.select_related("author").order_by("title")[:8]
    authors = Author.objects.annotate(written=Count("books")).order_by("name")[:4]
    for pk in range(1, 28):
        Author.objects.get(pk=pk)
    return render(request, "project/page.html", {"books": books, "authors": authors, "total": Book.objects.count()})


def api(request: HttpRequest) -> JsonResponse:
    """List forty rows as JSON: one query."""
    rows = Book.objects.order_by("title").values("id", "title", "price", "pages", "published", "author__name")[:40]
    return JsonResponse({"books": list(rows)})


async def asynchronous(request: HttpRequest) -> JsonResponse:
    """Wait for the event loop once, and answer."""
    await asyncio.sleep(0)
    return JsonResponse({"ok": True})


def failing(request: HttpRequest) -> HttpResponse:
    """Query, then fail."""
    return HttpResponse(Book.objects.count() / 0)

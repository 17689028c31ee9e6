from __future__ import annotations

import contextlib
import logging

import django
from django.core.cache import cache, caches
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connection, connections
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import include, path

from tests.dashboards.watched.models import Note


def troubles(request: HttpRequest) -> HttpResponse:
    """Do everything that a panel shows, the failures of others included."""
    with contextlib.suppress(DatabaseError):
        connection.cursor().execute("SELECT nothing FROM nowhere")
    with contextlib.suppress(OperationalError):
        connections["away"].ensure_connection()
    with contextlib.suppress(Exception):
        caches["away"].get("anything")
    cache.get("never set")
    cache.set("known", 1)
    cache.get("known")
    Note.objects.bulk_create([Note(text="a"), Note(text="b")])
    connection.cursor().executemany("DELETE FROM watched_note WHERE text = %s", [["a"], ["b"]])
    note = Note.objects.create(text="c")
    note.save()
    note.delete()
    logging.getLogger("shop").warning("trouble")
    return HttpResponse("ok")


def tasks(request: HttpRequest) -> HttpResponse:
    from tests.dashboards.watched import celery

    for each in (celery.ship, celery.fail, celery.stubborn):
        each.delay()
    if django.VERSION >= (6, 0):
        from tests.dashboards.watched import jobs

        jobs.count.enqueue()
        jobs.stumble.enqueue()
    call_command("tidy")
    with contextlib.suppress(ValueError):
        call_command("tidy", fail=True)
    return HttpResponse("ok")


def answer(request: HttpRequest, status: int) -> HttpResponse:
    """Answer with that status, as the admin does: a template that is rendered late."""
    response = TemplateResponse(request, "watched/page.html", status=status)
    if status == 302:
        response["Location"] = "/"
    return response


# The published dashboards show the views of this namespace apart from all others.
admin = ([path("<int:status>/", answer, name="index")], "admin")

urlpatterns = [
    path("admin/", include(admin)),
    path("answer/<int:status>/", answer),
    path("troubles/", troubles),
    path("tasks/", tasks),
    path("", include("example_project.urls")),
]

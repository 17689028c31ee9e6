from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from example_project.demo.processes import poll
from example_project.demo.receiver import ReceivedSpan
from tests.e2e.conftest import Backend
from tests.e2e.project import PATIENCE, Project

VIEWS = """
import socket
from django.db import connections
from django.http import HttpResponse


def mixed(request):
    for number in range(3):
        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT %s", [number])
    return HttpResponse("ok")


def fail(request):
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    raise ValueError("on purpose")
"""


def write_project(directory: Path, stack: ExitStack, endpoint: str) -> Project:
    """A project with a view that asks SQLite and, where there is one, PostgreSQL in turns."""
    project = Project(directory, stack, otlp_endpoint=endpoint)
    (directory / "shop" / "views.py").write_text(VIEWS)
    urls = directory / "shop" / "urls.py"
    urls.write_text(
        urls.read_text()
        + "\nfrom shop import views\n"
        + 'urlpatterns += [path("mixed/", views.mixed), path("fail/", views.fail)]\n'
    )
    if has_postgresql():
        settings = directory / "shop" / "settings.py"
        warehouse = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ.get("PGDATABASE", "test"),
            "USER": os.environ.get("PGUSER", "postgres"),
            "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        }
        settings.write_text(settings.read_text() + f'\nDATABASES["warehouse"] = {warehouse!r}\n')
    return project


def has_postgresql() -> bool:
    try:
        import psycopg

        psycopg.connect(
            host=os.environ.get("PGHOST", "127.0.0.1"),
            user=os.environ.get("PGUSER", "postgres"),
            dbname=os.environ.get("PGDATABASE", "test"),
            connect_timeout=20,
        ).close()
    except Exception:
        return False
    return True


def spans_of(collector: Backend, trace_id: str) -> list[ReceivedSpan]:
    return [span for span in list(collector.receiver.spans) if span.trace_id == trace_id]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_queries_of_all_databases_arrive_as_children_in_order(
    tmp_path: Path, collector: Backend, server: str, protocol: str
) -> None:
    systems = ["sqlite", "postgresql"] if has_postgresql() else ["sqlite"]
    with ExitStack() as stack:
        project = write_project(tmp_path, stack, collector.grpc_url if protocol == "grpc" else collector.url)
        project.env["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
        project.env["OTEL_BSP_SCHEDULE_DELAY"] = "200"
        site = project.serve(server)
        traces = []
        for _ in range(6):
            response, body = site.request("/mixed/")
            assert body == b"ok"
            traces.append(response.headers["x-trace-id"])
        expected = 1 + 3 * len(systems)
        assert poll(lambda: all(len(spans_of(collector, trace)) >= expected for trace in traces), PATIENCE), (
            site.process.said()
        )
    for trace in traces:
        spans = spans_of(collector, trace)
        (root,) = [span for span in spans if not span.parent_id]
        assert root.name == "GET /mixed/"
        queries = [span for span in spans if span is not root]
        assert len(queries) == expected - 1
        assert {span.parent_id for span in queries} == {root.span_id}
        assert [span.attributes["db.system.name"] for span in queries] == systems * 3
        times = [time for span in queries for time in (span.start, span.end)]
        assert times == sorted(times)
        assert root.start <= times[0]
        assert times[-1] <= root.end


def test_request_that_was_left_out_and_failed_arrives_with_its_queries(tmp_path: Path, collector: Backend) -> None:
    with ExitStack() as stack:
        project = write_project(tmp_path, stack, collector.url)
        project.env |= {"OTEL_BSP_SCHEDULE_DELAY": "200", "DJANGO_OBS_TRACES_SAMPLE_RATIO": "0"}
        site = project.serve("gunicorn")
        left_out, _ = site.request("/mixed/")
        failed, _ = site.request("/fail/")
        assert failed.status == 500
        kept = failed.headers["x-trace-id"]
        assert poll(lambda: len(spans_of(collector, kept)) >= 2, PATIENCE), site.process.said()
    assert spans_of(collector, left_out.headers["x-trace-id"]) == []
    query, root = sorted(spans_of(collector, kept), key=lambda span: span.kind)
    assert (query.name, query.parent_id) == ("SELECT", root.span_id)
    assert root.attributes["django_obs.sampling.kept"] == "error"

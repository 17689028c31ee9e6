from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from example_project.demo.processes import poll
from tests.e2e.conftest import Backend
from tests.e2e.project import PATIENCE, Project, Site

VISITS = 12
LATENCY = "django_http_requests_latency_seconds_by_view_method"
TRANSPORTS = "django_http_requests_total_by_view_transport_method"


@dataclass(frozen=True)
class Visited:
    """A project that was served and visited: the login page `VISITS` times, then a login that fails."""

    kind: str
    site: Site
    metrics: Site
    collector: Backend
    trace_id: str


@pytest.fixture(scope="module", params=["runserver", "gunicorn", "uvicorn"])
def visited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, collector: Backend
) -> Iterator[Visited]:
    with ExitStack() as stack:
        project = Project(tmp_path_factory.mktemp(request.param), stack, otlp_endpoint=collector.url)
        project.manage("migrate", "--verbosity=0")
        site = project.serve(request.param)
        metrics = project.serve_metrics()
        for _ in range(VISITS):
            response, _ = site.request("/admin/login/")
            assert response.status == 200
        form = {"username": "somebody", "password": "wrong", "csrfmiddlewaretoken": site.cookies["csrftoken"]}
        response, _ = site.request("/admin/login/", form=form)
        assert response.status == 200
        yield Visited(request.param, site, metrics, collector, response.headers["x-trace-id"])


def samples(page: bytes, name: str, **labels: str) -> float:
    """Return the sum of the samples of that name with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_each_request_is_one_json_line(visited: Visited) -> None:
    lines = visited.site.wait_lines(VISITS + 1, logger="django_obs.access")

    assert len(lines) == VISITS + 1
    assert len({line["trace_id"] for line in lines}) == VISITS + 1
    (line,) = [line for line in lines if line["trace_id"] == visited.trace_id]
    assert {"timestamp", "level", "message", "span_id", "request_id", "service"} <= line.keys()
    assert line["service"] == "shop"


def test_stdout_is_nothing_but_json(visited: Visited) -> None:
    visited.site.wait_lines(VISITS + 1, logger="django_obs.access")

    others = [line for line in visited.site.process.out.read_text().splitlines() if not line.startswith("{")]

    # runserver greets whoever starts it, on stdout and past all logging.
    assert visited.kind == "runserver" or others == []


def test_request_is_a_server_span_with_its_queries(visited: Visited) -> None:
    spans = visited.collector.receiver.trace(visited.trace_id, timeout=PATIENCE)

    (root,) = [span for span in spans if span.kind == "SERVER"]
    assert root.attributes["http.request.method"] == "POST"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["url.path"] == "/admin/login/"
    assert root.resource["service.name"] == "shop"
    queries = [span for span in spans if span.attributes.get("db.system.name") == "sqlite"]
    assert any("auth_user" in span.attributes["db.query.text"] for span in queries)
    assert {span.parent_id for span in queries} == {root.span_id}
    (line,) = visited.site.wait_lines(1, logger="django_obs.access", trace_id=visited.trace_id)
    assert line["span_id"] == root.span_id


def test_samples_of_all_workers_are_summed(visited: Visited) -> None:
    def page() -> bytes:
        response, content = visited.metrics.request("/metrics")
        assert response.status == 200
        return content

    def gets() -> float:
        return samples(page(), f"{TRANSPORTS}_total", view="admin:login", transport="http", method="GET")

    assert poll(lambda: gets() == VISITS, PATIENCE), page().decode()
    assert samples(page(), f"{TRANSPORTS}_total", view="admin:login", method="POST") == 1
    assert samples(page(), "django_http_responses_total_by_status_view_method_total", status="200") == VISITS + 1
    assert (
        samples(page(), "django_http_requests_latency_seconds_by_view_method_count", view="admin:login") == VISITS + 1
    )
    assert samples(page(), "django_db_execute_total", vendor="sqlite") >= 1


def test_promtool_accepts_the_page(visited: Visited) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("service promtool: not installed")
    _, page = visited.metrics.request("/metrics")

    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=PATIENCE
    )

    # Its linter would name a few metrics otherwise than django-prometheus does, whose names the dashboards know.
    complaints = [
        line
        for line in done.stderr.decode().splitlines()
        if line and not line.startswith(("django_http_", "django_db_", "django_cache_", "django_migrations_"))
    ]
    assert complaints == []
    assert done.returncode in (0, 3)


def test_nothing_is_left_in_the_project(visited: Visited) -> None:
    project = Path(visited.site.process.out).parent
    logs = {visited.site.process.out.name, visited.site.process.err.name, "runmetrics.out", "runmetrics.err"}

    names = {path.name for path in project.iterdir() if path.suffix != ".ctl"}

    assert names - logs == {"manage.py", "shop", "db.sqlite3", "tmp"}

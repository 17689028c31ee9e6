"""Each silent failure is planted in a fresh project that is served, and named; the healthy one has none.

The servers are started once. What can be planted together is: a visit takes a second or more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from example_project.demo.collector import Collector
from example_project.demo.processes import StartError, free_port, poll
from example_project.demo.receiver import Receiver
from tests.e2e.project import PATIENCE, Project, Site

pytestmark = pytest.mark.slow

Found = dict[str, dict[str, Any]]

# What costs nobody an error and everybody their data.
MANY = """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from shop.settings import *

# Another tracer provider.
trace.set_tracer_provider(TracerProvider())
# Ours is not outermost, and django-prometheus counts as well.
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django_obs.middleware.ObservabilityMiddleware",
    *MIDDLEWARE[1:],
]
# DjangoInstrumentor().instrument() in a ready().
INSTALLED_APPS = [*INSTALLED_APPS, "shop.plants.Instrumented"]
# A library whose instrumentor is not installed.
ROOT_URLCONF = "shop.other_urls"
# Loggers disabled, lines printed twice, lines that nobody sees.
LOGGING = {
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {"again": {"class": "logging.FileHandler", "filename": "/dev/stderr"}},
    "root": {"handlers": ["again"], "level": "INFO"},
    "loggers": {"shop.quiet": {"propagate": False}},
}
import logging
logging.getLogger("shop.views")
logging.getLogger("django.db.backends.schema")
DJANGO_OBS = {
    "EXCLUDED_PATHS": ["/admin/*", "/halth/"],
    "TRACES": {"SAMPEL_RATIO": 0.1, "INSTRUMENT": "auto"},
}
"""

URLS = """
import sys
import types

# As if it were installed.
sys.modules["pymongo"] = types.ModuleType("pymongo")

# Its instrumentor is not at work.
import redis
from opentelemetry.instrumentation.redis import RedisInstrumentor
RedisInstrumentor().uninstrument()

from django.contrib import admin
from django.urls import path

def page(request): ...

urlpatterns = [path("admin/", admin.site.urls), path("items/<int:pk>/", page)]
"""

PLANTS = """
from django.apps import AppConfig

class Instrumented(AppConfig):
    name = "shop"
    label = "instrumented"

    def ready(self):
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        DjangoInstrumentor().instrument()

class Replaced(AppConfig):
    name = "shop"
    label = "replaced"

    def ready(self):
        from django.conf import settings
        settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
"""

REPLACED = """
from shop.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "shop.plants.Replaced"]
DJANGO_OBS = {"LOGS": {"FILTER": "off"}}
"""

COUNTING = """
import signal
import django
django.setup()
from prometheus_client import Counter
Counter("django_obs_spans_failed_total", "Spans that the collector did not take.").inc(3)
print("counted", flush=True)
signal.pause()
"""

BROKEN_URLS = """
from shop.settings import *

ROOT_URLCONF = "shop.nothing"
import logging
logging.disable(logging.CRITICAL)
"""


@dataclass
class Served:
    """A project that is healthy: a collector, gunicorn with two workers that were preloaded, and ``runmetrics``."""

    project: Project
    metrics: Site
    collector: Collector
    receiver: Receiver

    def doctor(self, *arguments: str, **environ: str) -> tuple[Found, subprocess.CompletedProcess[str]]:
        """Run it; return its findings by their ids."""
        done = subprocess.run(
            [sys.executable, "manage.py", "obs", "doctor", "--json", f"--timeout={PATIENCE}", *arguments],
            cwd=self.project.directory,
            env={**self.project.env, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * PATIENCE,
        )
        assert done.stdout, done.stderr
        return {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}, done


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        try:
            collector = Collector(tmp_path_factory.mktemp("collector"), forward_to=receiver.url)
        except StartError as error:
            pytest.skip(f"service rotel: {error}")
        stack.enter_context(collector)
        project = Project(tmp_path_factory.mktemp("healthy"), stack, otlp_endpoint=collector.url)
        package = project.directory / "shop"
        modules = {"many": MANY, "other_urls": URLS, "plants": PLANTS, "replaced": REPLACED, "broken": BROKEN_URLS}
        for name, text in modules.items():
            (package / f"{name}.py").write_text(text)
        project.manage("migrate", "--verbosity=0")
        port = free_port()
        bind = (f"--bind=127.0.0.1:{port}", "--workers=2", f"--control-socket={project.directory / 'gunicorn.ctl'}")
        server = project.start("gunicorn", "-m", "gunicorn", "shop.wsgi", "--preload", *bind)
        site = Site(server.wait_port(port, PATIENCE), port)
        metrics = project.serve_metrics()
        assert site.request("/admin/login/")[0].status == 200
        yield Served(project, metrics, collector, receiver)


@pytest.fixture(scope="module")
def healthy(served: Served) -> Found:
    found, done = served.doctor()
    assert done.returncode == 0, done.stdout
    return found


@pytest.fixture(scope="module")
def many(served: Served) -> Found:
    found, _ = served.doctor(
        DJANGO_SETTINGS_MODULE="shop.many",
        DJANGO_OBS_LOGS_STREAM="stdout",
        PROMETHEUS_MULTIPROC_DIR=str(served.project.directory),
        # Nobody is there.
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    return found


def test_healthy_project_has_nothing(healthy: Found) -> None:
    assert {finding["id"]: finding["message"] for finding in healthy.values() if finding["state"] != "ok"} == {}


@pytest.mark.parametrize(
    "id",
    [
        "settings.checks",
        "runtime.directory",
        "runtime.room",
        "runtime.lanes",
        "runtime.processes",
        "project.middleware",
        "project.excluded_paths",
        "project.tracer_provider",
        "line.written",
        "line.once",
        "collector.resolves",
        "collector.connects",
        "collector.accepted",
        "port.answers",
        "port.sample",
    ],
)
def test_healthy_project_has_link(healthy: Found, id: str) -> None:  # noqa: A002
    assert healthy[id]["state"] == "ok"


def test_preloaded_workers_are_seen(healthy: Found) -> None:
    assert "web" in healthy["runtime.processes"]["message"]


def test_span_arrived_with_its_mark(healthy: Found, served: Served) -> None:
    def marked() -> list[Any]:
        return [span for span in served.receiver.spans if span.attributes.get("django_obs.doctor") is True]

    assert poll(lambda: bool(marked()), PATIENCE)


def test_nothing_is_left(healthy: Found, served: Served) -> None:
    _, page = served.metrics.request("/metrics")

    assert b"django_obs_doctor" not in page
    assert b'role="doctor"' not in page


@pytest.mark.parametrize(
    ("id", "named"),
    [
        ("settings.E001", "SAMPEL_RATIO"),
        ("project.tracer_provider", "opentelemetry.sdk.trace.TracerProvider"),
        ("project.middleware", "django.middleware.security.SecurityMiddleware"),
        ("project.django_prometheus", "PrometheusBeforeMiddleware"),
        ("project.django_instrumentor", "opentelemetry-instrumentation-asgi"),
        ("project.instrumentor_missing", "pymongo"),
        ("project.instrumentor_idle", "redis"),
        ("project.excluded_paths", "'/halth/'"),
        ("project.multiproc_dir", "PROMETHEUS_MULTIPROC_DIR"),
        ("line.once", "FileHandler"),
        ("line.disabled_loggers", "'django.db.backends.schema'"),
        ("line.lost_loggers", "'shop.quiet'"),
        ("collector.connects", "127.0.0.1:1"),
    ],
)
def test_planted_failure_is_named(many: Found, id: str, named: str) -> None:  # noqa: A002
    assert many[id]["state"] in ("warning", "broken"), many[id]
    assert named in many[id]["message"]
    assert many[id]["hint"]


def test_excluded_path_that_hits_is_not_named(many: Found) -> None:
    assert "/admin/" not in many["project.excluded_paths"]["message"]


def test_middleware_that_was_replaced_is_named(served: Served) -> None:
    found, done = served.doctor(DJANGO_SETTINGS_MODULE="shop.replaced", DJANGO_OBS_EXCLUDED_PATHS="*")

    assert found["project.middleware"]["state"] == "broken"
    assert found["project.excluded_paths"]["state"] == "broken"
    assert found["line.written"]["state"] == "warning"
    assert done.returncode == 1


def test_processes_that_meet_elsewhere_are_named(served: Served, tmp_path: Path) -> None:
    found, done = served.doctor(
        DJANGO_OBS_RUNTIME_DIR=str(tmp_path / "elsewhere"),
        DJANGO_OBS_METRICS_PORT=str(served.metrics.port),
    )

    assert found["port.same_directory"]["state"] == "broken"
    assert found["runtime.directory"]["state"] == "warning"
    if os.path.isdir("/proc"):
        assert "process " in found["runtime.same_directory"]["message"]
    assert done.returncode == 1


def test_troubles_of_live_processes_are_named(served: Served, tmp_path: Path) -> None:
    directory = served.project.directory
    (directory / "counting.py").write_text(COUNTING)
    # Of this try alone: another would find what the first has counted.
    apart = tmp_path / "apart"
    served.project.env["DJANGO_OBS_RUNTIME_DIR"] = str(apart)
    started = []
    try:
        agent = shutil.which("opentelemetry-instrument", path=os.path.dirname(sys.executable))
        assert agent is not None
        exporters = [f"--{signal}_exporter=none" for signal in ("traces", "metrics", "logs")]
        commands = {"bare": ["counting.py"], "agent": [agent, *exporters, sys.executable, "counting.py"]}
        for name, command in commands.items():
            process = served.project.start(name, *command)
            started.append(process)
            process.wait_ready(lambda process=process: "counted" in process.said(), PATIENCE)
        with (apart / "metrics" / "index").open("ab") as index:
            index.write(b"somebody's text\n")
        found, _ = served.doctor()
    finally:
        del served.project.env["DJANGO_OBS_RUNTIME_DIR"]
        for process in started:
            process.stop()

    assert "damaged" in found["runtime.lanes"]["message"]
    assert found["runtime.spans_failed"]["message"].startswith("6 spans")
    assert found["runtime.processes"]["state"] == "ok"
    if os.path.isdir("/proc"):
        assert "opentelemetry-instrument" in found["project.agent"]["message"]


def test_signals_that_are_off_are_no_failure(served: Served) -> None:
    found, done = served.doctor(
        DJANGO_OBS_TRACES_ENABLED="false", DJANGO_OBS_METRICS_ENABLED="false", DJANGO_OBS_LOGS_ENABLED="false"
    )

    assert {found[id]["state"] for id in ("collector.accepted", "port.answers", "line.written")} == {"off"}  # noqa: A001
    assert done.returncode == 0, done.stdout


def test_urlconf_that_fails_hides_nothing_else(served: Served) -> None:
    found, _ = served.doctor(DJANGO_SETTINGS_MODULE="shop.broken")

    assert found["project.urls"]["state"] == "broken"
    assert "shop.nothing" in found["project.urls"]["message"]
    assert "logging.disable" in found["line.written"]["message"]
    assert found["port.sample"]["state"] == "ok"


def test_text_for_people_names_what_to_do(served: Served) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "obs", "doctor", "--timeout", str(PATIENCE)],
        cwd=served.project.directory,
        env={**served.project.env, "DJANGO_OBS_METRICS_PORT": "1", "DJANGO_OBS_LOGS_OTLP": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PATIENCE,
    )

    assert done.returncode == 0, done.stdout
    assert "log_collector.accepted" in done.stdout
    assert done.stdout.endswith("0 broken, 0 warnings.\n")
    assert done.stderr == ""


def test_runmetrics_that_has_gone_is_named(served: Served, tmp_path: Path) -> None:
    served.metrics.process.stop(signum=9)

    found, done = served.doctor(DJANGO_OBS_METRICS_PORT="1")

    assert found["port.answers"]["state"] == "broken"
    assert "runmetrics" in found["port.answers"]["hint"]
    assert done.returncode == 1

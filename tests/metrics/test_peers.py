"""django-prometheus beside us, in processes of their own: both register metrics for good."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

# Not imported here: it would register its metrics in the process of all tests.
pytestmark = pytest.mark.skipif(find_spec("django_prometheus") is None, reason="django-prometheus is not installed")

PRELUDE = """
import django
from django.conf import settings
from tests import settings as base
options = {name: getattr(base, name) for name in dir(base) if name.isupper()}
options["MIDDLEWARE"] = []
OPTIONS
settings.configure(**options)
django.setup()
from prometheus_client import REGISTRY
from django.test import Client
client = Client(raise_request_exception=False)
value = lambda name, **labels: REGISTRY.get_sample_value(name, labels)
"""
BEFORE = "django_prometheus.middleware.PrometheusBeforeMiddleware"
AFTER = "django_prometheus.middleware.PrometheusAfterMiddleware"


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, str], None]:
    def run(options: str, code: str) -> None:
        program = PRELUDE.replace("OPTIONS", textwrap.dedent(options)) + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "PYTHONPATH": os.getcwd(),
                "DJANGO_OBS_RUNTIME_DIR": str(tmp_path),
                "DJANGO_OBS_LOGS_FILTER": "off",
            },
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize(
    "middleware",
    [
        f'["{BEFORE}", "{AFTER}"]',
        # Ours placed by the project, inside of theirs: it is made before theirs is.
        f'["{BEFORE}", "django_obs.middleware.ObservabilityMiddleware", "{AFTER}"]',
    ],
)
def test_its_middleware_counts_by_its_names_and_ours_by_the_others(
    run: Callable[[str, str], None], middleware: str
) -> None:
    run(
        f"options['MIDDLEWARE'] = {middleware}",
        """
        for _ in range(3):
            client.get("/")
        assert value("django_http_requests_before_middlewares_total") == 3
        assert value("django_http_responses_total_by_status_total", status="200") == 3
        labels = dict(http_request_method="GET", http_route="/", http_response_status_code="200", url_scheme="http",
                      error_type="", network_protocol_version="1.1")
        assert value("http_server_request_duration_seconds_count", **labels) == 3
        """,
    )


def test_its_database_backend_counts_itself_and_others_are_counted(run: Callable[[str, str], None]) -> None:
    run(
        """
        options["INSTALLED_APPS"] = [*options["INSTALLED_APPS"], "django_prometheus"]
        options["DATABASES"] = {
            "default": {"ENGINE": "django_prometheus.db.backends.sqlite3", "NAME": ":memory:"},
            "plain": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        }
        """,
        """
        from django.db import connections
        for alias in ("plain", "default"):
            with connections[alias].cursor() as cursor:
                for _ in range(3):
                    cursor.execute("SELECT 1")
        for alias in ("plain", "default"):
            labels = dict(alias=alias, vendor="sqlite")
            assert value("django_db_new_connections_total", **labels) == 1, alias
            executed = value("django_db_execute_total", **labels)
            # Its own wrapper sees the statement that Django prepares a connection with as well.
            assert executed in ((3, 4) if alias == "default" else (3,)), (alias, executed)
        """,
    )


def test_its_cache_backend_counts_itself_and_others_are_counted(run: Callable[[str, str], None]) -> None:
    run(
        """
        options["CACHES"] = {
            "default": {"BACKEND": "django_prometheus.cache.backends.locmem.LocMemCache"},
            "plain": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "/nonexistent"},
        }
        """,
        """
        from django.core.cache import caches
        for alias in ("plain", "default"):
            caches[alias].get("missing")
        assert value("django_cache_get_total", backend="locmem") == 1
        assert value("django_cache_get_misses_total", backend="filebased") == 1
        labels = dict(alias="default", backend="locmem", operation="get")
        assert value("django_cache_operation_duration_seconds_count", **labels) == 1
        """,
    )


def test_both_mixins_share_the_counters(run: Callable[[str, str], None]) -> None:
    run(
        "options['INSTALLED_APPS'] = ['django_prometheus', *options['INSTALLED_APPS']]",
        """
        from django_obs.metrics.models import ExportModelOperationsMixin as Ours
        from django_prometheus.models import ExportModelOperationsMixin as Theirs
        class Base:
            def delete(self):
                return "deleted"
        class One(Ours("cart"), Base): pass
        class Two(Theirs("cart"), Base): pass
        assert One().delete() == Two().delete() == "deleted"
        assert value("django_model_deletes_total", model="cart") == 2
        """,
    )


def test_import_after_our_metrics_were_made_works(run: Callable[[str, str], None]) -> None:
    run(
        "",
        """
        client.get("/")
        assert value("django_http_requests_before_middlewares_total") == 1
        import django_prometheus.models, django_prometheus.db.metrics, django_prometheus.cache.metrics
        from django_prometheus.middleware import Metrics
        Metrics.get_instance()
        client.get("/")
        assert value("http_server_active_requests", http_request_method="GET", url_scheme="http") == 0
        # Who registers the names counts by them; what was counted before is still in the lane.
        assert value("django_http_requests_before_middlewares_total") == 0
        from django.apps import apps
        from django_obs.metrics.scraper import Scraper
        scraper = Scraper(apps.get_app_config("django_obs").metrics.directory)
        samples = {sample.name: sample.value for family in scraper.collect() for sample in family.samples}
        assert samples["django_http_requests_before_middlewares_total"] == 1
        """,
    )


def test_metric_of_the_project_with_our_name_is_left_alone(run: Callable[[str, str], None]) -> None:
    run(
        "",
        """
        from prometheus_client import Counter
        theirs = Counter("django_cache_get", "Something else", ["shelf"])
        theirs.labels("a").inc(7)
        from django.core.cache import cache
        cache.get("missing")
        assert value("django_cache_get_total", shelf="a") == 7
        assert value("django_cache_get_misses_total", backend="locmem") == 1
        """,
    )

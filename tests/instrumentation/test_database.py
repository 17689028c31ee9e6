from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import Client
from opentelemetry import trace

from django_obs.context import Scope, current
from django_obs.testing import capture_logs, capture_spans, sample_value

tracer = trace.get_tracer("shop")


def counted(alias: str = "default", vendor: str = "sqlite") -> float:
    return sample_value("django_db_execute_total", {"alias": alias, "vendor": vendor}) or 0


@pytest.mark.django_db
def test_query_outside_of_a_request_is_counted_and_makes_no_span() -> None:
    before = counted()
    with capture_spans() as spans:
        ContentType.objects.count()

    assert counted() == before + 1
    assert spans == []


@pytest.mark.django_db
def test_query_below_a_span_of_the_user_is_its_child() -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"), tracer.start_as_current_span("step"):
        ContentType.objects.count()

    by_name = {span.name: span for span in spans}
    assert by_name["SELECT django_content_type"].parent_id == by_name["step"].span_id
    assert by_name["step"].parent_id == by_name["job"].span_id


@pytest.mark.django_db
def test_failed_query_is_an_error_in_span_and_metrics() -> None:
    labels = {"alias": "default", "vendor": "sqlite", "type": "OperationalError"}
    before = sample_value("django_db_errors_total", labels) or 0

    def query() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")

    with capture_spans() as spans, tracer.start_as_current_span("job"), pytest.raises(OperationalError):
        query()

    (span,) = [span for span in spans if span.name == "SELECT nowhere"]
    assert span.status == "error"
    assert span.attributes["error.type"] == "OperationalError"
    assert (sample_value("django_db_errors_total", labels) or 0) == before + 1


@pytest.mark.django_db
def test_reconnecting_does_not_wrap_twice() -> None:
    before = counted()
    wrappers = list(connection.execute_wrappers)

    connection_created.send(sender=type(connection), connection=connection)

    assert connection.execute_wrappers == wrappers
    ContentType.objects.count()
    assert counted() == before + 1


@pytest.mark.django_db
def test_scope_counts_queries_of_its_work() -> None:
    scope = Scope("task")
    token = current.set(scope)
    try:
        ContentType.objects.count()
        list(ContentType.objects.all())
    finally:
        current.reset(token)

    assert scope.db_count == 2
    assert scope.db_ns > 0


@pytest.mark.django_db
def test_repeated_statement_marks_the_root_span() -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"):
        for pk in range(12):
            list(ContentType.objects.filter(pk=pk))

    (job,) = [span for span in spans if span.name == "job"]
    assert job.attributes["django_obs.db.repeated.count"] == 12


@pytest.mark.django_db(transaction=True)
def test_queries_of_asyncio_are_seen() -> None:
    before = counted()

    asyncio.run(ContentType.objects.acount())

    assert counted() == before + 1


@pytest.fixture
def postgresql(django_db_blocker: Any) -> Iterator[Any]:
    psycopg = pytest.importorskip("psycopg")
    from django.db.backends.postgresql.base import DatabaseWrapper

    name, user = os.environ.get("PGDATABASE", "test"), os.environ.get("PGUSER", "postgres")
    host = os.environ.get("PGHOST", "127.0.0.1")
    try:
        psycopg.connect(host=host, user=user, dbname=name, connect_timeout=20).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"service postgresql: {error}")
    settings = {
        **connection.settings_dict,
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": user,
        "HOST": host,
        "PORT": "",
        "OPTIONS": {},
    }
    wrapper = DatabaseWrapper(settings, "warehouse")
    connections.settings["warehouse"] = settings
    connections["warehouse"] = wrapper
    with django_db_blocker.unblock():
        yield wrapper
        wrapper.close()
    del connections["warehouse"], connections.settings["warehouse"]


def test_postgresql_connection_and_queries_are_seen(postgresql: Any) -> None:
    with capture_spans() as spans, tracer.start_as_current_span("job"), postgresql.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_class LIMIT 1")

    (span,) = [span for span in spans if span.name == "SELECT pg_class"]
    assert span.attributes["db.system.name"] == "postgresql"
    assert counted("warehouse", "postgresql") >= 1
    labels = {"alias": "warehouse", "vendor": "postgresql"}
    assert (sample_value("django_db_new_connections_total", labels) or 0) >= 1


def test_composed_statement_is_shown_as_sql(postgresql: Any) -> None:
    from psycopg import sql

    with capture_spans() as spans, tracer.start_as_current_span("job"), postgresql.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier("pg_class")))

    (span,) = [span for span in spans if span.name != "job"]
    assert span.attributes["db.query.text"] == 'SELECT 1 FROM "pg_class" LIMIT 1'


def test_connection_that_cannot_be_made_is_counted(postgresql: Any) -> None:
    labels = {"alias": "warehouse", "vendor": "postgresql"}
    before = sample_value("django_db_new_connection_errors_total", labels) or 0
    postgresql.settings_dict.update(HOST="127.0.0.1", PORT="9")

    with pytest.raises(OperationalError):
        postgresql.ensure_connection()

    assert sample_value("django_db_new_connection_errors_total", labels) == before + 1


@pytest.mark.django_db
def test_queries_of_an_excluded_request_are_not_counted() -> None:
    before = counted()
    with capture_spans() as spans, capture_logs():
        Client().get("/health/")

    assert counted() == before
    assert spans == []


DRIVER_INSTRUMENTED = """
import sys
import django
from django.conf import settings

engine, instrumentor, name = sys.argv[1:4]
database = {"ENGINE": f"django.db.backends.{engine}", "NAME": name, "USER": sys.argv[4], "HOST": sys.argv[5]}
settings.configure(
    INSTALLED_APPS=["django_obs"],
    DATABASES={"default": database if engine == "postgresql" else {"ENGINE": database["ENGINE"], "NAME": name}},
    DJANGO_OBS={"METRICS": {"ENABLED": False}, "LOGS": {"ENABLED": False}},
)
django.setup()
from importlib import import_module

module, attribute = instrumentor.split(":")
getattr(import_module(module), attribute)().instrument()

from django.db import connection
from opentelemetry import trace
from django_obs.testing import capture_spans

connection.ensure_connection()
with capture_spans() as spans:
    with trace.get_tracer("test").start_as_current_span("job"), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute("SELECT 2")
job = next(span for span in spans if span.name == "job")
queries = [span for span in spans if span.parent_id == job.span_id and span.name == "SELECT"]
print(len(queries), sorted({span.scope for span in queries}))
"""


@pytest.mark.parametrize(
    ("engine", "instrumentor"),
    [
        ("sqlite3", "opentelemetry.instrumentation.sqlite3:SQLite3Instrumentor"),
        ("postgresql", "opentelemetry.instrumentation.psycopg:PsycopgInstrumentor"),
    ],
)
def test_driver_that_is_instrumented_makes_no_second_spans(
    request: pytest.FixtureRequest, engine: str, instrumentor: str
) -> None:
    pytest.importorskip(instrumentor.partition(":")[0])
    user, name, host = os.environ.get("PGUSER", "postgres"), ":memory:", os.environ.get("PGHOST", "127.0.0.1")
    if engine == "postgresql":
        request.getfixturevalue("postgresql")
        name = os.environ.get("PGDATABASE", "test")
    environ = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER_INSTRUMENTED, engine, instrumentor, name, user, host],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == ["2", f"['{instrumentor.partition(':')[0]}']\n"]


def measured(wrapped: Any) -> Any:
    """The wrapper of ours on a connection."""
    return wrapped.execute_wrappers[0].__self__


@pytest.mark.django_db
def test_connections_of_one_database_share_what_their_spans_have_in_common() -> None:
    connection.ensure_connection()
    owner, other = measured(connection).owner, connection.copy()
    second = owner.wrap(other)
    assert second is not measured(connection)
    assert owner.wrap(other) is second
    assert second._source(other) is measured(connection)._source(connection)


@pytest.mark.django_db
def test_wrappers_that_connections_share_are_told_apart() -> None:
    connection.ensure_connection()
    other = connection.copy("replica")
    other.execute_wrappers = connection.execute_wrappers[:]
    found = measured(connection).owner.wrap(other)
    assert (found.alias, measured(connection).alias) == ("replica", "default")


@pytest.mark.django_db
def test_statement_is_made_text_of_for_a_span_alone() -> None:
    connection.ensure_connection()
    asked: list[str] = []

    class Composed:
        def as_string(self, connection: Any) -> str:
            asked.append(threading.current_thread().name)
            return "SELECT 1 FROM shelf"

    def query() -> None:
        measured(connection).execute(lambda *_: None, Composed(), None, False, {"connection": connection})

    query()
    assert asked == []
    with capture_spans() as spans, tracer.start_as_current_span("job"):
        query()
    assert asked == ["MainThread"]
    assert [span.name for span in spans] == ["SELECT shelf", "job"]

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from prometheus_client import CollectorRegistry

from django_obs.context import Scope, bind, current
from django_obs.instrumentation.commands import CommandInstrumentation, is_job
from django_obs.metrics.jobs import CommandInstruments
from tests.instrumentation.support import make_command
from tests.traces.support import attributes, make_provider


@pytest.fixture
def wired(monkeypatch):
    """Commands that are measured by a provider and a registry of their own."""
    # What apps.py has installed steps aside for the test.
    execute = BaseCommand.execute
    monkeypatch.setattr(BaseCommand, "execute", getattr(execute, "__wrapped__", execute))
    provider, sink = make_provider()
    registry = CollectorRegistry()
    instruments = CommandInstruments(registry)
    roles = []
    CommandInstrumentation(
        tracer=lambda: provider.tracer("test"), instruments=lambda: instruments, set_role=roles.append
    ).install()
    sink.registry, sink.roles = registry, roles
    return sink


def test_command_is_one_root_span_with_its_name(wired):
    call_command(make_command("bill", lambda: None))
    (span,) = wired.spans()
    assert span.name == "bill"
    assert span.parent_span_id == b""
    assert attributes(span)["django.command.name"] == "bill"
    assert wired.roles == ["command"]


def test_command_has_scope_and_ids(wired):
    seen = []

    def handle():
        bind(batch=7)
        seen.append(current.get())

    call_command(make_command("bill", handle))
    (scope,) = seen
    assert (scope.kind, scope.name, scope.bound) == ("command", "bill", {"batch": 7})
    assert scope.trace_id == scope.request_id == wired.spans()[0].trace_id.hex()
    assert current.get() is None


def test_command_success_is_sampled(wired):
    call_command(make_command("bill", lambda: None))
    sample = wired.registry.get_sample_value
    assert sample("django_command_runs_total", {"command": "bill", "status": "success"}) == 1
    assert sample("django_command_duration_seconds_count", {"command": "bill"}) == 1
    assert sample("django_command_last_success_timestamp_seconds", {"command": "bill"}) > 1.6e9


def test_command_failure_is_error_span_and_sample(wired):
    def fail():
        raise CommandError("no money")

    with pytest.raises(CommandError):
        call_command(make_command("bill", fail))
    (span,) = wired.spans()
    assert span.status.code == 2
    assert [event.name for event in span.events] == ["exception"]
    sample = wired.registry.get_sample_value
    assert sample("django_command_runs_total", {"command": "bill", "status": "failure"}) == 1
    assert sample("django_command_last_success_timestamp_seconds", {"command": "bill"}) is None
    assert sample("django_command_last_run_timestamp_seconds", {"command": "bill"}) > 1.6e9


@pytest.mark.parametrize(("code", "status"), [(0, "success"), (None, "success"), (3, "failure"), ("why", "failure")])
def test_command_exit_status_tells_success(wired, code, status):
    def leave():
        raise SystemExit(code)

    with pytest.raises(SystemExit):
        call_command(make_command("bill", leave))
    assert wired.registry.get_sample_value("django_command_runs_total", {"command": "bill", "status": status}) == 1
    assert (wired.spans()[0].status.code == 2) == (status == "failure")


def test_command_inside_command_is_child_and_shares_scope(wired):
    scopes = []
    inner = make_command("inner", lambda: scopes.append(current.get()))

    def handle():
        scopes.append(current.get())
        call_command(inner)

    call_command(make_command("outer", handle))
    child, root = sorted(wired.spans(), key=lambda span: span.name)
    assert child.parent_span_id == root.span_id
    assert scopes[0] is scopes[1]
    assert scopes[0].name == "outer"


def test_command_inside_request_leaves_scope_and_role(wired):
    request = Scope("request")
    token = current.set(request)
    try:
        seen = []
        call_command(make_command("bill", lambda: seen.append(current.get())))
    finally:
        current.reset(token)
    assert seen == [request]
    assert wired.roles == []


@pytest.mark.parametrize(
    ("name", "package", "expected"),
    [
        ("bill", "shop", True),
        ("clearsessions", "django.contrib.sessions", True),
        ("migrate", "django.core", False),
        ("runserver", "django.contrib.staticfiles", False),
        ("runserver_plus", "django_extensions", False),
        ("runmetrics", "django_obs", False),
        ("celery", "shop", False),
    ],
)
def test_job_is_told_by_name_and_home(name, package, expected):
    assert is_job(make_command(name, lambda: None, package=package)) is expected


@pytest.mark.parametrize("said", [True, False])
def test_command_may_say_itself_whether_it_is_a_job(said):
    assert is_job(make_command("consume", lambda: None, django_obs_job=said)) is said


def test_command_that_is_no_job_leaves_nothing(wired):
    call_command(make_command("runmetrics", lambda: None))
    assert wired.spans() == []
    assert list(wired.registry.collect()) == []
    assert wired.roles == []


@pytest.mark.parametrize(("name", "unseen"), [("migrate", True), ("shell", False), ("runserver", False)])
def test_queries_of_djangos_own_tools_are_not_counted(wired, name, unseen):
    seen = []
    call_command(make_command(name, lambda: seen.append(current.get()), package="django.core"))
    assert [scope is not None and scope.excluded for scope in seen] == [unseen]
    assert current.get() is None


def test_broken_metrics_do_not_fail_the_command(monkeypatch, caplog):
    execute = BaseCommand.execute
    monkeypatch.setattr(BaseCommand, "execute", getattr(execute, "__wrapped__", execute))
    CommandInstrumentation(tracer=None, instruments=lambda: 1 / 0).install()
    call_command(make_command("bill", lambda: None))
    assert "metrics of the command bill could not be recorded" in caplog.text


@pytest.mark.parametrize("name", ["bill", "shell_plus"])
def test_tracing_that_cannot_be_built_does_not_fail_the_command(monkeypatch, caplog, name):
    execute = BaseCommand.execute
    monkeypatch.setattr(BaseCommand, "execute", getattr(execute, "__wrapped__", execute))
    CommandInstrumentation(tracer=lambda: 1 / 0, instruments=None).install()
    done = []
    call_command(make_command(name, lambda: done.append(1)))
    assert done == [1]
    assert "the tracing cannot be built" in caplog.text

"""Celery without a broker: eager runs, headers, what workers' signals say. tests/e2e/test_celery.py has the brokers."""

from __future__ import annotations

import logging
import subprocess
import sys
from time import time

import pytest

pytest.importorskip("celery")

from celery import Celery, signals
from celery.app.task import Context
from prometheus_client import CollectorRegistry

from django_obs.context import Scope, current
from django_obs.instrumentation.celery_tasks import HEADER, CeleryTasks, origin_of, queue_of_request, waited_seconds
from django_obs.instrumentation.tasks import BAGGAGE_LIMIT, TaskInstrumentation, pack, unpack
from django_obs.metrics.jobs import CeleryInstruments
from tests.traces.support import attributes, make_provider

NAMES = ("before_task_publish", "after_task_publish", "task_prerun", "task_postrun", "task_failure", "task_retry")


@pytest.fixture
def app():
    app = Celery("tests", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    return app


@pytest.fixture
def wired(monkeypatch):
    """Receivers with a provider and a registry of their own, in place of those that apps.py has connected."""
    for name in NAMES:
        monkeypatch.setattr(getattr(signals, name), "receivers", [])
        monkeypatch.setattr(getattr(signals, name), "sender_receivers_cache", {}, raising=False)
    provider, sink = make_provider()
    sink.tracer = provider.tracer("test")
    sink.registry = CollectorRegistry()
    instruments = CeleryInstruments(sink.registry)
    CeleryTasks(
        TaskInstrumentation(tracer=lambda: sink.tracer, celery_metrics=lambda: instruments, owns_logging=False)
    ).connect()
    return sink


def value(sink, name, /, **labels):
    return sum(
        sample.value
        for family in sink.registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_eager_task_is_child_with_a_scope_of_its_own(app, wired):
    seen = []

    @app.task(name="shop.ship")
    def ship():
        seen.append(current.get())

    request = Scope("request")
    request.request_id, request.bound = "r1", {"customer": 7}
    token = current.set(request)
    try:
        with wired.tracer.start_as_current_span("request"):
            ship.delay()
            assert current.get() is request
    finally:
        current.reset(token)
    task, root = wired.spans()
    assert (task.name, task.kind, task.parent_span_id) == ("run/shop.ship", 5, root.span_id)
    (scope,) = seen
    assert (scope.kind, scope.name, scope.request_id, scope.bound) == ("task", "shop.ship", "r1", {"customer": 7})
    assert scope.bound is not request.bound
    assert value(wired, "celery_task_succeeded_total", name="shop.ship", queue_name="eager") == 1
    assert value(wired, "celery_worker_tasks_active") == 0


@pytest.mark.parametrize("propagates", [True, False])
def test_eager_failure_shows_in_span_line_and_sample(app, wired, caplog, propagates):
    app.conf.task_eager_propagates = propagates

    @app.task(name="shop.fail")
    def fail():
        raise ValueError("no stock")

    with caplog.at_level(logging.INFO, "django_obs.access"):
        if propagates:
            with pytest.raises(ValueError, match="no stock"):
                fail.delay()
        else:
            fail.delay()
    (span,) = wired.spans()
    assert span.status.code == 2
    assert attributes(span)["error.type"] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]
    line = next(record for record in caplog.records if record.name == "django_obs.access")
    assert (line.levelname, line.task, line.outcome, line.error) == (
        "ERROR",
        "shop.fail",
        "failed",
        "ValueError: no stock",
    )
    assert value(wired, "celery_task_failed_total", name="shop.fail", exception="ValueError") == 1
    assert current.get() is None


def test_eager_retry_is_a_run_of_its_own(app, wired):
    @app.task(name="shop.stubborn", bind=True, max_retries=1)
    def stubborn(self):
        if self.request.retries < 1:
            raise self.retry(exc=RuntimeError("again"), countdown=0)

    with wired.tracer.start_as_current_span("request"):
        stubborn.delay()
    runs = sorted(wired.spans()[:-1], key=lambda span: span.start_time_unix_nano)
    assert {span.parent_span_id for span in runs} == {wired.spans()[-1].span_id}
    assert [attributes(span)["celery.state"] for span in runs] == ["RETRY", "SUCCESS"]
    assert "again" in attributes(runs[0])["celery.retry.reason"]
    assert value(wired, "celery_task_retried_total", name="shop.stubborn") == 1
    assert value(wired, "celery_task_succeeded_total", name="shop.stubborn") == 1


def test_expected_exception_is_no_error_span(app, wired):
    @app.task(name="shop.fussy", throws=(KeyError,))
    def fussy():
        raise KeyError("as agreed")

    fussy.delay()
    assert wired.spans()[0].status.code == 0
    assert value(wired, "celery_task_failed_total", name="shop.fussy", exception="KeyError") == 1


def test_failure_without_a_run_is_counted(app, wired):
    """A hard time limit kills the child; the worker's main process tells of it."""

    @app.task(name="shop.slow")
    def slow(): ...

    signals.task_failure.send(sender=slow, task_id="gone", exception=TimeoutError("too long"))
    assert value(wired, "celery_task_failed_total", name="shop.slow", exception="TimeoutError") == 1


def test_headers_bring_the_origin_back():
    scope = Scope("request")
    scope.request_id, scope.bound = "r1", {"customer": 7, "when": object}
    token = current.set(scope)
    try:
        packed = pack(1.5, "q")
    finally:
        current.reset(token)
    origin = origin_of(Context({HEADER: packed, "traceparent": "00-1-2-01"}))
    assert (origin.request_id, origin.sent, origin.queue) == ("r1", 1.5, "q")
    assert origin.bound == {"customer": 7, "when": str(object)}
    assert origin.carrier == {"traceparent": "00-1-2-01"}


def test_too_much_context_stays_at_home():
    scope = Scope("request")
    scope.request_id, scope.bound = "r1", {"blob": "x" * BAGGAGE_LIMIT}
    token = current.set(scope)
    try:
        origin = unpack(pack(0.0, "q"), {})
    finally:
        current.reset(token)
    assert (origin.request_id, origin.bound) == ("r1", {})


@pytest.mark.parametrize("packed", [None, 7, "", "{", "[]", '"text"', '{"bound": 3, "sent": "now", "request_id": []}'])
def test_strange_header_says_nothing(packed):
    origin = unpack(packed, {})
    assert (origin.request_id, origin.bound, origin.sent, origin.queue) == ("", {}, None, "")


@pytest.mark.parametrize("sent", ["NaN", "-Infinity", "-1e300", "1" + "0" * 400, "-1" + "0" * 400])
def test_message_that_was_never_sent_has_not_waited(sent):
    assert waited_seconds(Context({}), unpack(f'{{"sent": {sent}}}', {})) in (None, 0.0)


def test_task_whose_start_cannot_be_measured_leaves_nothing_current(app, wired, monkeypatch):
    def refuse(*args):
        raise RuntimeError("no metrics")

    monkeypatch.setattr(CeleryInstruments, "started", refuse)

    @app.task(name="shop.ship")
    def ship():
        return current.get().name

    assert ship.delay().get() == "shop.ship"
    assert current.get() is None
    assert [span.name for span in wired.spans()] == ["run/shop.ship"]


def test_exception_that_cannot_be_printed_costs_neither_line_nor_sample(app, wired, caplog):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    @app.task(name="shop.fail")
    def fail():
        raise Broken

    app.conf.task_eager_propagates = True
    with caplog.at_level(logging.INFO, "django_obs.access"), pytest.raises(Broken):
        fail.delay()
    (line,) = (record for record in caplog.records if record.name == "django_obs.access")
    assert line.error.endswith("Broken: <unprintable Broken>")
    assert value(wired, "celery_task_failed_total", name="shop.fail", exception="Broken") == 1
    (span,) = wired.spans()
    assert span.status.code == 2


def test_time_in_queue_counts_from_the_eta():
    origin = unpack(f'{{"sent": {time() - 60}}}', {})
    assert waited_seconds(Context({}), origin) == pytest.approx(60, abs=5)
    assert waited_seconds(Context({"eta": "2999-01-01T00:00:00+00:00"}), origin) == 0
    assert waited_seconds(Context({"eta": "tomorrow"}), origin) is None


def test_queue_is_what_the_sender_called_it():
    assert queue_of_request(Context({HEADER: '{"queue": "mail"}', "delivery_info": {"routing_key": "m.#"}})) == "mail"
    assert queue_of_request(Context({"delivery_info": {"routing_key": "other"}})) == "other"


def test_instrumentor_of_opentelemetry_keeps_its_spans(app, wired):
    CeleryInstrumentor = pytest.importorskip("opentelemetry.instrumentation.celery").CeleryInstrumentor

    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=wired.tracer.provider)
    try:

        @app.task(name="shop.ship")
        def ship(): ...

        ship.delay()
    finally:
        instrumentor.uninstrument()
    assert wired.names() == ["run/shop.ship"]
    assert value(wired, "celery_task_succeeded_total", name="shop.ship") == 1


def test_celery_is_not_imported_for_its_own_sake():
    code = (
        "import sys, django\nfrom django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django_obs'])\ndjango.setup()\nprint('celery' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

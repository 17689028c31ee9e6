from __future__ import annotations

import logging

import pytest

pytest.importorskip("django.tasks", reason="Django's Tasks are of 6.0 and later")

from django.tasks import signals, task
from django.test import override_settings
from prometheus_client import CollectorRegistry

from django_obs.context import Scope, bind, current
from django_obs.instrumentation.django_tasks import REMEMBERED, DjangoTasks
from django_obs.instrumentation.tasks import TaskInstrumentation
from django_obs.metrics.jobs import DjangoTaskInstruments
from tests.traces.support import attributes, make_provider

seen: list[Scope | None] = []


@task
def ship(order: int) -> None:
    bind(order=order)
    seen.append(current.get())


@task
def fail() -> None:
    raise ValueError("no stock")


@pytest.fixture
def wired(monkeypatch):
    for signal in (signals.task_enqueued, signals.task_started, signals.task_finished):
        monkeypatch.setattr(signal, "receivers", [])
        signal.sender_receivers_cache.clear()
    provider, sink = make_provider()
    sink.tracer = provider.tracer("test")
    sink.registry = CollectorRegistry()
    instruments = DjangoTaskInstruments(sink.registry)
    sink.tasks = DjangoTasks(TaskInstrumentation(tracer=lambda: sink.tracer, django_metrics=lambda: instruments))
    sink.tasks.connect()
    seen.clear()
    return sink


def test_task_is_child_of_its_sending(wired):
    request = Scope("request")
    request.request_id, request.bound = "r1", {"customer": 7}
    token = current.set(request)
    try:
        with wired.tracer.start_as_current_span("request"):
            ship.enqueue(3)
            assert current.get() is request
    finally:
        current.reset(token)
    by_name = {span.name: span for span in wired.spans()}
    producer, consumer = by_name[f"enqueue/{__name__}.ship"], by_name[f"run/{__name__}.ship"]
    assert (producer.kind, consumer.kind) == (4, 5)
    assert producer.parent_span_id == by_name["request"].span_id
    assert consumer.parent_span_id == producer.span_id
    assert attributes(consumer)["messaging.message.id"] == attributes(producer)["messaging.message.id"]
    (scope,) = seen
    assert (scope.kind, scope.request_id) == ("task", "r1")
    assert scope.bound == {"customer": 7, "order": 3}
    assert request.bound == {"customer": 7}


def test_task_is_counted_and_has_its_line(wired, caplog):
    with caplog.at_level(logging.INFO, "django_obs.access"):
        ship.enqueue(3)
    labels = {"task": f"{__name__}.ship", "queue_name": "default", "backend": "default"}
    for name in ("sent_total", "started_total", "succeeded_total", "runtime_seconds_count", "queue_seconds_count"):
        assert wired.registry.get_sample_value(f"django_task_{name}", labels) == 1, name
    (line,) = (record for record in caplog.records if record.name == "django_obs.access")
    assert (line.outcome, line.queue, line.task) == ("succeeded", "default", f"{__name__}.ship")


def test_failed_task_shows_in_span_line_and_sample(wired, caplog):
    with caplog.at_level(logging.INFO, "django_obs.access"):
        fail.enqueue()
    span = next(span for span in wired.spans() if span.kind == 5)
    assert span.status.code == 2
    assert [event.name for event in span.events] == ["exception"]
    (line,) = (record for record in caplog.records if record.name == "django_obs.access")
    assert (line.outcome, line.error) == ("failed", "ValueError: no stock")
    labels = {"task": f"{__name__}.fail", "queue_name": "default", "backend": "default"}
    assert wired.registry.get_sample_value("django_task_failed_total", labels) == 1
    assert current.get() is None


def test_run_of_another_process_starts_a_trace_of_its_own(wired):
    result = ship.enqueue(1)
    wired.groups.clear()
    signals.task_started.send(object, task_result=result)
    signals.task_finished.send(object, task_result=result)
    (span,) = wired.spans()
    assert span.parent_span_id == b""
    assert attributes(span)["messaging.message.id"] == result.id


@override_settings(TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}})
def test_what_is_sent_and_never_run_here_is_forgotten(wired):
    for order in range(REMEMBERED + 5):
        ship.enqueue(order)
    assert len(wired.tasks.origins) == REMEMBERED

"""Django's Tasks framework (Django 6.0 and later), through its signals, whatever the backend."""

from __future__ import annotations

import sys
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .tasks import Origin, TaskRun, outgoing_context, swallowed

if TYPE_CHECKING:
    from .tasks import TaskInstrumentation

# Tasks that this process has sent and may come to run itself. The framework has no room for headers, so that a backend
# with workers of its own starts a new trace for each run; both spans name the same message id.
REMEMBERED = 1024


class DjangoTasks:
    """Receivers of the signals of ``django.tasks``."""

    def __init__(self, instrumentation: TaskInstrumentation) -> None:
        self.instrumentation = instrumentation
        self.origins: OrderedDict[str, Origin] = OrderedDict()
        self.running: dict[str, TaskRun] = {}

    def connect(self) -> None:
        """Connect the receivers."""
        from django.tasks import signals

        for signal, receiver in (
            (signals.task_enqueued, self.sent),
            (signals.task_started, self.starts),
            (signals.task_finished, self.ended),
        ):
            signal.connect(swallowed(receiver), weak=False, dispatch_uid=f"django_obs.{receiver.__name__}")

    @cached_property
    def tracer(self) -> Any | None:
        """What makes the spans, if they are on; not before there is one to make."""
        make = self.instrumentation.tracer
        return make() if make is not None else None

    @cached_property
    def metrics(self) -> Any | None:
        """What keeps the metrics, if they are on."""
        make = self.instrumentation.django_metrics
        return make() if make is not None else None

    def sent(self, task_result: Any = None, **kwargs: Any) -> None:
        """Make the producer span, and remember where a run in this process comes from."""
        task = task_result.task
        request_id, bound = outgoing_context()
        context = None
        if self.tracer is not None:
            from opentelemetry import trace

            span = self.tracer.start_span(
                f"enqueue/{task.module_path}",
                kind=trace.SpanKind.PRODUCER,
                attributes=attributes_of(task_result, "send", "enqueue"),
            )
            context = trace.set_span_in_context(span)
            span.end()
        self.origins[task_result.id] = Origin({}, request_id, bound, context=context)
        if len(self.origins) > REMEMBERED:
            self.origins.popitem(last=False)
        if (metrics := self.metrics) is not None:
            metrics.sent(task.module_path, task.queue_name, task_result.backend)

    def starts(self, task_result: Any = None, **kwargs: Any) -> None:
        """Make the run current."""
        task = task_result.task
        origin = self.origins.pop(task_result.id, None) or Origin({})
        run = TaskRun(task.module_path)
        waited = waited_seconds(task_result)
        run.start(
            self.tracer,
            f"run/{task.module_path}",
            attributes_of(task_result, "process", "run"),
            origin,
            task_result.id,
        )
        if waited is not None:
            run.scope.queue_ns = round(waited * 1e9)
            if run.span is not None:
                run.span.set_attribute("django_obs.queue.duration", waited)
        self.running[task_result.id] = run
        if (metrics := self.metrics) is not None:
            metrics.started(task.module_path, task.queue_name, task_result.backend, waited)

    def ended(self, task_result: Any = None, **kwargs: Any) -> None:
        """Record the finished run in all signals."""
        run = self.running.pop(task_result.id, None)
        if run is None:
            return
        try:
            task, status = task_result.task, str(task_result.status)
            if status != "SUCCESSFUL" and (error := sys.exc_info()[1]) is not None:
                # Backends send the signal while they handle what the task raised.
                run.fail(error)
            if run.span is not None and run.scope.db_count:
                run.span.set_attribute("django_obs.db.query_count", run.scope.db_count)
                run.span.set_attribute("django_obs.db.duration", run.scope.db_ns / 1e9)
            if (metrics := self.metrics) is not None:
                metrics.finished(task.module_path, task.queue_name, task_result.backend, status, run.seconds)
            if self.instrumentation.access:
                fields: dict[str, Any] = {"queue": task.queue_name, "backend": task_result.backend}
                queue_ns = run.scope.queue_ns
                if queue_ns is not None:
                    fields["queue_ms"] = round(queue_ns / 1e6, 3)
                run.write_line("succeeded" if status == "SUCCESSFUL" else "failed", task_result.id, **fields)
        finally:
            run.finish()


def attributes_of(task_result: Any, kind: str, operation: str) -> dict[str, Any]:
    """Return the attributes of a span of this task."""
    return {
        "messaging.system": "django.tasks",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": task_result.task.queue_name,
        "messaging.message.id": task_result.id,
        "django.task.name": task_result.task.module_path,
        "django.task.backend": task_result.backend,
    }


def waited_seconds(task_result: Any) -> float | None:
    """Return how long the task was due before it started, by the backend's own times."""
    since, until = task_result.enqueued_at, task_result.last_attempted_at or task_result.started_at
    if since is None or until is None or len(task_result.worker_ids) > 1:
        return None
    after = task_result.task.run_after
    return float(max(0.0, (until - (max(since, after) if after is not None else since)).total_seconds()))

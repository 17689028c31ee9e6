"""Celery, through its signals: in web processes that send, in workers that receive and run."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from time import time
from typing import TYPE_CHECKING, Any

from django_obs.lifecycle import guard

from .tasks import Origin, TaskRun, message_of, pack, swallowed, swallowing, unpack

if TYPE_CHECKING:
    from .tasks import TaskInstrumentation

logger = logging.getLogger("django_obs")

# The header that carries what the propagators' own do not. Celery copies headers it does not know into retries.
HEADER = "django_obs"
# kombu's word for the transport -> the conventions' word for the system.
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/messaging/#messaging-system
SYSTEMS = {
    "amqp": "rabbitmq",
    "pyamqp": "rabbitmq",
    "amqps": "rabbitmq",
    "sqs": "aws_sqs",
    "rediss": "redis",
    "sentinel": "redis",
}
OUTCOMES = {"SUCCESS": "succeeded", "FAILURE": "failed", "RETRY": "retried", "REJECTED": "rejected"}


class CeleryTasks:
    """Receivers of Celery's signals."""

    def __init__(self, instrumentation: TaskInstrumentation) -> None:
        self.instrumentation = instrumentation
        # A list for each id: a task that is retried eagerly may run inside itself.
        self.running: dict[str, list[TaskRun]] = {}
        self.sending = threading.local()

    def connect(self) -> None:
        """Connect the receivers that have something to do."""
        from celery import signals  # type: ignore[import-untyped]

        receivers: dict[str, Callable[..., None]] = {
            "before_task_publish": self.sends,
            "after_task_publish": self.sent,
            "task_prerun": self.starts,
            "task_postrun": self.ended,
            "task_failure": self.failed,
            "task_retry": self.retried,
            "worker_init": self.worker_starts,
            "worker_process_init": self.child_starts,
            "worker_ready": self.worker_ready,
            "beat_init": self.beat_starts,
        }
        if self.instrumentation.celery_metrics is not None:
            receivers |= {
                "task_received": self.received,
                "task_revoked": self.revoked,
                "worker_shutdown": self.worker_stops,
            }
        if self.instrumentation.owns_logging:
            receivers["setup_logging"] = self.logging_asked_for
        for name, receiver in receivers.items():
            getattr(signals, name).connect(swallowed(receiver), weak=False, dispatch_uid=f"django_obs.{name}")

    @cached_property
    def tracer(self) -> Any | None:
        """What makes the spans, if they are on; not before there is one to make."""
        make = self.instrumentation.tracer
        return make() if make is not None else None

    @cached_property
    def metrics(self) -> Any | None:
        """What keeps the metrics, if they are on."""
        make = self.instrumentation.celery_metrics
        return make() if make is not None else None

    @cached_property
    def system(self) -> str:
        """The conventions' name for the broker."""
        from celery import current_app

        # The URL alone: a connection, even one that is never opened, complains about a project without a broker.
        url = current_app.conf.broker_write_url or current_app.conf.broker_url or ""
        first = url[0] if isinstance(url, (list, tuple)) and url else url
        transport = str(first).partition("://")[0]
        return SYSTEMS.get(transport, transport) or "celery"

    # -- Sending -------------------------------------------------------------------------------------------------------

    def sends(
        self,
        sender: str = "",
        headers: dict[str, Any] | None = None,
        routing_key: str | None = None,
        declare: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start the producer span and put the context into the message's headers."""
        if headers is None:
            return
        queue = self.sending.queue = queue_of(declare, routing_key)
        headers[HEADER] = pack(time(), queue)
        if self.tracer is None or is_instrumented_elsewhere():
            return
        from opentelemetry import propagate, trace

        span = self.tracer.start_span(
            f"apply_async/{sender}",
            kind=trace.SpanKind.PRODUCER,
            attributes={
                "messaging.system": self.system,
                "messaging.operation.name": "apply_async",
                "messaging.operation.type": "send",
                "messaging.destination.name": queue,
                "messaging.message.id": headers.get("id") or "",
                "celery.task_name": sender,
            },
        )
        propagate.inject(headers, trace.set_span_in_context(span))
        # There is no signal for a message that could not be published: its span is overwritten by the next one's.
        self.sending.span = span

    def sent(self, sender: str = "", routing_key: str | None = None, **kwargs: Any) -> None:
        """End the producer span and count the message."""
        span = getattr(self.sending, "span", None)
        if span is not None:
            self.sending.span = None
            span.end()
        if (metrics := self.metrics) is not None:
            metrics.sent(sender, getattr(self.sending, "queue", None) or queue_of(None, routing_key))

    # -- Running -------------------------------------------------------------------------------------------------------

    def starts(self, task_id: str = "", task: Any = None, **kwargs: Any) -> None:
        """Make the run current."""
        request = task.request
        run = TaskRun(task.name)
        origin = None if request.is_eager else origin_of(request)
        queue = queue_of_request(request)
        waited = waited_seconds(request, origin)
        tracer = None if is_instrumented_elsewhere() else self.tracer
        run.start(
            tracer,
            f"run/{task.name}",
            {
                "messaging.system": self.system,
                "messaging.operation.name": "run",
                "messaging.operation.type": "process",
                "messaging.destination.name": queue,
                "messaging.message.id": task_id,
                "celery.task_name": task.name,
                "celery.retries": request.retries or 0,
            },
            origin,
            task_id,
        )
        self.running.setdefault(task_id, []).append(run)
        if waited is not None:
            run.scope.queue_ns = round(waited * 1e9)
            if run.span is not None:
                run.span.set_attribute("django_obs.queue.duration", waited)
        if (metrics := self.metrics) is not None:
            metrics.started(task.name, queue, waited)

    def failed(self, sender: Any = None, task_id: str = "", exception: Any = None, **kwargs: Any) -> None:
        """Record what a task raised. Where no run is open, the process that had it is gone: count it here."""
        runs = self.running.get(task_id)
        if runs:
            if not isinstance(exception, getattr(sender, "throws", None) or ()):
                runs[-1].fail(exception)
            else:
                runs[-1].scope.error = exception
            return
        name = getattr(sender, "name", "")
        if (metrics := self.metrics) is not None:
            request = getattr(sender, "request", None)
            queue = queue_of_request(request)
            metrics.failed(name, queue, type(exception).__name__)
        if self.instrumentation.access:
            run = TaskRun(name)
            run.scope.error = exception
            run.write_line("failed", task_id)

    def retried(self, request: Any = None, reason: Any = None, **kwargs: Any) -> None:
        """Record why a task will be tried again."""
        for run in self.running.get(getattr(request, "id", None) or "", ())[-1:]:
            cause = getattr(reason, "exc", None)
            run.scope.error = cause if isinstance(cause, BaseException) else reason
            if run.span is not None:
                run.span.set_attribute("celery.retry.reason", message_of(reason))
                if isinstance(cause, BaseException):
                    run.span.record_exception(cause)

    def ended(self, task_id: str = "", task: Any = None, state: str | None = None, **kwargs: Any) -> None:
        """Record the finished run in all signals."""
        runs = self.running.get(task_id)
        if not runs:
            return
        run = runs.pop()
        if not runs:
            del self.running[task_id]
        try:
            self.record(run, task_id, task, state)
        finally:
            run.finish()

    def record(self, run: TaskRun, task_id: str, task: Any, state: str | None) -> None:
        """Write samples, line and the span's last attributes."""
        if state is None:
            state = self.state_of_raised(run)
        request, scope = task.request, run.scope
        queue = queue_of_request(request)
        error = scope.error
        if run.span is not None:
            run.span.set_attribute("celery.state", state)
            if scope.db_count:
                run.span.set_attribute("django_obs.db.query_count", scope.db_count)
                run.span.set_attribute("django_obs.db.duration", scope.db_ns / 1e9)
        if (metrics := self.metrics) is not None:
            with swallowing("CeleryInstruments.finished"):
                exception = type(error).__name__ if error is not None else ""
                metrics.finished(task.name, queue, state, run.seconds, exception)
        if self.instrumentation.access:
            fields: dict[str, Any] = {"queue": queue, "retries": request.retries or 0}
            queue_ns = scope.queue_ns
            if queue_ns is not None:
                fields["queue_ms"] = round(queue_ns / 1e6, 3)
            run.write_line(OUTCOMES.get(state, state.lower()), task_id, **fields)

    def state_of_raised(self, run: TaskRun) -> str:
        """Tell how a run ended that Celery names no state for: an exception goes through it to an eager caller."""
        error = sys.exc_info()[1]
        if error is None:
            return "FAILURE"
        if type(error).__name__ == "Retry":
            return "RETRY"
        run.fail(error)
        return "FAILURE"

    # -- The worker ----------------------------------------------------------------------------------------------------

    def received(self, request: Any = None, **kwargs: Any) -> None:
        """Count a task that the worker's main process took from the queue."""
        queue = queue_of_request(request)
        self.metrics.received(request.name, queue)  # type: ignore[union-attr]

    def revoked(self, request: Any = None, **kwargs: Any) -> None:
        """Count a task that was revoked, expired or terminated."""
        queue = queue_of_request(request)
        self.metrics.revoked(getattr(request, "name", None) or getattr(request, "task", ""), queue)  # type: ignore[union-attr]

    def worker_starts(self, **kwargs: Any) -> None:
        """Say what kind of process this is, and import the tracing before the children of the pool are forked."""
        self.instrumentation.set_role("task")
        _ = self.tracer

    def child_starts(self, **kwargs: Any) -> None:
        """Begin to follow orders and to watch this child of a pool before its first task."""
        self.instrumentation.set_role("task")
        guard.ensure_process()

    def beat_starts(self, **kwargs: Any) -> None:
        """Say what kind of process this is."""
        self.instrumentation.set_role("beat")

    def worker_ready(self, **kwargs: Any) -> None:
        """Begin to follow orders and to watch the main process, and say that the worker takes tasks."""
        guard.ensure_process()
        if (metrics := self.metrics) is not None:
            metrics.worker_up(True)

    def worker_stops(self, **kwargs: Any) -> None:
        """Say that the worker has stopped."""
        self.metrics.worker_up(False)  # type: ignore[union-attr]

    def logging_asked_for(self, logfile: Any = None, format: str | None = None, **kwargs: Any) -> None:  # noqa: A002
        """Keep Celery from emptying the root logger: it configures no logging where somebody listens to this signal.

        A file that the operator asked for is written all the same. Levels are those of ``LOGS.FILTER``.
        """
        if logfile:
            from celery import current_app

            current_app.log.setup_handlers(logging.getLogger(), logfile, format, False)


def origin_of(request: Any) -> Origin:
    """Return what the message's headers say; Celery shows them as attributes of the request."""
    from opentelemetry import propagate

    carrier = {}
    for field in propagate.get_global_textmap().fields:
        value = request.get(field)
        if isinstance(value, str):
            carrier[field] = value
    return unpack(request.get(HEADER), carrier)


def waited_seconds(request: Any, origin: Origin | None) -> float | None:
    """Return how long the task was due before it started; None where nobody said when it was sent."""
    if origin is None or origin.sent is None:
        return None
    due = origin.sent
    eta = request.eta
    if isinstance(eta, str):
        try:
            at = datetime.fromisoformat(eta)
        except ValueError:
            return None
        due = max(due, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    # Two machines' clocks differ a little.
    return max(0.0, time() - due)


def queue_of(declare: Any, routing_key: str | None) -> str:
    """Return the name of the queue, as far as it is known; a run that went through none is ``eager``."""
    name = getattr(declare[0], "name", None) if isinstance(declare, (list, tuple)) and declare else None
    return name or routing_key or "eager"


def queue_of_request(request: Any) -> str:
    """Return the name of the queue that a task or a worker's request came through."""
    # A worker's main process has the headers in a dict, a task has them as attributes.
    headers = getattr(request, "request_dict", None)
    packed = headers.get(HEADER) if isinstance(headers, dict) else getattr(request, HEADER, None)
    queue = unpack(packed, {}).queue if packed is not None else ""
    return queue or queue_of(None, (getattr(request, "delivery_info", None) or {}).get("routing_key"))


def is_instrumented_elsewhere() -> bool:
    """Tell whether OpenTelemetry's own instrumentor makes the spans; then ours would be second ones."""
    module = sys.modules.get("opentelemetry.instrumentation.celery")
    instrumentor = getattr(module, "CeleryInstrumentor", None)
    return bool(getattr(getattr(instrumentor, "_instance", None), "is_instrumented_by_opentelemetry", False))

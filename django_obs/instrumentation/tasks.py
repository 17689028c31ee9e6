"""Tasks: send -> headers -> [broker] -> one scope, span, line and set of samples per run, as a request has.

This module knows what all task frameworks have in common; ``celery_tasks`` and ``django_tasks`` know theirs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from time import perf_counter_ns
from typing import Any, NamedTuple

from django_obs.context import Scope, bound_fields, current
from django_obs.lifecycle import guard
from django_obs.semconv import is_request_id

logger = logging.getLogger("django_obs")
line = logging.getLogger("django_obs.access")

# Seconds since the epoch that no clock shows; a message may say anything.
TIME_LIMIT = 2**40
# Bytes of bound context that travel with a task. More is not context but data, and belongs into the arguments.
BAGGAGE_LIMIT = 8192

LEVELS = {"failed": logging.ERROR, "retried": logging.WARNING, "rejected": logging.WARNING}


class TaskInstrumentation:
    """Measures Celery's tasks and Django's, each once it is connected: when the project has imported it.

    ``tracer`` returns what makes the spans; ``celery_metrics`` and ``django_metrics`` what keeps the metrics;
    ``access`` tells whether each run gets its line; ``owns_logging`` whether Celery shall leave the root logger alone;
    ``set_role`` is told ``"task"`` or ``"beat"``. A signal that is off is None or False.
    """

    def __init__(
        self,
        *,
        tracer: Callable[[], Any] | None,
        celery_metrics: Callable[[], Any] | None = None,
        django_metrics: Callable[[], Any] | None = None,
        access: bool = True,
        owns_logging: bool = True,
        set_role: Callable[[str], None] = lambda role: None,
    ) -> None:
        self.tracer = tracer
        self.celery_metrics = celery_metrics
        self.django_metrics = django_metrics
        self.access = access
        self.owns_logging = owns_logging
        self.set_role = set_role

    def connect_celery(self) -> None:
        """Connect to Celery's signals."""
        from .celery_tasks import CeleryTasks

        CeleryTasks(self).connect()

    def connect_django(self) -> None:
        """Connect to the signals of Django's Tasks."""
        from .django_tasks import DjangoTasks

        DjangoTasks(self).connect()


class Origin(NamedTuple):
    """What a task knows of the work that sent it."""

    carrier: Mapping[str, Any]  # the propagators' fields
    request_id: str = ""
    bound: Mapping[str, Any] = {}
    sent: float | None = None  # seconds since the epoch
    queue: str = ""
    context: Any = None  # the sender's, where it is this process


class TaskRun:
    """One run of one task: from ``start()`` to ``finish()`` its scope and its span are the current ones."""

    __slots__ = ("_context_token", "_scope_token", "scope", "span", "started")

    def __init__(self, name: str) -> None:
        self.started = perf_counter_ns()
        self.scope = Scope("task", started=self.started)
        self.scope.name = name
        self.span: Any = None
        self._context_token: Any = None
        self._scope_token: Any = None

    def start(
        self, tracer: Any | None, span_name: str, attributes: dict[str, Any], origin: Origin | None, task_id: str
    ) -> None:
        """Make the run current. Without an origin it goes on with what is current here: an eager run."""
        guard.ensure_process()
        scope, outer = self.scope, current.get()
        if origin is not None:
            scope.request_id = origin.request_id
            scope.bound.update(origin.bound)
        elif outer is not None:
            scope.request_id = outer.request_id
            scope.bound.update(outer.bound)
        if tracer is not None:
            self._start_span(tracer, span_name, attributes, origin)
        scope.request_id = scope.request_id or scope.trace_id or task_id
        self._scope_token = current.set(scope)

    def _start_span(self, tracer: Any, name: str, attributes: dict[str, Any], origin: Origin | None) -> None:
        from opentelemetry import context, propagate, trace

        # A worker's thread has no context of its own; what a library left current there is not this task's parent.
        if origin is None:
            parent = context.get_current()
        elif origin.context is not None:
            parent = origin.context
        else:
            parent = propagate.extract(origin.carrier, context.Context())
        span = self.span = tracer.start_span(name, parent, trace.SpanKind.CONSUMER, attributes)
        self._context_token = context.attach(trace.set_span_in_context(span, parent))
        self.scope.span = span
        self.scope.trace_id = f"{span.get_span_context().trace_id:032x}"

    def fail(self, error: BaseException) -> None:
        """Record the exception of the run on its span."""
        self.scope.error = error
        span = self.span
        if span is not None and span.is_recording():
            from opentelemetry.trace import Status, StatusCode

            span.record_exception(error)
            span.set_attribute("error.type", type_name(error))
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message_of(error)}"))

    @property
    def seconds(self) -> float:
        """Return how long the run has taken."""
        return (perf_counter_ns() - self.started) * 1e-9

    def write_line(self, outcome: str, task_id: str, **fields: Any) -> None:
        """Write the canonical line of the run. The framework's own line has the traceback."""
        scope = self.scope
        error = scope.error
        level = LEVELS.get(outcome, logging.INFO)
        if not line.isEnabledFor(level):
            return
        extra = {"task": scope.name, "task_id": task_id, "outcome": outcome, **fields}
        extra["duration_ms"] = round(self.seconds * 1000, 3)
        extra["db_queries"] = scope.db_count
        extra["db_ms"] = round(scope.db_ns / 1e6, 3)
        extra["cache_hits"] = scope.cache_hits
        extra["cache_misses"] = scope.cache_misses
        if error is not None:
            extra["error"] = f"{type_name(error)}: {message_of(error)}"
        line.log(level, "task %s %s", scope.name, outcome, extra=extra)

    def finish(self) -> None:
        """End the span and make current what was before."""
        if self.span is not None:
            self.span.end()
        if self._context_token is not None:
            from django_obs.traces.propagation import detach

            detach(self._context_token)
        if self._scope_token is not None:
            try:
                current.reset(self._scope_token)
            except ValueError:
                current.set(None)


def outgoing_context() -> tuple[str, dict[str, Any]]:
    """Return the request id and the bound fields of the work that sends a task."""
    scope = current.get()
    return (scope.request_id if scope is not None else ""), dict(bound_fields() or {})


def pack(sent: float, queue: str) -> str:
    """Return, as text for a message header, what a task shall know of the work that sends it now."""
    request_id, bound = outgoing_context()
    said = {"request_id": request_id, "sent": sent, "queue": queue}
    packed = json.dumps({**said, "bound": bound}, default=str)
    return packed if len(packed) <= BAGGAGE_LIMIT else json.dumps(said)


def unpack(packed: Any, carrier: Mapping[str, Any]) -> Origin:
    """Return what a header of ``pack()`` says; whatever else stands there says nothing."""
    with suppress(ValueError, TypeError):
        said = json.loads(packed)
        if isinstance(said, dict):
            request_id, bound, sent, queue = (said.get(key) for key in ("request_id", "bound", "sent", "queue"))
            return Origin(
                carrier,
                request_id if isinstance(request_id, str) and is_request_id(request_id) else "",
                bound if isinstance(bound, dict) else {},
                sent
                if isinstance(sent, (int, float)) and not isinstance(sent, bool) and 0 <= sent < TIME_LIMIT
                else None,
                queue if isinstance(queue, str) else "",
            )
    return Origin(carrier)


def type_name(error: BaseException) -> str:
    """Return the type of an exception as the conventions write it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Return what an exception says, even if its ``__str__`` fails."""
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


_failed: set[str] = set()


@contextmanager
def swallowing(step: str) -> Iterator[None]:
    """Report a failure of ours once per step; the task goes on."""
    try:
        yield
    except Exception:
        if step not in _failed:
            _failed.add(step)
            logger.warning("%s failed; reported once", step, exc_info=True)


def swallowed(receiver: Callable[..., None]) -> Callable[..., None]:
    """Return a signal receiver that never raises."""

    @wraps(receiver)
    def safe_receiver(*args: Any, **kwargs: Any) -> None:
        with swallowing(receiver.__qualname__):
            receiver(*args, **kwargs)

    return safe_receiver

"""What is recorded for tasks and commands: a finished piece of work -> counters, histograms, the time of the last run.

Celery's names and labels are those of celery-exporter, whose dashboards and alerts are in use:
https://github.com/danihodovic/celery-exporter.
"""

from __future__ import annotations

import logging
import socket
import threading
from time import time
from typing import Any

logger = logging.getLogger("django_obs")

INFINITY = float("inf")
# From a look-up to a night's batch.
JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, INFINITY)
# A queue that keeps up is waited in for milliseconds, one that does not for hours.
QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, INFINITY)


class Nothing:
    """Stands in for a metric whose name somebody else has given another shape."""

    def labels(self, *values: str) -> Nothing:
        return self

    def inc(self, amount: float = 1) -> None: ...
    def dec(self, amount: float = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, amount: float) -> None: ...


class Instruments:
    """Makes a metric when something is first recorded to it, so that a process has only the metrics that it uses."""

    def __init__(self, registry: Any = None) -> None:
        self._registry = registry
        self._made: dict[str, Any] = {}
        self._making = threading.Lock()

    def _metric(self, kind: str, name: str, documentation: str, labels: tuple[str, ...], **options: Any) -> Any:
        metric = self._made.get(name)
        if metric is None:
            with self._making:
                metric = self._made.get(name) or self._make(kind, name, documentation, labels, options)
                self._made[name] = metric
        return metric

    def _make(self, kind: str, name: str, documentation: str, labels: tuple[str, ...], options: dict[str, Any]) -> Any:
        import prometheus_client

        registry = self._registry or prometheus_client.REGISTRY
        try:
            return getattr(prometheus_client, kind)(name, documentation, labels, registry=registry, **options)
        except ValueError:
            other = registry._names_to_collectors.get(name)
            if getattr(other, "_labelnames", None) == labels and type(other).__name__ == kind:
                return other
            logger.warning("The metric %s is not recorded: the project has another one of this name.", name)
            return Nothing()

    def _count(self, name: str, documentation: str, /, **labels: str) -> None:
        self._metric("Counter", name, documentation, tuple(labels)).labels(*labels.values()).inc()

    def _observe(
        self, name: str, documentation: str, seconds: float, buckets: tuple[float, ...], /, **labels: str
    ) -> None:
        metric = self._metric("Histogram", name, documentation, tuple(labels), buckets=buckets)
        metric.labels(*labels.values()).observe(seconds)

    def _gauge(self, name: str, documentation: str, mode: str, /, **labels: str) -> Any:
        metric = self._metric("Gauge", name, documentation, tuple(labels), multiprocess_mode=mode)
        return metric.labels(*labels.values())


class CommandInstruments(Instruments):
    """The metrics of management commands."""

    def command_finished(self, command: str, seconds: float, error: BaseException | None) -> None:
        """Count a run that took so many seconds, and keep when it was."""
        now = time()
        status = "success" if error is None else "failure"
        self._count("django_command_runs_total", "Runs of management commands.", command=command, status=status)
        self._observe(
            "django_command_duration_seconds",
            "How long management commands ran.",
            seconds,
            JOB_BUCKETS,
            command=command,
        )
        # The process is gone when this is scraped; the latest value is what all processes together say.
        self._gauge(
            "django_command_last_run_timestamp_seconds",
            "When a management command last ended, in seconds since the epoch.",
            "max",
            command=command,
        ).set(now)
        if error is None:
            self._gauge(
                "django_command_last_success_timestamp_seconds",
                "When a management command last ended well, in seconds since the epoch.",
                "max",
                command=command,
            ).set(now)


class CeleryInstruments(Instruments):
    """The metrics of Celery tasks and workers. The hostname is that of the machine, as in celery-exporter."""

    def __init__(self, registry: Any = None) -> None:
        super().__init__(registry)
        self.hostname = socket.gethostname()

    def _labels(self, name: str, queue: str) -> dict[str, str]:
        return {"name": name, "hostname": self.hostname, "queue_name": queue}

    def sent(self, name: str, queue: str) -> None:
        """Count a message that was published."""
        self._count("celery_task_sent_total", "Task messages published.", **self._labels(name, queue))

    def received(self, name: str, queue: str) -> None:
        """Count a message that a worker received."""
        self._count("celery_task_received_total", "Tasks received by a worker.", **self._labels(name, queue))

    def started(self, name: str, queue: str, waited: float | None) -> None:
        """Count a run that starts, after so many seconds in the queue."""
        labels = self._labels(name, queue)
        self._count("celery_task_started_total", "Runs of tasks started.", **labels)
        self._gauge(
            "celery_worker_tasks_active", "Tasks that are being worked on.", "livesum", hostname=self.hostname
        ).inc()
        if waited is not None:
            self._observe(
                "celery_task_queue_seconds",
                "Time from sending a task, or from its ETA, to its start.",
                waited,
                QUEUE_BUCKETS,
                **labels,
            )

    def finished(self, name: str, queue: str, state: str, seconds: float, exception: str) -> None:
        """Count a run that ended as ``SUCCESS``, ``FAILURE``, ``RETRY``, ``IGNORED`` or ``REJECTED``."""
        self._gauge(
            "celery_worker_tasks_active", "Tasks that are being worked on.", "livesum", hostname=self.hostname
        ).dec()
        labels = self._labels(name, queue)
        if state == "SUCCESS":
            self._count("celery_task_succeeded_total", "Runs of tasks that succeeded.", **labels)
            # celery-exporter knows the runtime of these alone; a mean over failures as well would be another number.
            self._observe("celery_task_runtime", "Seconds that succeeded tasks ran.", seconds, JOB_BUCKETS, **labels)
        elif state == "FAILURE":
            self.failed(name, queue, exception)
        elif state == "RETRY":
            self._count("celery_task_retried_total", "Runs of tasks that failed and will be retried.", **labels)
        elif state == "REJECTED":
            self._count("celery_task_rejected_total", "Tasks rejected by the worker.", **labels)

    def failed(self, name: str, queue: str, exception: str) -> None:
        """Count a failure, also one that no run was there to see: a worker that was lost, a hard time limit."""
        metric = self._metric(
            "Counter",
            "celery_task_failed_total",
            "Runs of tasks that failed.",
            ("name", "hostname", "exception", "queue_name"),
        )
        metric.labels(name, self.hostname, exception, queue).inc()

    def revoked(self, name: str, queue: str) -> None:
        """Count a task that was revoked."""
        self._count("celery_task_revoked_total", "Tasks revoked.", **self._labels(name, queue))

    def worker_up(self, up: bool) -> None:
        """Tell whether the worker of this machine runs; a dead one's word does not count."""
        self._gauge("celery_worker_up", "Whether a worker is running.", "livemax", hostname=self.hostname).set(
            float(up)
        )


class DjangoTaskInstruments(Instruments):
    """The metrics of Django's Tasks."""

    def _labels(self, name: str, queue: str, backend: str) -> dict[str, str]:
        return {"task": name, "queue_name": queue, "backend": backend}

    def sent(self, name: str, queue: str, backend: str) -> None:
        """Count a task that was enqueued."""
        self._count("django_task_sent_total", "Tasks enqueued.", **self._labels(name, queue, backend))

    def started(self, name: str, queue: str, backend: str, waited: float | None) -> None:
        """Count a run that starts, after so many seconds in the queue."""
        labels = self._labels(name, queue, backend)
        self._count("django_task_started_total", "Runs of tasks started.", **labels)
        if waited is not None:
            self._observe(
                "django_task_queue_seconds",
                "Time from enqueueing a task, or from its run_after, to its start.",
                waited,
                QUEUE_BUCKETS,
                **labels,
            )

    def finished(self, name: str, queue: str, backend: str, status: str, seconds: float) -> None:
        """Count a run that ended as ``SUCCESSFUL`` or ``FAILED``."""
        labels = self._labels(name, queue, backend)
        verb = "succeeded" if status == "SUCCESSFUL" else "failed"
        self._count(f"django_task_{verb}_total", f"Runs of tasks that {verb}.", **labels)
        self._observe("django_task_runtime_seconds", "How long tasks ran.", seconds, JOB_BUCKETS, **labels)

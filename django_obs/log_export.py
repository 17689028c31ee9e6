"""The records of the log pipeline as OTLP logs: entry -> encode_log() -> the same exporter as that of the spans.

It knows two signals, so it stands above both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_obs.conf import Settings, logs_collector
from django_obs.lifecycle import Worker
from django_obs.logs.entry import Entry
from django_obs.traces.encoder import encode_log, encode_scope
from django_obs.traces.exporter import Exporter
from django_obs.traces.transport import Transport, open_transport

if TYPE_CHECKING:
    from django_obs.traces.encoder import Group

# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber
SEVERITIES = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5), (0, 1))
SCHEDULE_DELAY = 1.0  # seconds, the default of OTEL_BLRP_SCHEDULE_DELAY


class LogExport:
    """Sends what the listener has written to the collector as well, for the guard to own."""

    name = "logs over OTLP"

    def __init__(
        self, settings: Settings, *, resource: Callable[[], Mapping[str, Any]], flush_lines: Callable[[float], bool]
    ) -> None:
        """``flush_lines`` makes the listener write what is queued, and so hand it over to be sent."""
        self.flush_lines = flush_lines
        # A thread of its own: a collector that hangs must hold up neither lines nor spans.
        self.worker = Worker("django_obs-log-exporter")
        self.exporter = Exporter(
            self.open_transport,
            self.worker,
            resource=resource,
            queue_size=settings.logs.queue_size,
            delay=SCHEDULE_DELAY,
            what="Log records",
        )

    def open_transport(self) -> Transport:
        """Connect to the collector of the spans; ``OTEL_EXPORTER_OTLP_LOGS_*`` may name another."""
        collector = logs_collector()
        return open_transport("logs", collector.protocol, collector.endpoint, collector.headers)

    def __call__(self, entries: list[Entry]) -> None:
        """Queue what was logged. Called by the listener with each batch that it writes."""
        self.exporter.offer(encode_entries(entries))

    def after_fork(self) -> None:
        """Forget what the parent has queued."""
        self.worker.after_fork()
        self.exporter.after_fork()

    def force_flush(self, timeout: float) -> bool:
        """Deliver what is queued within so many seconds; tell whether all of it was."""
        deadline = monotonic() + timeout
        self.flush_lines(timeout / 2)
        return self.exporter.force_flush(max(0.0, deadline - monotonic()))

    def shutdown(self, timeout: float) -> bool:
        """Deliver what is queued within so many seconds and stop; tell whether all of it was."""
        deadline = monotonic() + timeout
        self.flush_lines(timeout / 2)
        return self.exporter.shutdown(max(0.0, deadline - monotonic()))

    def stats(self) -> dict[str, int]:
        """Return records: queued now; exported, dropped and failed so far in this process."""
        exporter = self.exporter
        return {
            "queued": exporter.waiting,
            "exported": exporter.exported,
            "dropped": exporter.dropped,
            "failed": exporter.failed,
        }


def encode_entries(entries: list[Entry]) -> list[Group]:
    """Encode entries as (scope, number of records, records as fields of ScopeLogs), a scope for each logger."""
    groups: dict[str, list[bytes]] = {}
    for entry in entries:
        groups.setdefault(entry.logger, []).append(encode_entry(entry))
    return [(encode_scope(name), len(records), b"".join(records)) for name, records in groups.items()]


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry as a LogRecord, the exception as the semantic conventions have it."""
    attributes: dict[str, Any] = dict(entry.fields or {})
    if entry.request_id:
        attributes["request_id"] = entry.request_id
    if entry.failure is not None:
        attributes["exception.type"] = entry.failure.type
        attributes["exception.message"] = entry.failure.message
        attributes["exception.stacktrace"] = entry.failure.stack
    return encode_log(
        time_ns=int(entry.created * 1e9),
        severity_number=next(number for level, number in SEVERITIES if entry.levelno >= level),
        severity_text=entry.levelname,
        body=entry.message,
        attributes=attributes,
        trace_id=entry.trace_id,
        span_id=entry.span_id,
    )

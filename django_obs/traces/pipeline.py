"""The traces signal of this process, put together."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace as api

from django_obs import __version__
from django_obs.lifecycle import Worker

from .encoder import SCHEMA_URL
from .exporter import BATCH_SPANS, DELAY, Exporter
from .held import Held
from .provider import Tracer, TracerProvider
from .sampler import KeepRule, RatioSampler
from .span import current_ids, record_leaf, recording_span
from .transport import Transport, open_transport

if TYPE_CHECKING:
    from django_obs.conf import TraceSettings

logger = logging.getLogger("django_obs")


class TracePipeline:
    """provider -> span -> sampler -> encoder -> exporter, for the guard to own."""

    name = "traces"

    def __init__(
        self,
        settings: TraceSettings,
        *,
        service_name: str,
        worker: Worker | None = None,
        encoding: Worker | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``worker`` exports; ``encoding`` encodes what requests have ended, and if there is none they do it."""
        self.settings = settings
        self.environ = environ
        # Its own thread: a collector that hangs must not hold up log lines.
        self.worker = worker or Worker("django_obs-exporter")
        self.provider = TracerProvider(
            RatioSampler(settings.sample_ratio, parent_based=settings.parent_based),
            keep=KeepRule(settings.keep_errors, settings.keep_slower_than),
            service_name=service_name,
        )
        self.exporter = Exporter(
            self._open_transport,
            self.worker,
            resource=lambda: self.provider.resource_attributes,
            queue_size=settings.queue_size,
            batch_spans=_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS),
            delay=_number(environ, "OTEL_BSP_SCHEDULE_DELAY", round(DELAY * 1000)) / 1000,
        )
        self.provider.sink = self.exporter
        if encoding is not None:
            self.provider.held = Held(self.exporter, self.provider.encode, encoding)
            self.exporter.prepare = self.provider.held.encode
        self.tracer: Tracer = self.provider.tracer("django_obs", __version__, SCHEMA_URL)

    current_ids = staticmethod(current_ids)
    current_span = staticmethod(recording_span)
    record_leaf = staticmethod(record_leaf)

    def _open_transport(self) -> Transport:
        settings = self.settings
        return open_transport("traces", settings.protocol, settings.endpoint, settings.headers)

    def install(self) -> bool:
        """Become the global tracer provider, unless there is one already; tell whether we are."""
        if type(api.get_tracer_provider()) is not api.ProxyTracerProvider:
            return api.get_tracer_provider() is self.provider
        api.set_tracer_provider(self.provider)
        return api.get_tracer_provider() is self.provider

    def after_fork(self) -> None:
        """Make everything this process's own: ids, instance id, queue, thread, connection."""
        self.provider.after_fork()
        self.worker.after_fork()
        self.exporter.after_fork()
        if self.provider.held is not None:
            self.provider.held.after_fork()

    def force_flush(self, timeout: float) -> bool:
        """Export what is queued within so many seconds; tell whether all of it was delivered."""
        return self.exporter.force_flush(timeout)

    def shutdown(self, timeout: float) -> bool:
        """Export what is queued within so many seconds and stop."""
        try:
            return self.exporter.shutdown(timeout)
        finally:
            self.provider.shutdown()

    def stats(self) -> dict[str, int]:
        """Return spans: queued now; exported, dropped, failed and sampled out so far in this process."""
        provider, exporter = self.provider, self.exporter
        held = provider.held.spans() if provider.held is not None else 0
        return {
            "queued": held + exporter.waiting,
            "exported": exporter.exported,
            "dropped": exporter.dropped + provider.dropped,
            "failed": exporter.failed + provider.failed,
            "sampled_out": provider.sampled_out,
        }


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    # More digits are days of waiting and batches that no collector takes, or more than Python cares to read.
    if text.isdecimal() and len(text) <= 9 and int(text) > 0:
        return int(text)
    if text:
        logger.warning("%s=%r is not a number from 1 to 999999999, using %d", name, text[:200], default)
    return default

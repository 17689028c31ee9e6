"""The traces signal as the rest of the process knows it: a pipeline that is built when somebody first needs a span.

The API of OpenTelemetry takes as long to import as all of this project together, and most commands never make a span:
nothing here imports it.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_obs.conf import TraceSettings
    from django_obs.lifecycle import Worker
    from django_obs.traces.pipeline import TracePipeline

API = "opentelemetry.trace"


class TraceSignal:
    """Builds the pipeline once, and tells those who have something to do with spans; for the guard to own."""

    name = "traces"

    def __init__(self, settings: TraceSettings, *, service_name: str, encoding: Worker | None = None) -> None:
        """``encoding`` is the worker that encodes what requests have ended."""
        self.settings = settings
        self.encoding = encoding
        self.service_name = service_name
        self.pipeline: TracePipeline | None = None
        self._waiting: list[Callable[[TracePipeline], object]] = []
        self._lock = threading.RLock()

    def install(self, when_imported: Callable[[str, Callable[[], object]], None]) -> None:
        """Build now if the API is imported already, else at the end of its first import, whoever imports it.

        So whoever asks the API finds our provider there, and one that somebody sets afterwards comes too late.
        """
        when_imported(API, self.build)

    def build(self) -> TracePipeline:
        """Return the pipeline, built and installed if this is the first question."""
        if self.pipeline is None:
            # The end of this import builds the pipeline, in whichever thread it runs. Outside of our lock: that thread
            # has the import's and wants ours.
            importlib.import_module(API)
            with self._lock:
                if self.pipeline is None:
                    from django_obs.traces.pipeline import TracePipeline

                    pipeline = TracePipeline(self.settings, service_name=self.service_name, encoding=self.encoding)
                    pipeline.install()
                    self.pipeline = pipeline
                    for callback in self._waiting:
                        callback(pipeline)
        return self.pipeline

    def when_built(self, callback: Callable[[TracePipeline], object]) -> None:
        """Hand over the pipeline when it is built; now if it has been."""
        with self._lock:
            if self.pipeline is None:
                self._waiting.append(callback)
                return
        callback(self.pipeline)

    # -- For the guard: where no span was ever made there is nothing to lose -------------------------------------------

    def after_fork(self) -> None:
        """Make everything this process's own."""
        self._lock = threading.RLock()
        if self.pipeline is not None:
            self.pipeline.after_fork()

    def force_flush(self, timeout: float) -> bool:
        """Export what is queued within so many seconds; tell whether all of it was delivered."""
        return self.pipeline is None or self.pipeline.force_flush(timeout)

    def shutdown(self, timeout: float) -> bool:
        """Export what is queued within so many seconds and stop."""
        return self.pipeline is None or self.pipeline.shutdown(timeout)

    def stats(self) -> dict[str, int]:
        """Return what the pipeline has counted; nothing before there is one."""
        return {} if self.pipeline is None else self.pipeline.stats()

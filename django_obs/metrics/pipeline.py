"""The metrics of a process: where they are kept, and what the project itself records.

prometheus_client takes longer to import than all of this project together, so nothing here imports it: its metrics
move into the store when somebody else imports it, or with the first thing that there is to record.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from django_obs import runtime
from django_obs.metrics import peers
from django_obs.metrics.arrival import Arrival

if TYPE_CHECKING:
    from django_obs.conf import MetricSettings
    from django_obs.lifecycle import Guard
    from django_obs.metrics.catalogue import Catalogue
    from django_obs.metrics.health import GarbagePauses, PipelineHealth
    from django_obs.metrics.instruments import Instruments
    from django_obs.metrics.store import Store

CLIENT = "prometheus_client"
# How often the store and the pipelines are looked after, in seconds.
TEND_INTERVAL = 1.0


class MetricPipeline:
    """What records the metrics of this process."""

    name = "metrics"

    def __init__(
        self,
        settings: MetricSettings,
        *,
        directory: Callable[[], Path],
        guard: Guard | None = None,
        namespace: str = "",
    ) -> None:
        """``directory`` is called when the first file is opened; the store lies in its subdirectory ``metrics``.

        ``namespace``: django-prometheus's ``PROMETHEUS_METRIC_NAMESPACE``.
        """
        self.settings = settings
        self._directory = directory
        self._guard = guard
        self._store: Store | None = None
        self._aside = False
        self._lock = threading.RLock()
        self._health: PipelineHealth | None = None
        self._pauses: GarbagePauses | None = None
        self._namespace = namespace
        self._instruments: Instruments | None = None

    def install(self) -> None:
        """Move the metrics of prometheus_client into the store now, or when it is imported. Opens nothing."""
        if CLIENT in sys.modules:
            _ = self.store
        else:
            sys.meta_path.insert(0, Arrival(CLIENT, after=lambda: self.store))
        peers.make_way(self.release, self.rejoin)
        if self._guard is not None:
            self._guard.on_start.append(self.start)
            self._guard.worker.every(TEND_INTERVAL, self.tend)

    @property
    def instruments(self) -> Instruments:
        """What records requests, queries and cache operations; imported at the first question."""
        if self._instruments is None:
            from django_obs.metrics.catalogue import Catalogue
            from django_obs.metrics.instruments import (
                CacheInstruments,
                DatabaseInstruments,
                Instruments,
                RequestInstruments,
            )

            with self._lock:
                if self._instruments is None:
                    catalogue = Catalogue(
                        latency_buckets=self.settings.buckets, namespace=self._namespace, prepare=self._prepare
                    )
                    self._instruments = Instruments(
                        catalogue,
                        RequestInstruments(catalogue, counted_elsewhere=peers.counts_requests),
                        DatabaseInstruments(catalogue, counts_itself=peers.counts_queries),
                        CacheInstruments(
                            catalogue, backend_label=peers.backend_label, counts_itself=peers.counts_cache
                        ),
                    )
        return self._instruments

    @property
    def store(self) -> Store:
        """The store of this process; imports prometheus_client and changes its classes at the first question."""
        if self._store is None:
            # Its arrival may make the store, in whichever thread it is. Outside of our lock: that thread has the
            # import's and wants ours.
            importlib.import_module(CLIENT)
            with self._lock:
                if self._store is None:
                    from django_obs.metrics.adoption import install
                    from django_obs.metrics.store import Store

                    store = Store(self.directory, self.settings.max_series)
                    store.role = runtime.role()
                    install(store)
                    self._store = store
        return self._store

    def directory(self) -> Path:
        """Return the directory of the store. Raises OSError."""
        return self._directory() / "metrics"

    def set_role(self, role: str) -> None:
        """Say what kind of process this is, also where its lane is open already."""
        if self._store is not None:
            self._store.set_role(role)

    def stand_aside(self) -> None:
        """Keep what this process records to itself, for good: it is the one that shows the others' metrics."""
        self._aside = True
        self.store.private = True
        self.store.close()

    def start(self) -> None:
        """Begin to watch this process: it has a request or a task, so it is no command that is over in a moment."""
        from django_obs.metrics.health import GarbagePauses, PipelineHealth

        if self._guard is None or self._aside:
            return
        if self._health is None:
            self._health = PipelineHealth(self.instruments.catalogue, self._guard.pipelines)
        # Before the interpreter calls back: in the middle of a collection is no place to open files.
        self.store.set_role(runtime.role())
        self.store.open()
        if self._pauses is None:
            self._pauses = GarbagePauses(self.instruments.catalogue)
        self._pauses.install()

    def tend(self) -> None:
        """Look after the files of the store and note how the pipelines fare. Called by the clock."""
        if self._store is not None and not self._aside:
            self._store.tend()
            if self._health is not None:
                self._health.sample()

    def after_fork(self) -> None:
        """Leave the parent's lane, where no hook has done it, and locks that one of its threads may have held."""
        self._lock = threading.RLock()
        for catalogue in catalogues():
            catalogue.after_fork()
        if self._instruments is not None:
            self._instruments.requests.after_fork()
        if self._store is not None:
            self._store.check_pid()

    def force_flush(self, timeout: float) -> bool:
        """Write what is not stored the moment that it is recorded: exemplars, and the pipelines' losses."""
        self.tend()
        return True

    def shutdown(self, timeout: float) -> bool:
        """Flush. The lane is given back by the kernel, and records made until then count."""
        self.tend()
        return True

    def stats(self) -> dict[str, int]:
        """Return what the store of this process knows of itself; empty before the first record."""
        return {} if self._store is None else self._store.stats()

    def release(self, prefixes: tuple[str, ...]) -> None:
        """Leave the names that begin so to django-prometheus, which is about to register them."""
        for catalogue in catalogues():
            catalogue.release(prefixes)
        if self._instruments is not None:
            self._instruments.requests.reset()

    def rejoin(self) -> None:
        """Show what was counted until then by the names that django-prometheus has registered."""
        for catalogue in catalogues():
            catalogue.rejoin()

    def _prepare(self) -> None:
        # What start() takes, while a server still loads its middleware.
        importlib.import_module("django_obs.metrics.health")
        peers.register_first()
        _ = self.store


def catalogues() -> list[Catalogue]:
    """Return the catalogues of this process; where none was imported there is none."""
    module = sys.modules.get("django_obs.metrics.catalogue")
    return module.catalogues if module is not None else []

"""Collectors of the project that are no lanes: custom ones, Info, Enum, gauges with a function. They run in one place.

In a worker nobody would ask them, or each of many workers would be asked the same. ``runmetrics`` asks them once per
scrape, in a thread of their own: one that hangs (a database that is down, a queue that does not answer) costs the
scrape a limited wait, and its samples, but not the page.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger("django_obs")


def is_shared(collector: Any) -> bool:
    """Tell whether a collector's values lie in lanes."""
    from prometheus_client import Counter, Gauge, Histogram, Summary

    if not isinstance(collector, Counter | Gauge | Histogram | Summary):
        return False
    return not (isinstance(collector, Gauge) and _has_function(collector))


def _has_function(gauge: Any) -> bool:
    # Gauge.set_function() puts a method of its own on the object.
    children = list(getattr(gauge, "_metrics", {}).values())
    return any("_child_samples" in vars(metric) for metric in (gauge, *children))


def own_collectors() -> tuple[Any, ...]:
    """Return prometheus_client's collectors about the process that asks, which here is not the process of interest."""
    from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR

    return (PROCESS_COLLECTOR, GC_COLLECTOR)


class Collectors:
    """All collectors of a registry that have to be run to have samples, and some of our own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        extra: Iterable[Callable[[], Iterable[Metric]]] = (),
        *,
        patience: float = 3.0,
    ) -> None:
        """``patience``: seconds that a scrape waits for them; Prometheus itself waits ten for the whole page."""
        self.registry = registry
        self.extra = tuple(extra)
        self.patience = patience
        self.failures = 0
        self.timeouts = 0
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._round: Round | None = None

    def collect(self, patience: float | None = None) -> list[Metric]:
        """Return what the collectors say now; without those that raise, or that have not answered in time."""
        with self._lock:
            current = self._round
            if current is None or current.done.is_set():
                current = self._round = Round(self._sources(), self._report)
                current.start()
        # Counted from the start of the round: who comes while it hangs does not wait all over again.
        patience = self.patience if patience is None else patience
        if not current.done.wait(max(0.0, current.began + patience - monotonic())):
            self.timeouts += 1
            self._report(current.running, None)
        self.failures += current.take_failures()
        return list(current.metrics)

    def _sources(self) -> list[tuple[str, Callable[[], Iterable[Metric]]]]:
        own = own_collectors()
        # There is no public list of collectors in prometheus_client.
        registered = list(self.registry._collector_to_names)
        sources = [
            (_name(collector), collector.collect)
            for collector in registered
            if not any(collector is one for one in own) and not is_shared(collector)
        ]
        return sources + [(_name(source), source) for source in self.extra]

    def _report(self, name: str, error: BaseException | None) -> None:
        if name in self._failed:
            return
        self._failed.add(name)
        if error is None:
            logger.warning("The collector %s has not answered in time; the page goes without it. Reported once.", name)
        else:
            logger.warning("The collector %s failed; the page goes without it. Reported once.", name, exc_info=error)


class Round:
    """One run of all collectors, in a thread of its own."""

    def __init__(
        self,
        sources: list[tuple[str, Callable[[], Iterable[Metric]]]],
        report: Callable[[str, BaseException | None], None],
    ) -> None:
        self.sources = sources
        self.report = report
        self.metrics: list[Metric] = []
        self.running = ""
        self.began = monotonic()
        self.done = threading.Event()
        self._failures = 0

    def start(self) -> None:
        """Run the collectors; at once if there is but nothing to wait for."""
        if not self.sources:
            self.done.set()
            return
        threading.Thread(target=self.run, name="django_obs-collectors", daemon=True).start()

    def run(self) -> None:
        """Ask each collector, and close the database connections that they have used."""
        try:
            for name, collect in self.sources:
                self.running = name
                try:
                    # A generator may fail half-way: all of a collector or nothing.
                    self.metrics += list(collect())
                except Exception as error:
                    self._failures += 1
                    self.report(name, error)
        finally:
            self._close_connections()
            self.done.set()

    def take_failures(self) -> int:
        """Return how many failed since the last question."""
        failures, self._failures = self._failures, 0
        return failures

    def _close_connections(self) -> None:
        # Connections belong to their thread, and this one ends.
        from django.db import connections

        try:
            connections.close_all()
        except Exception as error:
            self.report("django.db", error)


def _name(source: Any) -> str:
    name = getattr(source, "_name", None) or getattr(source, "__qualname__", None)
    return str(name or f"{type(source).__module__}.{type(source).__qualname__}")

"""The page of metrics: lanes summed, collectors run, processes read, once for all clients that ask at the same time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from django_obs.metrics import process
from django_obs.metrics.exposition import Format, render

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from django_obs.metrics.collectors import Collectors
    from django_obs.metrics.scraper import Family, Page, Scraper

logger = logging.getLogger("django_obs")


class MetricsPage:
    """Reads the store and whatever else has samples, and writes them in the format that is asked for."""

    def __init__(self, scraper: Scraper, collectors: Collectors, reader: process.ProcessReader | None = None) -> None:
        self.scraper = scraper
        self.collectors = collectors
        self.reader = reader or process.ProcessReader()
        # Told of each reading of the store.
        self.readers: list[Callable[[Page], object]] = []
        self.scrapes = 0
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._told = False

    def render(self, dialect: Format, names: frozenset[str] | None = None) -> bytes:
        """Return the page, of the families with these names alone if some are given. Raises OSError."""
        return self._read().render(dialect, names)

    def ready(self) -> str | None:
        """Return None, or why the store cannot be read."""
        try:
            self.scraper.lanes()
        except OSError as error:
            return str(error)
        return None

    def tell(self, reader: Callable[[Page], object], store: Page) -> None:
        """Show a reading to somebody else, whose failure is no reason to leave a scrape without an answer."""
        try:
            reader(store)
        except Exception:
            if not self._told:
                self._told = True
                logger.warning("%r failed; reported once", reader, exc_info=True)

    def _read(self) -> Reading:
        asked = perf_counter()
        with self._lock:
            reading = self._reading
            # A reading that began after the question is an answer to it, whoever else it was made for.
            if reading is None or reading.began < asked:
                self.scrapes += 1
                reading = self._reading = Reading(self)
            return reading


class Reading:
    """The state of everything at one moment, and its text in each format that was asked for."""

    def __init__(self, page: MetricsPage) -> None:
        self.began = perf_counter()
        self.page = page
        self.store: Page = page.scraper.read()
        taken = {family.name for family in self.store.families}
        self.collected: list[Metric] = []
        for metric in [*page.collectors.collect(), *process.collect(self.store.lanes, page.reader)]:
            # Two families of one name make a page invalid. What processes have recorded comes first.
            if metric.name not in taken:
                taken.add(metric.name)
                self.collected.append(metric)
        self.collected += self._own()
        self._lock = threading.Lock()
        self._texts: dict[tuple[Format, frozenset[str] | None], bytes] = {}
        self._exemplars: dict[int, Any] | None = None
        for reader in page.readers:
            page.tell(reader, self.store)

    def render(self, dialect: Format, names: frozenset[str] | None) -> bytes:
        """Write the page; at most once per format."""
        key = (dialect, names)
        with self._lock:
            text = self._texts.get(key)
            if text is None:
                text = self._texts[key] = self._write(dialect, names)
            return text

    def _write(self, dialect: Format, names: frozenset[str] | None) -> bytes:
        exemplars: dict[int, Any] | None = None
        if dialect.openmetrics:
            if self._exemplars is None:
                self._exemplars = self.page.scraper.exemplars()
            exemplars = self._exemplars
        parts: list[str] = []
        for family in self.store.families:
            if names is None or not names.isdisjoint(_names(family.name, family.kind)):
                parts.append(_head(family, dialect))
                parts += self.store.lines(family, dialect.escaping, exemplars)
        collected = [
            metric
            for metric in self.collected
            if names is None or not names.isdisjoint({metric.name, *(sample.name for sample in metric.samples)})
        ]
        end = b"# EOF\n" if dialect.openmetrics else b""
        return "".join(parts).encode("utf-8", "replace") + render(collected, dialect) + end

    def _own(self) -> Iterable[Metric]:
        """Yield what the scraper knows of the store and of itself."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        store, page = self.store, self.page
        lanes = GaugeMetricFamily("django_obs_lanes", "Lanes, by whether a process holds them.", labels=("state",))
        alive = sum(lane.alive for lane in store.lanes)
        lanes.add_metric(("live",), alive)
        lanes.add_metric(("free",), len(store.lanes) - alive)
        yield lanes
        yield GaugeMetricFamily("django_obs_series", "Series that all processes have made.", store.series)
        yield GaugeMetricFamily("django_obs_index_bytes", "Size of the index of series.", store.index_bytes)
        yield GaugeMetricFamily("django_obs_index_damaged_lines", "Lines of the index that are damaged.", store.damaged)
        yield CounterMetricFamily(
            "django_obs_series_dropped",
            "Label sets that METRICS.MAX_SERIES has sent to an overflow series.",
            store.dropped,
        )
        yield CounterMetricFamily("django_obs_scrapes", "Readings of the store.", page.scrapes)
        yield CounterMetricFamily(
            "django_obs_collector_failures", "Custom collectors that raised.", page.collectors.failures
        )
        yield CounterMetricFamily(
            "django_obs_collector_timeouts",
            "Scrapes that custom collectors did not answer in time.",
            page.collectors.timeouts,
        )
        yield GaugeMetricFamily(
            "django_obs_scrape_duration_seconds",
            "Time that this reading took, without the writing.",
            perf_counter() - self.began,
        )


SUFFIXES = {
    "counter": ("", "_total"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum"),
    "summary": ("", "_count", "_sum"),
}


def _names(name: str, kind: str) -> Iterator[str]:
    return (name + suffix for suffix in SUFFIXES.get(kind, ("",)))


def _head(family: Family, dialect: Format) -> str:
    """Write what stands above the samples of a family."""
    from prometheus_client.openmetrics.exposition import escape_metric_name

    help_text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    if not dialect.openmetrics:
        name = escape_metric_name(family.name + ("_total" if family.kind == "counter" else ""), dialect.escaping)
        return f"# HELP {name} {help_text}\n# TYPE {name} {family.kind}\n"
    name = escape_metric_name(family.name, dialect.escaping)
    help_text = help_text.replace('"', r"\"")
    unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
    return f"# HELP {name} {help_text}\n# TYPE {name} {family.kind}\n{unit}"

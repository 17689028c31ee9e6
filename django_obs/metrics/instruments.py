"""What is recorded for requests, queries and cache operations: a finished piece of work -> a dozen stores.

Everything that one piece of work touches is looked up once per combination of labels and kept together, as a *tally*.
Recording is then one look-up in a dict and a row of additions to cells of the process's lane.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from django_obs.metrics import catalogue as declared
from django_obs.metrics.lanes import MOVES
from django_obs.semconv import METHODS, http_method

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from django_obs.metrics.catalogue import Catalogue

logger = logging.getLogger("django_obs")
_reported: set[str] = set()

# django-prometheus's words for what has no name.
UNNAMED_VIEW = "<unnamed view>"
INVALID_METHOD = "<invalid method>"
# Labels come from the project's own code, but a status or a content type may come from anywhere. Beyond so many
# combinations the look-up starts anew; the series themselves are capped by the store.
TALLIES = 4096
# The bounds of bodies are 0 and the powers of two, so that the bucket is the number of bits.
LAST_BODY_BUCKET = len(declared.BODY_BUCKETS) - 1
# A Content-Length of more digits is nonsense.
LENGTH_DIGITS = 18
# One exemplar per bucket in so many nanoseconds: each costs ten times as much as the observation.
EXEMPLAR_INTERVAL = 1_000_000_000


class RequestTally:
    """The series that a finished request with certain labels adds to."""

    __slots__ = (
        "bounds",
        "counters",
        "duration",
        "duration_bounds",
        "exemplars_due",
        "latencies",
        "request_body",
        "response_body",
    )

    def __init__(
        self,
        counters: list[Any],
        latencies: list[Any],
        duration: Any,
        request_body: Any | None,
        response_body: Any | None,
    ) -> None:
        self.counters = tuple(counters)
        self.latencies = tuple(latencies)  # histograms that have the same bounds
        self.bounds = _bounds(latencies[0]) if latencies else ()
        self.duration = duration
        self.duration_bounds = _bounds(duration)
        self.request_body = request_body
        self.response_body = response_body
        self.exemplars_due: dict[int, int] = {}

    def add(self, seconds: float, bucket: int, received: int, sent: int) -> None:
        """Count a request of so many seconds, which fall into this bucket of the duration, and bytes.

        -1 for a body of unknown size.
        """
        for counter in self.counters:
            counter.inc()
        for histogram in self.latencies:
            histogram.observe(seconds)
        self.duration.observe(seconds)
        if self.request_body is not None:
            self.request_body.observe(received)
        if self.response_body is not None and sent >= 0:
            self.response_body.observe(sent)

    def add_exemplar(self, seconds: float, bucket: int, scope: Any, now: int) -> None:
        """Keep the trace of this request as an example of its bucket."""
        self.exemplars_due[bucket] = now + EXEMPLAR_INTERVAL
        keep_exemplar(self.duration, bucket, scope.trace_id, seconds)
        if self.latencies:
            # The dashboards of django-prometheus look at its own histogram.
            keep_exemplar(self.latencies[-1], bisect_left(self.bounds, seconds), scope.trace_id, seconds)


class LaneTally(RequestTally):
    """The usual series, all of them in this process's lane: the numbers of their cells, and no more to look at.

    A request touches twenty cells. Reached through its metric, each is five lines of memory away that the page has
    displaced from the cache; as a number, half a line.
    """

    __slots__ = ("placed",)

    def __init__(self, counters: list[Any], latencies: list[Any], duration: Any, *bodies: Any) -> None:
        super().__init__(counters, latencies, duration, *bodies)
        # One value, as another thread may look the cells up as well: how often metrics have moved, the lane, the cells.
        self.placed: tuple[Any, ...] = (-1,)

    def place(self) -> tuple[Any, ...] | None:
        """Look up where the cells are now; None if they are not all in one lane."""
        moves = MOVES[0]
        histograms = (*self.latencies, self.duration, self.request_body, self.response_body)
        metrics = (*self.counters, *histograms)
        memory = _lane_of(metrics)
        if memory is None:
            return None
        # The sum of a histogram comes after its buckets.
        sums = (histogram._first + len(histogram._upper_bounds) for histogram in histograms)
        self.placed = placed = (moves, memory, *(metric._first for metric in metrics), *sums)
        return placed

    def add(self, seconds: float, bucket: int, received: int, sent: int) -> None:
        """Count a request of so many seconds, which fall into this bucket of the duration, and bytes."""
        latency_bucket = bisect_left(self.bounds, seconds)
        received_bucket = (received - 1).bit_length() + 1 if received > 0 else 0
        sent_bucket = (sent - 1).bit_length() + 1 if sent > 0 else 0
        if received_bucket > LAST_BODY_BUCKET:
            received_bucket = LAST_BODY_BUCKET
        if sent_bucket > LAST_BODY_BUCKET:
            sent_bucket = LAST_BODY_BUCKET
        if sent < 0:
            super().add(seconds, bucket, received, sent)
            return
        placed = self.placed
        while placed[0] != MOVES[0]:
            found = self.place()
            if found is None:
                super().add(seconds, bucket, received, sent)
                return
            placed = found
        # From here on nothing is called and nothing jumps back: no other thread comes in between, and moves a metric.
        (
            _,
            memory,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            first,
            view_first,
            duration,
            body,
            answer,
            total,
            view_total,
            lasted,
            got,
            gave,
        ) = placed
        memory[a] += 1.0
        memory[b] += 1.0
        memory[c] += 1.0
        memory[d] += 1.0
        memory[e] += 1.0
        memory[f] += 1.0
        memory[g] += 1.0
        memory[first + latency_bucket] += 1.0
        memory[total] += seconds
        memory[view_first + latency_bucket] += 1.0
        memory[view_total] += seconds
        memory[duration + bucket] += 1.0
        memory[lasted] += seconds
        memory[body + received_bucket] += 1.0
        memory[got] += received
        memory[answer + sent_bucket] += 1.0
        memory[gave] += sent


# Counters of a LaneTally: all that there are.
COUNTERS = 7


class RequestInstruments:
    """The metrics of HTTP requests."""

    has_names: bool

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        counted_elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        """``counted_elsewhere``: whether django-prometheus's middleware records what goes by its names."""
        self.catalogue = catalogue
        self.counted_elsewhere = counted_elsewhere
        self._lock = threading.Lock()
        self._prepared = False
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._tallies: dict[Hashable, RequestTally] = {}

    def prepare(self) -> None:
        """Make the metrics; without this call, with the first request."""
        with self._lock:
            if self._prepared:
                return
            collector = self.catalogue.collector
            # What somebody else has registered somebody else counts.
            self.has_names = not (self.counted_elsewhere() or self.catalogue.foreign(declared.REQUESTS_BEFORE))
            self._duration = collector(declared.DURATION)
            self._active = collector(declared.ACTIVE)
            self._queue = collector(declared.QUEUE)
            if self.has_names:
                self._requests_before = collector(declared.REQUESTS_BEFORE)
                self._responses_before = collector(declared.RESPONSES_BEFORE)
                self._latency = collector(declared.LATENCY)
                self._view_latency = collector(declared.VIEW_LATENCY)
                self._ajax = collector(declared.AJAX)
                self._by_method = collector(declared.REQUESTS_BY_METHOD)
                self._by_transport = collector(declared.REQUESTS_BY_TRANSPORT)
                self._by_view = collector(declared.REQUESTS_BY_VIEW)
                self._request_body = collector(declared.REQUEST_BODY)
                self._by_template = collector(declared.RESPONSES_BY_TEMPLATE)
                self._by_status = collector(declared.RESPONSES_BY_STATUS)
                self._responses_by_view = collector(declared.RESPONSES_BY_VIEW)
                self._response_body = collector(declared.RESPONSE_BODY)
                self._by_charset = collector(declared.RESPONSES_BY_CHARSET)
                self._streaming = collector(declared.STREAMING)
                self._exceptions_by_type = collector(declared.EXCEPTIONS_BY_TYPE)
                self._exceptions_by_view = collector(declared.EXCEPTIONS_BY_VIEW)
                # Never counted, see the catalogue.
                collector(declared.UNKNOWN_LATENCY_BEFORE)
                collector(declared.UNKNOWN_LATENCY)
            self._prepared = True

    def after_fork(self) -> None:
        """Take a lock of this process: a thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Find out anew, at the next request, which metrics are ours to record."""
        with self._lock:
            self._prepared = False
            self._entries = {}
            self._tallies = {}

    def request_started(self, scope: Any) -> None:
        """Count the request that comes in and note on the scope what it was counted as."""
        key = (scope.method, scope.scheme, scope.request.META.get("SERVER_PROTOCOL", ""))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._enter(key)
        for metric in entry.ones:
            metric._cell[()] += 1.0
        scope.entry = entry

    def request_finished(self, scope: Any, request: Any, response: Any | None) -> None:
        """Count the request that is over, once, whatever became of it. Times are nanoseconds on the scope."""
        entry: Entry = scope.entry
        active = entry.active
        active._cell[()] -= 1.0
        status = scope.status
        error_type = "" if status < 500 and scope.error is None else _error_type(scope)
        try:
            # As ``headers["Content-Type"]`` does it, by way of one function more.
            content_type = response.headers._store["content-type"][1]  # type: ignore[union-attr]
        except (AttributeError, KeyError):
            content_type = ""
        key = (entry, scope.name, scope.route, status, content_type, error_type)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tally(key, entry, scope, response, error_type)
        meta = request.META
        length = meta.get("CONTENT_LENGTH")
        streaming = response is not None and response.streaming
        ended = scope.ended
        seconds = (ended - scope.started) * 1e-9
        bucket = bisect_left(tally.duration_bounds, seconds)
        tally.add(seconds, bucket, _length(length) if length else 0, -1 if streaming else scope.size)
        if scope.sampled and ended >= tally.exemplars_due.get(bucket, 0):
            tally.add_exemplar(seconds, bucket, scope, ended)
        if scope.queue_ns is not None:
            self._queue.observe(scope.queue_ns * 1e-9)
        if self.has_names:
            if "HTTP_X_REQUESTED_WITH" in meta and meta["HTTP_X_REQUESTED_WITH"] == "XMLHttpRequest":
                self._ajax.inc()
            if streaming:
                self._streaming.inc()
            template = getattr(response, "template_name", None)
            if template is not None:
                self._by_template.labels(str(template)).inc()
            exception = scope.exception or scope.error
            if exception is not None:
                self._exceptions_by_type.labels(type(exception).__name__).inc()
                self._exceptions_by_view.labels(scope.name or UNNAMED_VIEW).inc()

    def _enter(self, key: tuple[str, str, str]) -> Entry:
        if not self._prepared:
            self.prepare()
        raw_method, scheme, protocol = key
        # Django upper-cases the method, and whoever sends "FOO1", "FOO2", ... fills no table of ours.
        known = raw_method in METHODS
        if not known:
            key = ("", scheme, protocol)
            if (entry := self._entries.get(key)) is not None:
                return entry
        version = protocol.removeprefix("HTTP/") if protocol.startswith("HTTP/") and len(protocol) < 10 else ""
        active = self._active.labels(http_method(raw_method), scheme)
        entry = Entry(raw_method if known else INVALID_METHOD, http_method(raw_method), scheme, version, active)
        ones = [active]
        if self.has_names:
            ones.append(self._requests_before)
        entry.ones = tuple(one if _has_cells(one) else Uncelled(one) for one in ones)
        entry.active = entry.ones[0]
        if len(self._entries) >= TALLIES:
            self._entries.clear()
        self._entries[key] = entry
        return entry

    def _tally(self, key: Hashable, entry: Entry, scope: Any, response: Any | None, error_type: str) -> RequestTally:
        view = scope.name or UNNAMED_VIEW
        status = str(scope.status)
        counters: list[Any] = []
        latencies: list[Any] = []
        bodies: tuple[Any | None, Any | None] = (None, None)
        if self.has_names:
            counters = [
                self._responses_before,
                self._by_method.labels(entry.method),
                self._by_transport.labels(entry.scheme),
                self._by_status.labels(status),
                self._responses_by_view.labels(status, view, entry.method),
            ]
            if scope.route is not None:
                # A request that no view was found for has no view to be counted by.
                counters.append(self._by_view.labels(view, entry.scheme, entry.method))
            charset = getattr(response, "charset", None)
            if charset is not None:
                counters.append(self._by_charset.labels(str(charset)))
            latencies = [self._latency, self._view_latency.labels(view, entry.method)]
            bodies = (self._request_body, self._response_body)
        duration = self._duration.labels(
            entry.semconv_method, scope.route or "", status, entry.scheme, error_type, entry.version
        )
        metrics = [*counters, *latencies, duration, *(body for body in bodies if body is not None)]
        # One search serves both latencies, and arithmetic both bodies: not if the project has made these metrics.
        usual = len({tuple(_bounds(histogram)) for histogram in latencies}) <= 1 and all(
            tuple(_bounds(body)) == declared.BODY_BUCKETS for body in bodies if body is not None
        )
        whole = all(map(_has_cells, metrics)) and usual and len(counters) == COUNTERS
        tally = (LaneTally if whole else RequestTally)(counters, latencies, duration, *bodies)
        if len(self._tallies) >= TALLIES:
            self._tallies.clear()
        self._tallies[key] = tally
        return tally


class Entry:
    """The labels that are known when a request comes in, and the series that it adds to then."""

    __slots__ = ("active", "method", "ones", "scheme", "semconv_method", "version")

    def __init__(self, method: str, semconv_method: str, scheme: str, version: str, active: Any) -> None:
        self.method = method
        self.semconv_method = semconv_method
        self.scheme = scheme
        self.version = version
        self.active = active
        self.ones: tuple[Any, ...] = ()


class Uncelled:
    """Gives a metric that is in no lane the look of one that is: ``_cell[()] += amount`` calls its ``inc``."""

    __slots__ = ("_metric",)

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    @property
    def _cell(self) -> Uncelled:
        return self

    def __getitem__(self, index: tuple[()]) -> float:
        return 0.0

    def __setitem__(self, index: tuple[()], amount: float) -> None:
        self._metric.inc(amount)


class DatabaseInstruments:
    """The metrics of queries and connections."""

    def __init__(self, catalogue: Catalogue, *, counts_itself: Callable[[str], bool] = lambda alias: False) -> None:
        """``counts_itself``: whether the connection of this alias is one of django-prometheus's own."""
        self.collector = catalogue.collector
        self.counts_itself = counts_itself
        self._tallies: dict[tuple[str, str], QueryTally] = {}

    def tally(self, alias: str, vendor: str) -> QueryTally | None:
        """Return what counts the queries of this database; None if somebody else does."""
        if self.counts_itself(alias):
            return None
        tally = self._tallies.get((alias, vendor))
        if tally is None:
            tally = self._tallies[alias, vendor] = QueryTally(self.collector, alias, vendor)
        return tally

    def record_connection(self, alias: str, vendor: str, error: BaseException | None) -> None:
        """Count a connection that was made, or could not be."""
        try:
            if self.counts_itself(alias):
                return
            # django-prometheus counts the attempt, whatever comes of it.
            self.collector(declared.DATABASE_CONNECTIONS).labels(alias, vendor).inc()
            if error is not None:
                self.collector(declared.DATABASE_CONNECTION_ERRORS).labels(alias, vendor).inc()
        except Exception:
            report("connections")


class QueryTally:
    """The series of the queries of one database, and the numbers of their cells."""

    __slots__ = ("alias", "bounds", "collector", "duration", "execute", "placed", "vendor")

    def __init__(self, collector: Callable[[Any], Any], alias: str, vendor: str) -> None:
        self.collector = collector
        self.alias = alias
        self.vendor = vendor
        self.execute = collector(declared.DATABASE_EXECUTE).labels(alias, vendor)
        self.duration = collector(declared.DATABASE_DURATION).labels(alias, vendor)
        self.bounds = _bounds(self.duration)
        self.placed: tuple[Any, ...] = (-1,)

    def place(self) -> tuple[Any, ...] | None:
        """Look up where the cells are now; None if they are not in one lane."""
        moves = MOVES[0]
        memory = _lane_of((self.execute, self.duration))
        if memory is None:
            return None
        first = self.duration._first
        self.placed = placed = (moves, memory, first, first + len(self.bounds), self.execute._first)
        return placed

    def add(self, seconds: float, many: int = 0, error: BaseException | None = None) -> None:
        """Count a query. ``many``: the number of parameter sets of an ``executemany()``, else 0 or False."""
        if many or error is not None:
            self._add_unusual(seconds, many, error)
            return
        bucket = bisect_left(self.bounds, seconds)
        placed = self.placed
        while placed[0] != MOVES[0]:
            found = self.place()
            if found is None:
                self._add_unusual(seconds, many, error)
                return
            placed = found
        # As in LaneTally.add().
        _, memory, first, total, count = placed
        memory[first + bucket] += 1.0
        memory[total] += seconds
        memory[count] += 1.0

    def _add_unusual(self, seconds: float, many: int, error: BaseException | None) -> None:
        self.duration.observe(seconds)
        self.execute.inc(int(many) or 1)
        if many:
            self.collector(declared.DATABASE_EXECUTE_MANY).labels(self.alias, self.vendor).inc(int(many))
        if error is not None:
            self.collector(declared.DATABASE_ERRORS).labels(self.alias, self.vendor, type(error).__name__).inc()


class CacheInstruments:
    """The metrics of cache operations."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        backend_label: Callable[[str, str], str] = lambda alias, backend: backend,
        counts_itself: Callable[[str], bool] = lambda alias: False,
    ) -> None:
        """``backend_label``: django-prometheus's word for the cache of this alias and class name.

        ``counts_itself``: whether the cache of this alias is one of django-prometheus's own.
        """
        self.collector = catalogue.collector
        self.backend_label = backend_label
        self.counts_itself = counts_itself
        self._operations: dict[tuple[str, str, str], CacheTally] = {}

    def record_cache(
        self,
        alias: str,
        backend: str,
        operation: str,
        hits: int,
        misses: int,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        """Count an operation and the keys that it found and did not find."""
        try:
            tally = self._operations.get((alias, backend, operation))
            if tally is None:
                tally = self._tally(alias, backend, operation)
            tally.duration.observe(seconds)
            if error is not None:
                self.collector(declared.CACHE_ERRORS).labels(alias, tally.backend, operation).inc()
            if tally.gets is not None:
                tally.gets.inc(max(1, hits + misses))
                if hits:
                    tally.hits.inc(hits)
                if misses:
                    tally.misses.inc(misses)
                if error is not None:
                    tally.failures.inc()
        except Exception:
            report("cache operations")

    def _tally(self, alias: str, backend: str, operation: str) -> CacheTally:
        label = self.backend_label(alias, backend)
        tally = CacheTally(label, self.collector(declared.CACHE_DURATION).labels(alias, label, operation))
        if operation in ("get", "get_many") and not self.counts_itself(alias):
            tally.gets = self.collector(declared.CACHE_GETS).labels(label)
            tally.hits = self.collector(declared.CACHE_HITS).labels(label)
            tally.misses = self.collector(declared.CACHE_MISSES).labels(label)
            tally.failures = self.collector(declared.CACHE_FAILURES).labels(label)
        self._operations[alias, backend, operation] = tally
        return tally


class CacheTally:
    """The series of one operation of one cache; `gets` and what follows only where it reads."""

    __slots__ = ("backend", "duration", "failures", "gets", "hits", "misses")

    def __init__(self, backend: str, duration: Any) -> None:
        self.backend = backend
        self.duration = duration
        self.gets: Any = None
        self.hits: Any = None
        self.misses: Any = None
        self.failures: Any = None


class Instruments:
    """Everything that a process records with, and where it finds its collectors."""

    __slots__ = ("cache", "catalogue", "database", "requests")

    def __init__(
        self, catalogue: Catalogue, requests: RequestInstruments, database: DatabaseInstruments, cache: CacheInstruments
    ) -> None:
        self.catalogue = catalogue
        self.requests = requests
        self.database = database
        self.cache = cache


def report(what: str) -> None:
    """Say once that something could not be counted; what it was about goes on."""
    if what not in _reported:
        _reported.add(what)
        logger.warning("The metrics of %s failed; reported once.", what, exc_info=True)


def keep_exemplar(histogram: Any, bucket: int, trace_id: str, seconds: float) -> None:
    """Keep a trace as the example of a bucket."""
    from time import time

    from prometheus_client.samples import Exemplar

    buckets = getattr(histogram, "_buckets", None)
    if buckets:
        buckets[bucket].set_exemplar(Exemplar({"trace_id": trace_id}, seconds, time()))


def _bounds(histogram: Any) -> Any:
    return getattr(histogram, "_upper_bounds", ())


def _has_cells(metric: Any) -> bool:
    """Tell whether the metric is in a lane; opens this process's lane if nobody has."""
    if isinstance(metric, declared.Nothing):
        return False
    if metric._type != "histogram":
        metric.inc(0)
    elif not hasattr(metric, "_cell"):
        # There is no observation of nothing; whoever opens the store adopts what waits for it.
        return False
    return hasattr(metric, "_cell")


def _lane_of(metrics: tuple[Any, ...]) -> memoryview[float] | None:
    """Return the column that has all cells of these metrics; None if one of them counts elsewhere."""
    lanes = {id(metric._memory) if getattr(metric, "_slot", None) is not None else None for metric in metrics}
    return None if None in lanes or len(lanes) > 1 else metrics[0]._memory


def _error_type(scope: Any) -> str:
    error = scope.error or scope.exception
    return type(error).__qualname__ if error is not None else str(scope.status)


def _length(value: str) -> int:
    return int(value) if len(value) <= LENGTH_DIGITS and value.isdigit() and value.isascii() else 0

"""Every metric that the project records by itself: names, labels, buckets, and the collector behind each.

The names of django-prometheus are kept to the letter, double "total" included: published dashboards query them.
https://github.com/django-commons/django-prometheus. Beside them stand those of the OpenTelemetry semantic conventions
as Prometheus spells them: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import CollectorRegistry

logger = logging.getLogger("django_obs")

INFINITY = float("inf")

# django-prometheus's: 0 and the powers of two up to half a gibibyte.
BODY_BUCKETS = (0.0, *(float(1 << power) for power in range(30)), INFINITY)
# Those that the semantic conventions advise.
SEMCONV_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, INFINITY)
# What happens inside one machine: from a lookup in memory to a stall that users feel.
BRIEF_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, INFINITY)


class Declaration(NamedTuple):
    """A metric as prometheus_client wants it. Histograms without `buckets` have those of ``METRICS.BUCKETS``."""

    kind: str  # "counter", "gauge" or "histogram"
    name: str
    documentation: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, documentation: str, *labels: str) -> Declaration:
    return Declaration("counter", name, documentation, labels)


def _gauge(name: str, documentation: str, *labels: str) -> Declaration:
    return Declaration("gauge", name, documentation, labels)


def _histogram(name: str, documentation: str, *labels: str, buckets: tuple[float, ...] = ()) -> Declaration:
    return Declaration("histogram", name, documentation, labels, buckets)


# Requests, by the names of django-prometheus. One middleware times a request once, so that both latencies are the same
# and nothing is ever "unknown"; the counters for that case stay, at zero, for the dashboards that add them up.
REQUESTS_BEFORE = _counter(
    "django_http_requests_before_middlewares_total", "Total count of requests before middlewares run."
)
RESPONSES_BEFORE = _counter(
    "django_http_responses_before_middlewares_total", "Total count of responses before middlewares run."
)
LATENCY = _histogram(
    "django_http_requests_latency_including_middlewares_seconds",
    "Histogram of requests processing time (including middleware processing time).",
)
UNKNOWN_LATENCY_BEFORE = _counter(
    "django_http_requests_unknown_latency_including_middlewares_total",
    "Count of requests for which the latency was unknown (when computing "
    "django_http_requests_latency_including_middlewares_seconds).",
)
VIEW_LATENCY = _histogram(
    "django_http_requests_latency_seconds_by_view_method",
    "Histogram of request processing time labelled by view name and HTTP method.",
    "view",
    "method",
)
UNKNOWN_LATENCY = _counter(
    "django_http_requests_unknown_latency_total", "Count of requests for which the latency was unknown."
)
AJAX = _counter("django_http_ajax_requests_total", "Count of AJAX requests.")
REQUESTS_BY_METHOD = _counter("django_http_requests_total_by_method", "Count of requests by method.", "method")
REQUESTS_BY_TRANSPORT = _counter(
    "django_http_requests_total_by_transport", "Count of requests by transport.", "transport"
)
REQUESTS_BY_VIEW = _counter(
    "django_http_requests_total_by_view_transport_method",
    "Count of requests by view, transport, method.",
    "view",
    "transport",
    "method",
)
REQUEST_BODY = _histogram(
    "django_http_requests_body_total_bytes", "Histogram of requests by body size.", buckets=BODY_BUCKETS
)
RESPONSES_BY_TEMPLATE = _counter(
    "django_http_responses_total_by_templatename", "Count of responses by template name.", "templatename"
)
RESPONSES_BY_STATUS = _counter("django_http_responses_total_by_status", "Count of responses by status.", "status")
RESPONSES_BY_VIEW = _counter(
    "django_http_responses_total_by_status_view_method",
    "Count of responses by status, view, method.",
    "status",
    "view",
    "method",
)
RESPONSE_BODY = _histogram(
    "django_http_responses_body_total_bytes", "Histogram of responses by body size.", buckets=BODY_BUCKETS
)
RESPONSES_BY_CHARSET = _counter("django_http_responses_total_by_charset", "Count of responses by charset.", "charset")
STREAMING = _counter("django_http_responses_streaming_total", "Count of streaming responses.")
EXCEPTIONS_BY_TYPE = _counter("django_http_exceptions_total_by_type", "Count of exceptions by object type.", "type")
EXCEPTIONS_BY_VIEW = _counter("django_http_exceptions_total_by_view", "Count of exceptions by view.", "view")

# Requests, by the semantic conventions.
DURATION = _histogram(
    "http_server_request_duration_seconds",
    "Duration of HTTP server requests.",
    "http_request_method",
    "http_route",
    "http_response_status_code",
    "url_scheme",
    "error_type",
    "network_protocol_version",
    buckets=SEMCONV_BUCKETS,
)
ACTIVE = _gauge(
    "http_server_active_requests",
    "Number of HTTP server requests that are being worked on.",
    "http_request_method",
    "url_scheme",
)
QUEUE = _histogram(
    "django_http_requests_queue_seconds",
    "Time from the proxy's X-Request-Start to the start of the request.",
    buckets=SEMCONV_BUCKETS,
)

DATABASE_CONNECTIONS = _counter(
    "django_db_new_connections_total", "Counter of created connections by database and by vendor.", "alias", "vendor"
)
DATABASE_CONNECTION_ERRORS = _counter(
    "django_db_new_connection_errors_total",
    "Counter of connection failures by database and by vendor.",
    "alias",
    "vendor",
)
DATABASE_EXECUTE = _counter(
    "django_db_execute_total",
    "Counter of executed statements by database and by vendor, including bulk executions.",
    "alias",
    "vendor",
)
DATABASE_EXECUTE_MANY = _counter(
    "django_db_execute_many_total",
    "Counter of executed statements in bulk operations by database and by vendor.",
    "alias",
    "vendor",
)
DATABASE_ERRORS = _counter(
    "django_db_errors_total",
    "Counter of execution errors by database, vendor and exception type.",
    "alias",
    "vendor",
    "type",
)
DATABASE_DURATION = _histogram(
    "django_db_query_duration_seconds", "Histogram of query duration by database and vendor.", "alias", "vendor"
)

CACHE_GETS = _counter("django_cache_get_total", "Total get requests on cache", "backend")
CACHE_HITS = _counter("django_cache_get_hits_total", "Total hits on cache", "backend")
CACHE_MISSES = _counter("django_cache_get_misses_total", "Total misses on cache", "backend")
CACHE_FAILURES = _counter("django_cache_get_fail_total", "Total get request failures by cache", "backend")
CACHE_DURATION = _histogram(
    "django_cache_operation_duration_seconds",
    "Histogram of the duration of every cache operation.",
    "alias",
    "backend",
    "operation",
    buckets=BRIEF_BUCKETS,
)
CACHE_ERRORS = _counter(
    "django_cache_operation_errors_total", "Cache operations that raised.", "alias", "backend", "operation"
)

MODEL_INSERTS = _counter("django_model_inserts_total", "Number of insert operations by model.", "model")
MODEL_UPDATES = _counter("django_model_updates_total", "Number of update operations by model.", "model")
MODEL_DELETES = _counter("django_model_deletes_total", "Number of delete operations by model.", "model")

MIGRATIONS_APPLIED = _gauge(
    "django_migrations_applied_total", "Count of applied migrations by database connection", "connection"
)
MIGRATIONS_UNAPPLIED = _gauge(
    "django_migrations_unapplied_total", "Count of unapplied migrations by database connection", "connection"
)

GC_PAUSE = _histogram(
    "python_gc_pause_seconds",
    "Time that a collection of the older generations stopped the process.",
    "generation",
    buckets=BRIEF_BUCKETS,
)

LOG_RECORDS_WRITTEN = _counter("django_obs_log_records_written_total", "Log records written.")
LOG_RECORDS_DROPPED = _counter(
    "django_obs_log_records_dropped_total", "Log records dropped because the queue was full.", "level"
)
LOG_RECORDS_FAILED = _counter("django_obs_log_records_failed_total", "Log records that could not be written.")
LOG_RECORDS_QUEUED = _gauge("django_obs_log_records_queued", "Log records that wait to be written.")
SPANS_EXPORTED = _counter("django_obs_spans_exported_total", "Spans delivered to the collector.")
SPANS_DROPPED = _counter("django_obs_spans_dropped_total", "Spans dropped because the queue was full.")
SPANS_FAILED = _counter("django_obs_spans_failed_total", "Spans that the collector did not take.")
SPANS_SAMPLED_OUT = _counter("django_obs_spans_sampled_out_total", "Spans left out by the sampler.")
SPANS_QUEUED = _gauge("django_obs_spans_queued", "Spans that wait to be exported.")

DECLARATIONS: tuple[Declaration, ...] = tuple(value for value in globals().values() if isinstance(value, Declaration))


# All that were made; few, and none is ever given up.
catalogues: list[Catalogue] = []


class Nothing:
    """Stands in for a collector whose name somebody else's different metric has taken."""

    def labels(self, *values: object, **named: object) -> Nothing:
        return self

    def inc(self, amount: float = 1) -> None:
        pass

    def dec(self, amount: float = 1) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def observe(self, amount: float) -> None:
        pass


class Catalogue:
    """Finds or makes the collectors in a registry of prometheus_client."""

    def __init__(
        self,
        *,
        latency_buckets: Iterable[float],
        namespace: str = "",
        registry: CollectorRegistry | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """Bounds in seconds, ascending, with or without the final infinity; ``prepare`` is called before first use."""
        bounds = tuple(latency_buckets)
        self.latency_buckets = bounds if bounds[-1:] == (INFINITY,) else (*bounds, INFINITY)
        self.namespace = namespace
        self._registry = registry
        self._prepare = prepare
        self._lock = threading.RLock()
        self._made: dict[Declaration, Any] = {}
        self._released: dict[Declaration, Any] = {}
        catalogues.append(self)

    def after_fork(self) -> None:
        """Take locks of this process: a thread of the parent that was making a metric releases none of them here."""
        self._lock = threading.RLock()
        if self._registry is not None:
            self._registry._lock = threading.RLock()  # type: ignore[assignment]

    @property
    def registry(self) -> CollectorRegistry:
        """The registry; the default one unless another was given."""
        if self._prepare is not None:
            with self._lock:
                prepare, self._prepare = self._prepare, None
                if prepare is not None:
                    prepare()
        if self._registry is None:
            from prometheus_client import REGISTRY

            self._registry = REGISTRY
        return self._registry

    def full_name(self, declaration: Declaration) -> str:
        """Return the name with its namespace. Only django-prometheus's names take it, as they did there."""
        prefixed = self.namespace and declaration.name.startswith("django_") and "_obs_" not in declaration.name
        return f"{self.namespace}_{declaration.name}" if prefixed else declaration.name

    def foreign(self, declaration: Declaration) -> bool:
        """Tell whether somebody else has registered the name."""
        return declaration not in self._made and self._registered(declaration) is not None

    def collector(self, declaration: Declaration) -> Any:
        """Return the collector: the one that stands in the registry, whoever made it, or a new one."""
        collector = self._made.get(declaration)
        if collector is None:
            with self._lock:
                collector = self._made.get(declaration) or self._find(declaration)
                self._made[declaration] = collector
        return collector

    def release(self, prefixes: tuple[str, ...]) -> None:
        """Let somebody else register the names that begin so.

        What holds a collector of ours goes on counting by it: in lanes both are the same.
        """
        with self._lock:
            for declaration, collector in list(self._made.items()):
                if declaration.name.startswith(prefixes) and self._registered(declaration) is collector:
                    del self._made[declaration]
                    self.registry.unregister(collector)
                    self._released[declaration] = collector

    def rejoin(self) -> None:
        """Show the series of released collectors by those that have taken their names."""
        with self._lock:
            for declaration, collector in self._released.items():
                heir = self._registered(declaration)
                if heir is not None and self._fits(declaration, heir):
                    for values in list(getattr(collector, "_metrics", ())):
                        heir.labels(*values)
            self._released.clear()

    def _find(self, declaration: Declaration) -> Any:
        collector = self._registered(declaration)
        if collector is None:
            return self._make(declaration)
        if self._fits(declaration, collector):
            return collector
        logger.warning(
            "The metric %s is not recorded: the project has another one of this name with the labels %s.",
            self.full_name(declaration),
            getattr(collector, "_labelnames", "?"),
        )
        return Nothing()

    def _registered(self, declaration: Declaration) -> Any:
        # There is no public look-up by name in prometheus_client.
        names: Mapping[str, Any] = self.registry._names_to_collectors
        return names.get(self.full_name(declaration))

    def _fits(self, declaration: Declaration, collector: Any) -> bool:
        kind, labels = getattr(collector, "_type", ""), getattr(collector, "_labelnames", None)
        return kind == declaration.kind and labels == declaration.labels

    def _make(self, declaration: Declaration) -> Any:
        from prometheus_client import Counter, Gauge, Histogram

        arguments = (self.full_name(declaration), declaration.documentation, declaration.labels)
        if declaration.kind == "counter":
            return Counter(*arguments, registry=self.registry)
        if declaration.kind == "gauge":
            # What is going on now: the dead do nothing.
            return Gauge(*arguments, registry=self.registry, multiprocess_mode="livesum")
        return Histogram(*arguments, registry=self.registry, buckets=declaration.buckets or self.latency_buckets)

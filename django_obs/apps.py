"""The only module that knows everything: it builds the signals, passes callables across, and plugs them into Django."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import register

from django_obs import __version__
from django_obs.checks import check_settings
from django_obs.conf import LogSettings, Settings, get_settings, is_default, warn_of_problems
from django_obs.lifecycle import guard
from django_obs.telemetry import Telemetry

if TYPE_CHECKING:
    from django_obs.instrumentation.cache import CacheInstrumentation
    from django_obs.instrumentation.database import DatabaseInstrumentation
    from django_obs.instrumentation.tasks import TaskInstrumentation
    from django_obs.log_export import LogExport
    from django_obs.logs.pipeline import LogPipeline
    from django_obs.metrics.pipeline import MetricPipeline
    from django_obs.trace_signal import TraceSignal
    from django_obs.traces.pipeline import TracePipeline
    from django_obs.traces.requests import RequestTracing
    from django_obs.watch import Watch


# Seconds after which a process that logs is taken for one that goes on.
SETTLED = 1.0
MIDDLEWARE = "django_obs.middleware.ObservabilityMiddleware"


class DjangoObsConfig(AppConfig):
    name = "django_obs"
    verbose_name = "Observability"
    telemetry: Telemetry
    logs: LogPipeline | None = None
    trace_signal: TraceSignal | None = None
    metrics: MetricPipeline | None = None
    watch: Watch | None = None
    quiet = False

    @property
    def traces(self) -> TracePipeline | None:
        """The span pipeline, built now if nobody has needed one before."""
        return self.trace_signal.build() if self.trace_signal is not None else None

    def ready(self) -> None:
        """Wire the signals that are on. Starts no thread, opens no file and no socket.

        Nor does it import what only a process that serves or works needs: a ``check`` or a ``migrate`` has to wait for
        whatever is imported here, the middleware and the first job import the rest.
        """
        register(check_settings)
        settings = get_settings()
        self.quiet = is_quiet()
        self.trace_signal = traces = await_traces(settings) if settings.traces.enabled else None
        self.logs = logs = build_logs(settings, traces) if settings.logs.enabled else None
        self.metrics = metrics = build_metrics(settings) if settings.metrics.enabled else None
        export = export_logs(settings, logs, traces) if logs is not None and settings.logs.otlp else None
        self.watch = watch = build_watch(settings, logs, traces) if logs is not None or traces is not None else None
        follow_orders(logs, watch, silent=settings.metrics.enabled)
        # What is adopted first is flushed last: the logs can still say what the others have lost.
        for pipeline in (logs, watch, export, metrics, traces):
            if pipeline is not None:
                guard.adopt(pipeline)
        guard.arm(settings.flush_timeout)
        self.telemetry = Telemetry(
            settings=settings,
            open_tracing=trace_requests(settings, traces) if traces is not None else None,
            open_instruments=(lambda: metrics.instruments.requests) if metrics is not None else None,
            access=logs.access if logs is not None else None,
        )
        measure_database(settings, traces, metrics)
        measure_cache(settings, traces, metrics)
        measure_work(settings, traces, metrics)
        if traces is not None:
            trace_more(settings, traces)
        if guard.pipelines:
            place_middleware()
        warn_of_problems()


def await_traces(settings: Settings) -> TraceSignal:
    """Have our provider installed, unless another one is there already, once anybody has to do with spans."""
    from django_obs.instrumentation.imports import when_imported
    from django_obs.trace_signal import TraceSignal

    signal = TraceSignal(settings.traces, service_name=settings.service_name, encoding=guard.worker)
    signal.install(when_imported)
    return signal


def trace_requests(settings: Settings, traces: TraceSignal) -> Callable[[], RequestTracing]:
    """Return what tells who makes the server spans: with our provider, or with the one that was there before."""
    from functools import cache

    def open_tracing() -> RequestTracing:
        from django_obs.traces.requests import RequestTracing

        return RequestTracing(tracer_of(traces.build()), redact=settings.logs.redact)

    return cache(open_tracing)


def build_logs(settings: Settings, traces: TraceSignal | None) -> LogPipeline:
    """Take over the console handlers that ``LOGGING`` set up, and let the control file change the filter."""
    from django.conf import settings as project

    from django_obs.logs.pipeline import LogPipeline

    pipeline = LogPipeline(
        quiet_in_tests(settings.logs),
        worker=guard.worker,
        service_name=settings.service_name,
        debug=project.DEBUG,
        filter_is_default=is_default("logs", "filter") and not is_quiet(),
    )
    if traces is not None:
        traces.when_built(lambda spans: pipeline.stamp_ids(spans.current_ids))
    pipeline.install()
    return pipeline


def quiet_in_tests(logs: LogSettings) -> LogSettings:
    """Return the settings with another default for ``manage.py test``: a line per request would hide its dots."""
    return replace(logs, filter="warn") if is_quiet() else logs


def is_quiet() -> bool:
    """Tell whether this is ``manage.py test``, and nobody has asked for lines."""
    return sys.argv[1:2] == ["test"] and is_default("logs", "filter")


def export_logs(settings: Settings, logs: LogPipeline, traces: TraceSignal | None) -> LogExport:
    """Send what is logged to the collector as well."""
    # A process has one instance id: it must not matter whether its first line or its first span is sent first.
    if traces is not None:
        traces.build()
    from django_obs.log_export import LogExport

    export = LogExport(settings, resource=resource_of(settings, traces), flush_lines=logs.force_flush)
    logs.listener.exporter = export
    return export


def build_watch(settings: Settings, logs: LogPipeline | None, traces: TraceSignal | None) -> Watch:
    """Let processes send copies of spans and lines to the admin port while somebody watches."""
    from django_obs.watch import Watch

    watch = Watch(
        resource=resource_of(settings, traces),
        prepare=traces.build if traces is not None else None,
        listener=logs.listener if logs is not None else None,
        flush_lines=logs.force_flush if logs is not None else None,
    )
    if traces is not None:
        traces.when_built(lambda spans: watch.attach(spans.provider))
    return watch


def resource_of(settings: Settings, traces: TraceSignal | None) -> Callable[[], Mapping[str, Any]]:
    """Return what tells who this process is: lines and spans say the same of it, its instance id included."""

    def resource() -> Mapping[str, Any]:
        if traces is not None:
            return traces.build().provider.resource_attributes
        from django_obs.traces.resource import resource_attributes

        return resource_attributes(settings.service_name)

    return resource


def follow_orders(logs: LogPipeline | None, watch: Watch | None, *, silent: bool) -> None:
    """Let the control file, which an operator writes, change the log filter of every process, and have it watched.

    With `silent` the metrics complain where the runtime directory cannot be used: once is enough.
    """
    if watch is None:
        return
    from django_obs import runtime

    def obey(order: runtime.FilterOrder | None) -> None:
        if logs is None:
            return
        if order is None:
            logs.filter.set(None)
        else:
            logs.filter.set(order.text, order.until, order.source)

    orders = runtime.Orders(obey, watch=watch.obey, silent=silent)

    def begin() -> None:
        # Not before the process has a request or a task: a command that is over in a moment leaves no directory behind.
        if not following:
            following.append(orders)
            guard.worker.every(0.5, orders.poll)
        orders.poll()

    def settle() -> None:
        # A command that goes on, a scheduler, a server's master process: they have neither requests nor tasks.
        if not following and not guard.closed and monotonic() - started > SETTLED:
            begin()

    following: list[runtime.Orders] = []
    started = monotonic()
    # A process that starts while an order holds has it from its first request on.
    guard.on_start.append(begin)
    guard.worker.every(0.5, settle)


def build_metrics(settings: Settings) -> MetricPipeline:
    """Let the project's metrics move into the shared store, and declare our own."""
    from django.conf import settings as project

    from django_obs import runtime
    from django_obs.metrics.pipeline import MetricPipeline

    pipeline = MetricPipeline(
        settings.metrics,
        directory=runtime.runtime_dir,
        guard=guard,
        namespace=getattr(project, "PROMETHEUS_METRIC_NAMESPACE", ""),
    )
    pipeline.install()
    return pipeline


def measure_database(settings: Settings, traces: TraceSignal | None, metrics: MetricPipeline | None) -> None:
    """See every query."""
    from django_obs.instrumentation.database import DatabaseInstrumentation

    instruments = None if metrics is None else lambda: metrics.instruments.database
    measure_leaves(DatabaseInstrumentation, settings, traces if settings.traces.database else None, instruments)


def measure_cache(settings: Settings, traces: TraceSignal | None, metrics: MetricPipeline | None) -> None:
    """See every cache operation."""
    from django_obs.instrumentation.cache import CacheInstrumentation

    instruments = None if metrics is None else lambda: metrics.instruments.cache
    measure_leaves(CacheInstrumentation, settings, traces if settings.traces.cache else None, instruments)


def measure_leaves(
    instrumentation: Callable[..., DatabaseInstrumentation | CacheInstrumentation],
    settings: Settings,
    traces: TraceSignal | None,
    instruments: Callable[[], Any] | None,
) -> None:
    """Measure each operation once: for the access line always, for spans and metrics where they are on."""
    if traces is None and instruments is None and not settings.logs.enabled:
        return
    leaves = instrumentation(instruments=instruments)
    leaves.install()
    if traces is not None:
        traces.when_built(lambda spans: leaves.trace(*leaf_doors(spans)))


def measure_work(settings: Settings, traces: TraceSignal | None, metrics: MetricPipeline | None) -> None:
    """See management commands, and the tasks of Celery and Django where a project has any."""
    from functools import cache

    from django_obs import runtime
    from django_obs.instrumentation.commands import CommandInstrumentation
    from django_obs.instrumentation.imports import when_imported

    def set_role(role: str) -> None:
        runtime.set_role(role)
        if metrics is not None:
            metrics.set_role(role)

    def instruments(name: str) -> Callable[[], Any] | None:
        if metrics is None:
            return None

        def make() -> Any:
            from django_obs.metrics import jobs

            return getattr(jobs, name)()

        return cache(make)

    tracer = cache(lambda: tracer_of(traces.build())) if traces is not None else None
    CommandInstrumentation(tracer=tracer, instruments=instruments("CommandInstruments"), set_role=set_role).install()

    @cache
    def tasks() -> TaskInstrumentation:
        # Of no use to a project that has neither.
        from django_obs.instrumentation.tasks import TaskInstrumentation

        return TaskInstrumentation(
            tracer=tracer,
            celery_metrics=instruments("CeleryInstruments"),
            django_metrics=instruments("DjangoTaskInstruments"),
            access=settings.logs.enabled and settings.logs.access,
            owns_logging=settings.logs.enabled,
            set_role=set_role,
        )

    when_imported("celery.signals", lambda: tasks().connect_celery())
    when_imported("django.tasks.signals", lambda: tasks().connect_django())


def tracer_of(traces: TracePipeline) -> Any:
    """Return our tracer, or one of the provider that was there before ours."""
    from opentelemetry import trace

    return traces.tracer if is_ours(traces) else trace.get_tracer("django_obs", __version__)


def trace_more(settings: Settings, traces: TraceSignal) -> None:
    """Make the spans that are asked for: of templates, of middleware, of calls to other services."""
    from django_obs.instrumentation.outgoing import OutgoingInstrumentation

    if settings.traces.templates:
        traces.when_built(trace_templates)
    if settings.traces.middleware:
        # The handler loads the other middleware before ours, which would be too late to build.
        trace_middleware(traces.build())
    OutgoingInstrumentation(settings.traces.instrument).install()


def trace_templates(traces: TracePipeline) -> None:
    """Make a span of each template that is rendered."""
    from django_obs.instrumentation.templates import TemplateInstrumentation

    TemplateInstrumentation(tracer=tracer_of(traces), current_span=traces.current_span).install()


def trace_middleware(traces: TracePipeline) -> None:
    """Make a span of each middleware."""
    from django_obs.instrumentation.middleware_spans import MiddlewareInstrumentation

    MiddlewareInstrumentation(tracer=tracer_of(traces), current_span=traces.current_span).install()


def leaf_doors(traces: TracePipeline) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Return who records leaves (our provider, or the one that was there before), and what makes their source."""
    from django_obs.traces.encoder import LeafSource

    if is_ours(traces):
        return traces.record_leaf, LeafSource
    from django_obs.traces.foreign import ForeignLeaves

    return ForeignLeaves(tracer_of(traces)), LeafSource


def is_ours(traces: TracePipeline) -> bool:
    """Tell whether our provider is the installed one."""
    from opentelemetry import trace

    return trace.get_tracer_provider() is traces.provider


def place_middleware() -> None:
    """Put our middleware outermost, unless the project has placed it."""
    from django.conf import settings as project

    # A tuple, or an object that is evaluated late, is as good as a list.
    placed = list(project.MIDDLEWARE)
    if MIDDLEWARE not in placed:
        project.MIDDLEWARE = [MIDDLEWARE, *placed]

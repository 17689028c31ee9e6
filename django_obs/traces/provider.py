"""The OpenTelemetry API's TracerProvider and Tracer, on our spans."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator
from functools import wraps
from inspect import iscoroutinefunction
from time import monotonic, time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NoOpTracer,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)

from . import encoder
from .limits import SpanLimits
from .propagation import (
    FLAGS,
    SPAN_KEY,
    attach,
    detach,
    extract,
    get_current,
    parse_traceparent,
    suppressed,
    uses_default_propagators,
)
from .resource import resource_attributes
from .sampler import KeepRule, RatioSampler, Sampler
from .span import LocalTrace, Span, UnrecordedSpan, generator, getrandbits, message_of, report_once

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.util.types import Attributes

    from .encoder import Group, Leaf
    from .held import Held

logger = logging.getLogger("django_obs")

# The same statement so many times in one request is worth a mark on its root.
REPEATS = 10
# The identifiers are drawn at random, which the flag of the W3C recommendation, level 2, tells.
RANDOM = 2


class Sink(Protocol):
    """What takes encoded spans."""

    def offer(self, groups: Sequence[Group]) -> None:
        """Take spans, by scope."""


class TracerProvider(api.TracerProvider):
    """Makes tracers; owns what all spans share: the sampler, the limits, the processors and the sink."""

    def __init__(
        self,
        sampler: Sampler | None = None,
        *,
        keep: KeepRule | None = None,
        limits: SpanLimits | None = None,
        resource: Mapping[str, Any] | None = None,
        service_name: str = "",
        sink: Sink | None = None,
    ) -> None:
        self.sampler = sampler or RatioSampler(1.0)
        self.keep = keep or KeepRule(errors=False, slower_than=None)
        self.limits = limits or SpanLimits.from_environment()
        self.service_name = service_name
        self.resource_attributes = dict(resource) if resource is not None else resource_attributes(service_name)
        self.sink = sink
        self.held: Held | None = None  # what is to go to our exporter, and may be encoded later
        self.repeats = REPEATS
        self.processors: tuple[Any, ...] = ()
        self.sampled_out = 0  # spans that were left out
        self.dropped = 0  # spans that a root could not hold
        self.failed = 0  # spans that could not be encoded
        self.disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        self.default_propagators: bool | None = None
        self._own_resource = resource is None
        self._sdk_resource: Any = None
        self._tracers: dict[Any, Tracer] = {}

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> api.Tracer:
        """Return the tracer of an instrumentation scope, the same one for the same scope."""
        if self.disabled:
            return NoOpTracer()
        if not instrumenting_module_name:
            logger.error("get_tracer() called without the name of the instrumenting module")
        return self.tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)

    def tracer(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> Tracer:
        """Return our tracer of an instrumentation scope."""
        key = (name, version, schema_url, repr(sorted(attributes.items())) if attributes else None)
        tracer = self._tracers.get(key)
        if tracer is None:
            # Of two threads that come here together one gets a twin that differs in nothing.
            tracer = self._tracers[key] = Tracer(self, name or "", version, schema_url, attributes)
        return tracer

    def deliver(self, trace: LocalTrace, items: Sequence[Span | Leaf]) -> None:
        """Have spans of one trace encoded, now or soon, for the sink. Never raises."""
        sink = self.sink
        if sink is None or not items:
            return
        held = self.held
        if held is not None and trace.lasting and held.put(sink, trace, items):
            return
        self.encode(sink, ((trace, items),))

    def encode(self, sink: Sink, traces: Iterable[tuple[LocalTrace, Sequence[Span | Leaf]]]) -> None:
        """Encode spans and offer them to a sink, all at once. Never raises."""
        groups: list[Group] = []
        limits = self.limits
        for trace, items in traces:
            try:
                groups += encoder.encode_items(items, trace, limits, generator)
            except Exception:
                groups += self._encode_one_by_one(trace, items)
        try:
            sink.offer(groups)
        except Exception:
            self.failed += sum(group[1] for group in groups)
            report_once("Spans could not be handed over", exc_info=True)

    def _encode_one_by_one(self, trace: LocalTrace, items: Sequence[Span | Leaf]) -> Iterator[Group]:
        # One span that cannot be encoded must not cost the others.
        for item in items:
            try:
                yield from encoder.encode_items((item,), trace, self.limits, generator)
            except Exception:
                self.failed += 1
                report_once("A span could not be encoded", exc_info=True)

    def add_span_processor(self, processor: Any) -> None:
        """Add a span processor of the OpenTelemetry SDK; from then on leaves are made as whole spans."""
        self.processors += (processor,)

    def on_start(self, span: Span, context: Context | None) -> None:
        """Tell the processors of a span that has started."""
        for processor in self.processors:
            try:
                processor.on_start(span, parent_context=context)
            except Exception:
                report_failure("span processor", processor)

    def on_end(self, span: Span) -> None:
        """Tell the processors of a span that has ended."""
        from .readable import readable

        for processor in self.processors:
            ending = getattr(processor, "_on_ending", None)
            if ending is not None:
                try:
                    ending(span)
                except Exception:
                    report_failure("span processor", processor)
        snapshot = readable(span)
        for processor in self.processors:
            try:
                processor.on_end(snapshot)
            except Exception:
                report_failure("span processor", processor)

    @property
    def resource(self) -> Any:
        """Return the resource as the SDK's Resource."""
        if self._sdk_resource is None:
            from .readable import sdk_resource

            self._sdk_resource = sdk_resource(self.resource_attributes)
        return self._sdk_resource

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the processors and the sink; tell whether everything was delivered."""
        deadline = monotonic() + timeout_millis / 1000
        flush = getattr(self.sink, "force_flush", None)
        complete = flush is None or bool(flush(timeout_millis / 1000))
        for processor in self.processors:
            left = max(0, round((deadline - monotonic()) * 1000))
            try:
                complete = processor.force_flush(left) is not False and complete
            except Exception:
                report_failure("span processor", processor)
                complete = False
        return complete

    def shutdown(self) -> None:
        """Shut the processors down; the exporter belongs to the pipeline."""
        for processor in self.processors:
            try:
                processor.shutdown()
            except Exception:
                report_failure("span processor", processor)

    def after_fork(self) -> None:
        """Become the provider of this process: other ids, another instance id, nothing counted yet."""
        generator.seed()
        self.sampled_out = self.dropped = self.failed = 0
        self._sdk_resource = None
        if self._own_resource:
            self.resource_attributes = resource_attributes(self.service_name)


def report_failure(what: str, culprit: object) -> None:
    """Report that what a project has plugged in failed; the span, and what it is about, go on."""
    report_once(f"The {what} {type(culprit).__qualname__} failed", exc_info=True)


class Tracer(api.Tracer):
    """Starts spans of one instrumentation scope."""

    def __init__(
        self,
        provider: TracerProvider,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> None:
        self.provider = provider
        self.name = name
        self.version = version
        self.schema_url = schema_url
        self.attributes = attributes
        self.scope = encoder.encode_scope(name, version, schema_url, attributes)
        self._sdk_scope: Any = None

    @property
    def instrumentation_scope(self) -> Any:
        """Return the scope as the SDK's InstrumentationScope."""
        if self._sdk_scope is None:
            from .readable import sdk_scope

            self._sdk_scope = sdk_scope(self)
        return self._sdk_scope

    def start_request(
        self, name: str, meta: Mapping[str, Any], attributes: dict[str, Any], start_ns: int | None = None
    ) -> Span | UnrecordedSpan:
        """Start the span of a request that ``request.META`` describes; the attributes are taken over, not copied.

        Its parent is what the headers say. Where a span is current already (a server or a middleware of somebody else
        has made one) it becomes that one's internal child, and where instrumentation is suppressed it is not recorded.
        """
        provider = self.provider
        context = get_current()
        base: Context | None = None
        origin: SpanContext | None = None
        if provider.default_propagators is None:
            provider.default_propagators = uses_default_propagators()
        if context or not provider.default_propagators or "HTTP_BAGGAGE" in meta:
            if suppressed(context):
                return UnrecordedSpan(INVALID_SPAN_CONTEXT)
            span = context.get(SPAN_KEY)
            if isinstance(span, api.Span) and span.get_span_context().is_valid:
                return self.start_span(name, context, SpanKind.INTERNAL, attributes, None, start_ns)  # type: ignore[return-value]
            base = extract(meta, context)
            found = api.get_current_span(base).get_span_context()
            if found.is_valid:
                origin = found
        else:
            header = meta.get("HTTP_TRACEPARENT")
            if header is not None:
                origin = parse_traceparent(header, meta.get("HTTP_TRACESTATE"))
        started = self._start_root(
            name, encoder.SERVER, attributes, time_ns() if start_ns is None else start_ns, origin, base
        )
        if provider.processors and type(started) is Span:
            provider.on_start(started, base)
        return started

    def _start_root(
        self,
        name: str,
        kind_field: bytes,
        attributes: dict[str, Any],
        start_time: int,
        origin: SpanContext | None,
        base: Context | None,
    ) -> Span | UnrecordedSpan:
        provider = self.provider
        span_id = getrandbits(64) or 1
        if origin is None:
            trace_id = getrandbits(128) or 1
            parent_id, flags, state = 0, RANDOM, None
        else:
            trace_id, parent_id, _, parent_flags, state, _ = origin
            flags = parent_flags & RANDOM
        try:
            sampled = provider.sampler.sampled(origin, trace_id, name, attributes)
        except Exception:
            report_failure("sampler", provider.sampler)
            sampled = True
        if sampled:
            flags |= 1
        elif not provider.keep and not provider.processors:
            return UnrecordedSpan(SpanContext(trace_id, span_id, False, FLAGS[flags], state), provider, base)
        trace = LocalTrace(provider, trace_id, span_id, flags, state, base)
        return Span(self, trace, span_id, parent_id, origin, name, kind_field, attributes, start_time)

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> api.Span:
        """Start a span; its parent is the current span of the context, by default of the current context."""
        provider = self.provider
        parent = (get_current() if context is None else context).get(SPAN_KEY)
        own = {} if attributes is None else dict(attributes)
        if start_time is None:
            start_time = time_ns()
        span: Span | UnrecordedSpan
        if type(parent) is Span and parent.trace.provider is provider:
            span = Span(
                self,
                parent.trace,
                getrandbits(64) or 1,
                parent.span_id,
                parent,
                name,
                encoder.INTERNAL if kind is SpanKind.INTERNAL else KIND_FIELDS[kind],
                own,
                start_time,
            )
        else:
            origin = _origin(parent)
            if type(parent) is UnrecordedSpan and origin is not None and not origin.is_remote:
                return UnrecordedSpan(
                    SpanContext(origin.trace_id, getrandbits(64) or 1, False, origin.trace_flags, origin.trace_state)
                )
            span = self._start_root(name, KIND_FIELDS[kind], own, start_time, origin, None)
        if (
            links
            or not (record_exception and set_status_on_exception)
            or len(own) > (provider.limits.attributes or len(own))
        ):
            self._complete(span, links, record_exception, set_status_on_exception)
        if provider.processors and type(span) is Span:
            provider.on_start(span, context)
        return span

    def _complete(
        self, span: Span | UnrecordedSpan, links: Sequence[Link] | None, record_exception: bool, set_status: bool
    ) -> None:
        if isinstance(span, Span):
            span.on_exception = record_exception | set_status << 1
            span.set_attributes({})
            for link in links or ():
                if link is not None:
                    span.add_link(link.context, link.attributes)

    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> CurrentSpan:
        """Return a context manager, also a decorator of functions and coroutines, with a span that is current in it."""
        return CurrentSpan(
            self,
            (name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception),
            end_on_exit,
        )


def _origin(parent: object) -> SpanContext | None:
    if not isinstance(parent, api.Span):
        return None
    context = parent.get_span_context()
    if not isinstance(context, SpanContext):
        raise TypeError(f"the span context of the parent must be a SpanContext, not {context!r}")
    return context if context.is_valid else None


class _KindFields(dict[SpanKind, bytes]):
    def __missing__(self, kind: SpanKind) -> bytes:
        report_once(f"{kind!r} is not a SpanKind, taken for INTERNAL")
        return encoder.INTERNAL


KIND_FIELDS = _KindFields(
    {
        SpanKind.INTERNAL: encoder.INTERNAL,
        SpanKind.SERVER: encoder.SERVER,
        SpanKind.CLIENT: encoder.CLIENT,
        SpanKind.PRODUCER: encoder.PRODUCER,
        SpanKind.CONSUMER: encoder.CONSUMER,
    }
)


class CurrentSpan(ContextDecorator):
    """A span that is current inside a ``with`` block, or while the function runs that it decorates."""

    __slots__ = ("_arguments", "_end_on_exit", "_token", "_tracer", "span")

    def __init__(self, tracer: Tracer, arguments: tuple[Any, ...], end_on_exit: bool) -> None:
        self._tracer = tracer
        self._arguments = arguments
        self._end_on_exit = end_on_exit

    def _recreate_cm(self) -> CurrentSpan:
        return CurrentSpan(self._tracer, self._arguments, self._end_on_exit)

    def __call__(self, func: Any) -> Any:
        """Decorate a function; each call has a span of its own, that of a coroutine lasts until it is done."""
        if not iscoroutinefunction(func):
            return super().__call__(func)

        @wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._recreate_cm():
                return await func(*args, **kwargs)

        return wrapper

    def __enter__(self) -> api.Span:
        """Start the span and make it current."""
        span = self.span = self._tracer.start_span(*self._arguments)
        self._token: Token[Context] = attach(Context({**get_current(), SPAN_KEY: span}))
        return span

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make the former span current, record an exception, end the span."""
        detach(self._token)
        span = self.span
        # Not what leaves by other means than an error: GeneratorExit, CancelledError, KeyboardInterrupt.
        if isinstance(error, Exception) and span.is_recording():
            if self._arguments[6]:
                span.record_exception(error)
            if self._arguments[7]:
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message_of(error)}"))
        if self._end_on_exit:
            span.end()

"""Spans on plain slots, and the local trace that holds them until its root has ended."""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import Token
from time import time_ns
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import trace as api
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceState

from django_obs.stack import stack_of

from . import encoder
from .propagation import FLAGS, SPAN_KEY, attach, get_current, suppressed

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes, AttributeValue

    from .encoder import Leaf, LeafSource
    from .provider import Tracer, TracerProvider

logger = logging.getLogger("django_obs")

UNSET: Final = Status(StatusCode.UNSET)
KINDS: Final = {
    encoder.INTERNAL: SpanKind.INTERNAL,
    encoder.SERVER: SpanKind.SERVER,
    encoder.CLIENT: SpanKind.CLIENT,
    encoder.PRODUCER: SpanKind.PRODUCER,
    encoder.CONSUMER: SpanKind.CONSUMER,
}
# Spans that one root may hold. A root that is sampled exports what it holds when there are more; one that the head left
# out keeps the first ones in case it fails or is slow.
HELD_SPANS: Final = 512

# A generator of our own: random.seed() in user code would make the ids of all workers alike. Like that of the random
# module it is seeded anew in a forked child; provider.after_fork() does it where no at-fork hook ran.
generator: Final = random.Random()
getrandbits: Final = generator.getrandbits
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=generator.seed)

# Types of values that nobody can change, and that no code of the project's has to be asked for.
ATOMS: Final = frozenset({str, int, float, bool, bytes, type(None)})
TEXT: Final = frozenset({str})
# More attributes than are ever put together late.
LATE: Final = 24

_reported: set[str] = set()


def is_plain(attributes: dict[Any, Any]) -> bool:
    """Tell whether attributes are the same whenever they are looked at, in whichever thread."""
    return ATOMS.issuperset(map(type, attributes.values())) and TEXT.issuperset(map(type, attributes))


def report_once(message: str, *, exc_info: bool = False) -> None:
    """Log a warning the first time."""
    if message not in _reported:
        _reported.add(message)
        logger.warning("%s (reported once)", message, exc_info=exc_info)


STACK = "exception.stacktrace"


def message_of(error: BaseException) -> str:
    """Return what an exception says, even if its ``__str__`` fails."""
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


class Event(NamedTuple):
    """Something that happened at one moment of a span, as readers of spans see it."""

    name: str
    attributes: BoundedAttributes
    timestamp: int

    @property
    def dropped_attributes(self) -> int:
        """Return how many attributes the limit cut off."""
        return self.attributes.dropped


class Extras:
    """What most spans do not have: events, links, and counts of what the limits cut off."""

    __slots__ = ("dropped_attributes", "dropped_events", "dropped_links", "events", "links")

    def __init__(self, events: int | None, links: int | None) -> None:
        self.events: deque[tuple[str, dict[str, Any], int]] = deque(maxlen=events)  # name, attributes, ns
        self.links: deque[Link] = deque(maxlen=links)
        self.dropped_attributes = self.dropped_events = self.dropped_links = 0

    def add_event(self, event: tuple[str, dict[str, Any], int]) -> None:
        if len(self.events) == self.events.maxlen:
            self.dropped_events += 1
        self.events.append(event)

    def add_link(self, link: Link) -> None:
        if len(self.links) == self.links.maxlen:
            self.dropped_links += 1
        self.links.append(link)


class LocalTrace(list["Span | Leaf"]):
    """What this process holds of a trace until its local root ends: ended children, and leaves.

    It is the list itself, so that ending a child or recording a query is one append.
    """

    __slots__ = (
        "context",
        "decision",
        "flags",
        "hex",
        "lasting",
        "limit",
        "overflow",
        "provider",
        "root_id",
        "state",
        "trace_id",
    )

    def __init__(
        self,
        provider: TracerProvider,
        trace_id: int,
        root_id: int,
        flags: int,
        state: TraceState | None = None,
        context: Context | None = None,
    ) -> None:
        self.provider = provider
        self.trace_id = trace_id
        self.root_id = root_id
        self.flags = flags
        self.state = state
        self.context = context  # what the propagators found beside the parent (baggage)
        self.limit = HELD_SPANS  # below zero once the root has ended
        self.decision: bool | None = None
        self.overflow = 0
        self.hex: str | None = None
        self.lasting = True  # nothing that ended spans hold can change any more

    def finish(self, root: Span) -> None:
        """Decide, when the root has ended, and export everything or forget everything."""
        self.limit = -1
        provider = self.provider
        if not self.flags & 1:
            reason = provider.keep.reason(root)
            if reason is None:
                self.decision = False
                provider.sampled_out += 1 + len(self) + self.overflow
                self.clear()
                return
            root.recorded_attributes["django_obs.sampling.kept"] = reason
        self.decision = True
        provider.dropped += self.overflow
        if not self:
            provider.deliver(self, (root,))
            return
        if len(self) >= provider.repeats:
            _mark_repeats(self, root, provider.repeats)
        self.append(root)
        self.flush()

    def flush(self) -> None:
        """Export what is held."""
        items = self[:]
        del self[: len(items)]
        self.provider.deliver(self, items)

    def spill(self) -> None:
        """Make room: the root holds too much, or has ended before this child."""
        if self.limit >= 0:
            if self.flags & 1:
                self.flush()
            else:
                self.overflow += len(self) - self.limit
                del self[self.limit :]
        elif self.decision:
            self.flush()
        else:
            self.provider.sampled_out += len(self)
            self.clear()


def _leave_to_parent() -> None:
    """Forget, in a forked child, what the root of the current span holds: that is the parent's to export.

    Nor will the root end here, most likely; what the child adds to the trace is exported as it comes.
    """
    span = get_current().get(SPAN_KEY)
    if type(span) is Span:
        trace = span.trace
        trace.clear()
        trace.overflow = 0
        trace.limit = -1
        trace.decision = bool(trace.flags & 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _mark_repeats(held: LocalTrace, root: Span, threshold: int) -> None:
    """Say on the root which statement its code has repeated, the sign of a query per row."""
    counts: dict[Any, int] = {}
    for item in held:
        if type(item) is tuple and item[0].repeats:
            counts[item[1]] = counts.get(item[1], 0) + 1
    if not counts:
        return
    statement = max(counts, key=counts.__getitem__)
    if counts[statement] >= threshold:
        text = statement if isinstance(statement, str) else str(statement)
        root.recorded_attributes["django_obs.db.repeated.count"] = counts[statement]
        root.recorded_attributes["django_obs.db.repeated.query_text"] = text[:1024]


class Span(api.Span):
    """A span that is recorded. Attributes are checked when they are encoded, not when they are set.

    It has the attributes of the SDK's ``ReadableSpan``, for span processors and for code that looks.
    """

    __slots__ = (
        "_context",
        "_ids",
        "end_time",
        "extras",
        "kind_field",
        "late",
        "name",
        "on_exception",
        "origin",
        "parent_id",
        "recorded_attributes",
        "recorded_status",
        "span_id",
        "start_time",
        "trace",
        "tracer",
    )

    def __init__(
        self,
        tracer: Tracer,
        trace: LocalTrace,
        span_id: int,
        parent_id: int,
        origin: Span | SpanContext | None,
        name: str,
        kind_field: bytes,
        attributes: dict[str, Any],
        start_time: int,
    ) -> None:
        self.tracer = tracer
        self.trace = trace
        self.span_id = span_id
        self.parent_id = parent_id
        self.origin = origin  # the parent; a context where it is remote, or another provider's
        self.name = name
        self.kind_field = kind_field
        self.recorded_attributes = attributes
        # A function and its arguments, which gives attributes that are put together when somebody looks.
        self.late: tuple[Any, ...] | None = None
        self.start_time = start_time
        self.end_time: int | None = None
        self.recorded_status: Status | None = None
        self.extras: Extras | None = None
        self._context: SpanContext | None = None
        self._ids: tuple[str, str] | None = None
        # Bit 0: record an exception that leaves the ``with`` block, bit 1: take it for the status.
        self.on_exception = 3

    def add_leaf(
        self,
        statement: Any,
        start_ns: int,
        end_ns: int,
        error: str | None = None,
        *,
        source: LeafSource,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Record an ended child that has no children: a query, a cache call.

        The statement must be hashable and is what the source describes; times are nanoseconds since the epoch; the
        error is the type of the exception.
        """
        trace = self.trace
        if trace.provider.processors:
            _spell_out(self, source, statement, start_ns, end_ns, error, attributes)
            return
        trace.append((source, statement, self.span_id, start_ns, end_ns, error, attributes))
        if len(trace) > trace.limit:
            trace.spill()

    def end(self, end_time: int | None = None) -> None:
        """End the span; the end of a local root decides about all spans that it holds."""
        if self.end_time is not None:
            report_once("end() called on an ended span")
            return
        if end_time is None:
            end_time = time_ns()
            try:
                if end_time < self.start_time:
                    end_time = self.start_time  # somebody has set the clock back
            except TypeError:
                pass  # somebody has given a time that is none
        self.end_time = end_time
        trace = self.trace
        attributes = self.recorded_attributes
        if self.extras is not None or type(self.name) is not str or (attributes and not is_plain(attributes)):
            trace.lasting = False
        if trace.provider.processors:
            trace.provider.on_end(self)
        if self.span_id == trace.root_id:
            trace.finish(self)
            return
        trace.append(self)
        if len(trace) > trace.limit:
            trace.spill()

    def activate(self) -> Token[Context]:
        """Make this the current span until the token is given to ``propagation.detach()``."""
        context = self.trace.context or get_current()
        return attach(Context({**context, SPAN_KEY: self} if context else {SPAN_KEY: self}))

    def ids(self) -> tuple[str, str]:
        """Return the trace id and the span id as 32 and 16 hexadecimal digits."""
        ids = self._ids
        if ids is None:
            trace = self.trace
            if trace.hex is None:
                trace.hex = trace.trace_id.to_bytes(16, "big").hex()
            ids = self._ids = (trace.hex, self.span_id.to_bytes(8, "big").hex())
        return ids

    def get_span_context(self) -> SpanContext:
        """Return the ids, flags and state that are propagated."""
        context = self._context
        if context is None:
            trace = self.trace
            context = self._context = SpanContext(trace.trace_id, self.span_id, False, FLAGS[trace.flags], trace.state)
        return context

    def is_recording(self) -> bool:
        """Tell whether the span has not ended."""
        return self.end_time is None

    def all_attributes(self) -> dict[str, Any]:
        """Return the attributes that were set, and those that are put together only now."""
        late = self.late
        if late is not None:
            attributes: dict[str, Any] = late[0](*late[1:])
            # What was set is newer, and stays. Another thread may look as well, or end the request.
            if self.recorded_attributes:
                attributes.update(self.recorded_attributes)
            self.recorded_attributes = attributes
            if self.late is late:
                self.late = None
        return self.recorded_attributes

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute; what cannot be encoded as it is becomes text."""
        if self.end_time is not None:
            report_once("set_attribute() called on an ended span")
            return
        attributes = self.recorded_attributes
        attributes[key] = value
        limit = self.tracer.provider.limits.attributes
        if limit is not None and len(attributes) + LATE > limit:
            self._shed(limit)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        if self.end_time is not None:
            report_once("set_attributes() called on an ended span")
            return
        self.recorded_attributes.update(attributes)
        limit = self.tracer.provider.limits.attributes
        if limit is not None and len(self.recorded_attributes) + LATE > limit:
            self._shed(limit)

    def _shed(self, limit: int) -> None:
        # The oldest go, as in the reference implementation.
        attributes = self.all_attributes()
        surplus = len(attributes) - limit
        if surplus <= 0:
            return
        for key in list(attributes)[:surplus]:
            del attributes[key]
        self._more().dropped_attributes += surplus

    def _more(self) -> Extras:
        if self.extras is None:
            limits = self.tracer.provider.limits
            self.extras = Extras(limits.events, limits.links)
        return self.extras

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event; the timestamp is nanoseconds since the epoch, by default now."""
        if self.end_time is not None:
            report_once("add_event() called on an ended span")
            return
        self._more().add_event(
            (name, dict(attributes) if attributes else {}, time_ns() if timestamp is None else timestamp)
        )

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link to another span, unless there is nothing valid to link to."""
        if self.end_time is not None:
            report_once("add_link() called on an ended span")
        elif context is not None and (context.is_valid or attributes or context.trace_state):
            limits = self.tracer.provider.limits
            own = BoundedAttributes(limits.link_attributes, attributes, True, limits.value_length)
            self._more().add_link(Link(context, own))

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        if self.end_time is not None:
            report_once("update_name() called on an ended span")
            return
        self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status. OK is final, and UNSET changes nothing, as the specification has it."""
        if self.end_time is not None:
            report_once("set_status() called on an ended span")
            return
        if isinstance(status, Status):
            if description is not None:
                report_once("set_status(): the description belongs into the Status")
        else:
            status = Status(status, description)
        code = status.status_code
        recorded = self.recorded_status
        if code is StatusCode.UNSET or (recorded is not None and recorded.status_code is StatusCode.OK):
            return
        self.recorded_status = status

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event with the type, the message and the stack trace of an exception."""
        kind = type(exception)
        module = kind.__module__
        event: dict[str, Any] = {
            "exception.type": kind.__qualname__ if module in (None, "builtins") else f"{module}.{kind.__qualname__}",
            "exception.message": message_of(exception),
            STACK: "",
            "exception.escaped": str(escaped),
        }
        if attributes:
            event.update(attributes)
        event[STACK] = event[STACK] or stack_of(exception, exception.__traceback__)
        self.add_event("exception", event, timestamp)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """End the span; an exception that leaves the block is recorded."""
        if exc_val is not None and self.end_time is None:
            if self.on_exception & 1:
                self.record_exception(exc_val, escaped=True)
            if self.on_exception & 2:
                self.set_status(Status(StatusCode.ERROR, f"{type(exc_val).__name__}: {message_of(exc_val)}"))
        self.end()

    # What follows is read by span processors, exporters and tests of the SDK.

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return the attributes as they are exported: checked, and cut to the limits."""
        limits = self.tracer.provider.limits
        return MappingProxyType(
            BoundedAttributes(limits.attributes, self.all_attributes(), True, limits.span_value_length)
        )

    @property
    def context(self) -> SpanContext:
        """Return the span context."""
        return self.get_span_context()

    @property
    def parent(self) -> SpanContext | None:
        """Return the span context of the parent."""
        origin = self.origin
        return origin.get_span_context() if isinstance(origin, Span) else origin

    @property
    def kind(self) -> SpanKind:
        """Return the span kind."""
        return KINDS[self.kind_field]

    @property
    def status(self) -> Status:
        """Return the status."""
        return self.recorded_status or UNSET

    @property
    def events(self) -> Sequence[Event]:
        """Return the events, the oldest first."""
        if self.extras is None:
            return ()
        limits = self.tracer.provider.limits
        return tuple(
            Event(name, BoundedAttributes(limits.event_attributes, attributes, True, limits.value_length), timestamp)
            for name, attributes, timestamp in self.extras.events
        )

    @property
    def links(self) -> Sequence[Link]:
        """Return the links, the oldest first."""
        return tuple(self.extras.links) if self.extras is not None else ()

    @property
    def dropped_attributes(self) -> int:
        """Return how many attributes the limit cut off."""
        return self.extras.dropped_attributes if self.extras is not None else 0

    @property
    def dropped_events(self) -> int:
        """Return how many events the limit cut off."""
        return self.extras.dropped_events if self.extras is not None else 0

    @property
    def dropped_links(self) -> int:
        """Return how many links the limit cut off."""
        return self.extras.dropped_links if self.extras is not None else 0

    @property
    def resource(self) -> Any:
        """Return the SDK's Resource."""
        return self.tracer.provider.resource

    @property
    def instrumentation_scope(self) -> Any:
        """Return the SDK's InstrumentationScope."""
        return self.tracer.instrumentation_scope

    @property
    def instrumentation_info(self) -> Any:
        """Return the SDK's InstrumentationInfo, which InstrumentationScope has replaced."""
        from .readable import sdk_info

        return sdk_info(self.tracer)

    def to_json(self, indent: int | None = 4) -> str:
        """Return the span as the SDK prints it."""
        from .readable import readable

        return str(readable(self).to_json(indent))

    def __repr__(self) -> str:
        return f'Span(name="{self.name}", context={self.get_span_context()!r})'


class UnrecordedSpan(NonRecordingSpan):
    """A span that the head sampler left out and that no rule could bring back. It carries the ids, no more."""

    def __init__(
        self, context: SpanContext, provider: TracerProvider | None = None, base: Context | None = None
    ) -> None:
        super().__init__(context)
        self._provider = provider  # counts it
        self._base = base

    def add_leaf(self, statement: Any, start_ns: int, end_ns: int, error: str | None = None, **_: Any) -> None:
        """Record nothing."""

    def end(self, end_time: int | None = None) -> None:
        """Count it as sampled out."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.sampled_out += 1

    def activate(self) -> Token[Context]:
        """Make this the current span until the token is given to ``propagation.detach()``."""
        return attach(Context({**(self._base or get_current()), SPAN_KEY: self}))

    def ids(self) -> tuple[str, str]:
        """Return the trace id and the span id as 32 and 16 hexadecimal digits."""
        context = self.get_span_context()
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def _spell_out(
    parent: Span,
    source: LeafSource,
    statement: Any,
    start_ns: int,
    end_ns: int,
    error: str | None,
    attributes: dict[str, Any] | None,
) -> None:
    """Make a whole span of a leaf, because somebody looks at spans."""
    name, described = source.describe(statement)
    span = Span(
        parent.tracer,
        parent.trace,
        getrandbits(64) or 1,
        parent.span_id,
        parent,
        name,
        source.kind,
        {**described, **(attributes or {})},
        start_ns,
    )
    if error is not None:
        span.recorded_attributes["error.type"] = error
        span.recorded_status = Status(StatusCode.ERROR)
    parent.trace.provider.on_start(span, None)
    span.end(end_ns)


def current_ids() -> tuple[str, str] | None:
    """Return the trace id and the span id of the current span (32 and 16 hexadecimal digits), sampled or not."""
    span = get_current().get(SPAN_KEY)
    if span is None:
        return None
    if type(span) is Span:
        return span._ids or span.ids()
    if not isinstance(span, api.Span):
        return None
    context = span.get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


def recording_span() -> Span | None:
    """Return the current span if it takes leaves: it is one of ours, has not ended, and nothing is suppressed here."""
    context = get_current()
    span = context.get(SPAN_KEY)
    if type(span) is not Span or span.end_time is not None:
        return None
    # Most often the span is all there is in a context.
    if len(context) > 1 and suppressed(context):
        return None
    return span


def record_leaf(
    source: LeafSource,
    statement: Any,
    start_ns: int,
    end_ns: int,
    error: str | None = None,
    attributes: dict[str, Any] | None = None,
) -> None:
    """Record an ended child of the current span that has no children, as `Span.add_leaf` does, if a span takes it.

    A statement that is no text is called for its text. Not by way of `recording_span()` and `add_leaf()`: each query
    would wait for two functions more.
    """
    context = get_current()
    span = context.get(SPAN_KEY)
    if type(span) is not Span or span.end_time is not None or (len(context) > 1 and suppressed(context)):
        return
    if type(statement) is not str:
        statement = statement()
    trace = span.trace
    if trace.provider.processors:
        _spell_out(span, source, statement, start_ns, end_ns, error, attributes)
        return
    trace.append((source, statement, span.span_id, start_ns, end_ns, error, attributes))
    if len(trace) > trace.limit:
        trace.spill()

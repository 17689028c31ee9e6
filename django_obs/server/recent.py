"""What was sent to the admin port last: spans and log lines, in bounded memory.

How it is used, by the console, the tail and whoever else reads::

    recent = Recent()                                 # within MAX_BYTES; slow is what takes longer than a second
    recent.add_traces(body, role="web")               # ExportTraceServiceRequest, ready to parse; returns spans refused
    recent.add_logs(body, role="web")                 # ExportLogsServiceRequest; both raise ValueError: not OTLP
    recent.traces(limit=50, errors=True)              # list[TraceSummary], the newest first
    recent.trace("4bf92f3577b34da6a3ce929d0e0e4736")  # Trace with spans and lines by time, or None
    recent.lines(limit=50, matches=Selection.read("warn,shop=debug").admits)  # list[Line], the newest first
    news = recent.follow(None)                        # where we are now: News(cursor, (), 0)
    news = recent.follow(news.cursor, timeout=20.0)   # News(cursor, items: Line | Finished, missed), waits for some
    recent.stats()                                    # dict: traces, spans, lines held; bytes; evicted, refused so far
    recent.close()                                    # wakes and ends all followers

All methods may be called from any thread. What is returned is frozen and complete: it does not change, and goes on to
live when the store has let go of it. Times ending in ``_ns`` are nanoseconds since the epoch, durations nanoseconds.
Ids are lower-case hexadecimal text, ``""`` for none. Attribute values are text, numbers, booleans, None, lists and
dicts of these. They were redacted by their sender if it was one of ours; text is not escaped.

The oldest goes first, but traces that failed or were slow, their lines, and lines that are errors are kept longer:
the others make room for them until they take half of the memory.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import Any, Final, Generic, TypeAlias, TypeVar

# Some thousands of requests with their queries and lines: a span of ours is 400 bytes, a line 1 KiB as we keep it.
MAX_BYTES: Final = 32 * 1024 * 1024
MAX_TRACES: Final = 5000
MAX_LINES: Final = 20_000
# A trace that never ends, of a process that runs for days under one root, shall not push out all others.
MAX_SPANS_OF_TRACE: Final = 5000
# The same in bytes, and of one line: a part of what all may take.
SHARE: Final = 8
# Beside its bytes: what the objects around a span, a line and a trace take, by sys.getsizeof on CPython 3.11 to 3.13.
SPAN_OVERHEAD: Final = 400
LINE_OVERHEAD: Final = 700
TRACE_OVERHEAD: Final = 1500

Plain: TypeAlias = "str | int | float | bool | list[Any] | dict[str, Any] | None"

KINDS: Final = ("internal", "internal", "server", "client", "producer", "consumer")
STATUSES: Final = ("unset", "ok", "error")
# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber: four numbers a level.
LEVELS: Final = ((21, 50, "CRITICAL"), (17, 40, "ERROR"), (13, 30, "WARNING"), (9, 20, "INFO"), (5, 10, "DEBUG"))
TRACE_LEVEL: Final = (5, "TRACE")
# SpanFlags: whether it is known that the parent is in another process, and whether it is.
HAS_IS_REMOTE, IS_REMOTE = 0x100, 0x200


@dataclass(frozen=True, slots=True)
class Source:
    """Who sent it."""

    service: str
    role: str
    """``web``, ``task``, ``command``; ``""`` if the sender is none of ours."""
    pid: int | None
    attributes: Mapping[str, Plain]
    """The resource."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened at one moment of a span; an exception is called ``exception``."""

    name: str
    time_ns: int
    attributes: Mapping[str, Plain]


@dataclass(frozen=True, slots=True)
class Span:
    """One span."""

    span_id: str
    parent_id: str
    name: str
    kind: str
    """One of `KINDS`."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Plain]
    status: str
    """One of `STATUSES`."""
    status_message: str
    events: tuple[SpanEvent, ...]
    scope: str
    """Name of the instrumentation that made it."""
    source: Source

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return max(0, self.end_ns - self.start_ns)


@dataclass(frozen=True, slots=True)
class Line:
    """One log record."""

    sequence: int
    """Its place among all lines and finished spans that came in."""
    time_ns: int
    level: str
    """Name of the level, such as ``WARNING``."""
    levelno: int
    """Its number in the standard library."""
    logger: str
    message: str
    trace_id: str
    span_id: str
    attributes: Mapping[str, Plain]
    """Fields; an exception is ``exception.type``, ``exception.message`` and ``exception.stacktrace``."""
    source: Source

    @property
    def error(self) -> bool:
        """Whether it is an error or worse."""
        return self.levelno >= 40


@dataclass(frozen=True, slots=True)
class Finished:
    """A request, a task, a command that is done: the first span of a trace in a process."""

    sequence: int
    trace_id: str
    span_id: str
    name: str
    kind: str
    start_ns: int
    duration_ns: int
    status: str
    http_status: int | None
    attributes: Mapping[str, Plain]
    source: Source

    @property
    def error(self) -> bool:
        """Whether it failed."""
        return self.status == "error"


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace, in short."""

    trace_id: str
    name: str
    """Of the root; while the root has not come in, of the earliest span."""
    service: str
    role: str
    start_ns: int
    duration_ns: int
    """Of the root; while it has not come in, from the first start to the last end."""
    status: str
    """Of the root."""
    http_status: int | None
    """Of the root."""
    span_count: int
    """Spans held."""
    dropped_spans: int
    """Spans beyond `MAX_SPANS_OF_TRACE`."""
    line_count: int
    error_spans: int
    """Spans with the status ``error``, those whose failure was dealt with included."""
    error: bool
    """Whether a request, task or command in it failed."""
    slow: bool
    """Whether a request, task or command in it took longer than the store calls slow."""
    complete: bool
    """Whether the root has come in."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace with all that is held of it, by time."""

    summary: TraceSummary
    spans: tuple[Span, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class News:
    """What came in after a cursor, in the order of arrival."""

    cursor: int
    """To ask with the next time."""
    items: tuple[Line | Finished, ...]
    missed: int
    """How many the store has let go of before they were asked for."""


class Recent:
    """Spans and lines that came in last."""

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_traces: int = MAX_TRACES,
        max_lines: int = MAX_LINES,
        slower_than: float | None = 1.0,
    ) -> None:
        """``slower_than``: seconds from which on a request is slow, None for never."""
        self._slow_ns = None if slower_than is None else int(slower_than * 1e9)
        # News are kept apart: who follows sees in order what came in, whatever is kept for how long.
        self._traces: _Shelf[str, _Held] = _Shelf(max_bytes // 2, max_traces)
        self._lines: _Shelf[int, Line] = _Shelf(max_bytes // 4, max_lines)
        self._news: deque[tuple[Line | Finished, int]] = deque()
        self._news_bytes = 0
        self._max_news_bytes = max_bytes // 4
        self._lines_of: dict[str, list[int]] = {}
        self._sources: dict[tuple[bytes, str], Source] = {}
        self._sequence = 0
        self._arrivals = 0
        self._closed = False
        self._refused = 0
        self._changed = threading.Condition()

    # -- Writing -------------------------------------------------------------------------------------------------------

    def add_traces(self, body: bytes, *, role: str = "") -> int:
        """Take an ``ExportTraceServiceRequest``; return how many spans were refused. Raises ValueError."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return self.add_trace_request(parsed(ExportTraceServiceRequest, body), role=role)

    def add_trace_request(self, request: Any, *, role: str = "") -> int:
        """Take what `add_traces` has parsed."""
        refused = 0
        with self._changed:
            for resource_spans in request.resource_spans:
                source, weight = self._source(resource_spans.resource, role)
                for scope_spans in resource_spans.scope_spans:
                    scope = scope_spans.scope.name
                    for span in scope_spans.spans:
                        if not _has_ids(span):
                            refused += 1
                        else:
                            self._add_span(span, scope, source, weight)
            self._refused += refused
            self._changed.notify_all()
        return refused

    def add_logs(self, body: bytes, *, role: str = "") -> int:
        """Take an ``ExportLogsServiceRequest``; return how many records were refused. Raises ValueError."""
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        return self.add_log_request(parsed(ExportLogsServiceRequest, body), role=role)

    def add_log_request(self, request: Any, *, role: str = "") -> int:
        """Take what `add_logs` has parsed."""
        refused = 0
        with self._changed:
            for resource_logs in request.resource_logs:
                source, weight = self._source(resource_logs.resource, role)
                for scope_logs in resource_logs.scope_logs:
                    scope = scope_logs.scope.name
                    for record in scope_logs.log_records:
                        refused += not self._add_line(record, scope, source, weight)
            self._refused += refused
            self._changed.notify_all()
        return refused

    def clear(self) -> None:
        """Forget everything; cursors go on to hold."""
        with self._changed:
            self._traces.clear()
            self._lines.clear()
            self._lines_of.clear()
            self._news.clear()
            self._sources.clear()
            self._news_bytes = 0

    def close(self) -> None:
        """End all waits of followers, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- Reading -------------------------------------------------------------------------------------------------------

    def traces(
        self,
        *,
        limit: int = 100,
        errors: bool = False,
        slower_than: float | None = None,
        matches: Callable[[TraceSummary], object] | None = None,
    ) -> list[TraceSummary]:
        """Return traces, the latest first: those that failed, those slower than so many seconds, or either, or all."""
        found: list[TraceSummary] = []
        with self._changed:
            held = self._traces.latest_first(lambda each: each.arrived)
            for each in held:
                if len(found) >= limit:
                    break
                summary = self._summary(each)
                if errors or slower_than is not None:
                    slow = slower_than is not None and summary.duration_ns >= slower_than * 1e9
                    if not ((errors and summary.error) or slow):
                        continue
                if matches is None or matches(summary):
                    found.append(summary)
        return found

    def trace(self, trace_id: str) -> Trace | None:
        """Return a trace, by its id in hexadecimal; also one of which only lines have come in. None if unknown."""
        trace_id = trace_id.lower()
        with self._changed:
            held = self._traces.get(trace_id)
            lines = self._lines_of_trace(trace_id)
            if held is None:
                if not lines:
                    return None
                summary, packed = _summary_of_lines(trace_id, lines), []
            else:
                summary, packed = self._summary(held), list(held.spans)
        # Not under the lock: senders wait for it.
        spans = sorted(map(_unpacked, packed), key=lambda span: (span.start_ns, -span.end_ns))
        return Trace(summary, tuple(spans), tuple(sorted(lines, key=lambda line: (line.time_ns, line.sequence))))

    def lines(
        self, *, limit: int = 100, trace_id: str = "", matches: Callable[[Line], object] | None = None
    ) -> list[Line]:
        """Return lines, the latest first, of one trace or of all."""
        with self._changed:
            if trace_id:
                candidates = sorted(self._lines_of_trace(trace_id.lower()), key=lambda line: -line.sequence)
            else:
                candidates = self._lines.latest_first(lambda line: line.sequence)
        found: list[Line] = []
        for line in candidates:
            if len(found) >= limit:
                break
            if matches is None or matches(line):
                found.append(line)
        return found

    def follow(self, cursor: int | None, *, timeout: float = 0.0, limit: int = 1000) -> News:
        """Return what came in after a cursor, ``None`` for now; wait for so many seconds until there is something."""
        deadline = monotonic() + timeout
        with self._changed:
            if cursor is None:
                return News(self._sequence, (), 0)
            # A cursor of a process that was here before: its numbers are not ours.
            cursor = min(max(cursor, 0), self._sequence)
            while self._sequence <= cursor and not self._closed:
                left = deadline - monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            newer: list[Line | Finished] = []
            for item, _ in reversed(self._news):
                if item.sequence <= cursor:
                    break
                newer.append(item)
            newer.reverse()
            missed = self._sequence - cursor - len(newer)
            items = tuple(newer[:limit])
            return News(items[-1].sequence if items else self._sequence, items, missed)

    def stats(self) -> dict[str, int]:
        """Return what is held, and what was let go of and refused so far."""
        with self._changed:
            return {
                "traces": len(self._traces),
                "spans": sum(len(held.spans) for held in self._traces.values()),
                "lines": len(self._lines),
                "bytes": self._traces.bytes + self._lines.bytes + self._news_bytes,
                "evicted_traces": self._traces.evicted,
                "evicted_lines": self._lines.evicted,
                "refused": self._refused,
            }

    # -- Keeping -------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _source(self, resource: Any, role: str) -> tuple[Source, int]:
        """Return the sender, one object for all that it sends, and the bytes that it takes."""
        encoded = resource.SerializeToString()
        source = self._sources.get((encoded, role))
        if source is None:
            attributes = attributes_of(resource.attributes)
            pid = attributes.get("process.pid")
            source = Source(
                str(attributes.get("service.name") or ""), role, pid if isinstance(pid, int) else None, attributes
            )
            if len(self._sources) >= 256:
                self._sources.clear()
            # What is large is not kept beyond what it came with, and may take many times the bytes of its encoding.
            if len(encoded) > 4096:
                return source, len(encoded) + weight_of(attributes)
            self._sources[encoded, role] = source
        # Charged to each trace and line of it, as if it were not shared: rather too much than too little.
        return source, len(encoded)

    def _add_span(self, message: Any, scope: str, source: Source, source_weight: int) -> None:
        trace_id = message.trace_id.hex()
        held = self._traces.get(trace_id)
        if held is None:
            held = _Held(trace_id)
            weight = TRACE_OVERHEAD
        else:
            weight = self._traces.weight(trace_id)
        if message.span_id in held.ids:
            return  # sent again by somebody who did not hear our answer
        encoded = message.SerializeToString()
        # The scope's name comes once for all of its spans, or with each of them.
        weight += len(encoded) + len(scope) + source_weight + SPAN_OVERHEAD
        if len(held.spans) >= MAX_SPANS_OF_TRACE or weight > self._traces.max_bytes // SHARE:
            held.dropped += 1
            return
        held.ids.add(message.span_id)
        held.spans.append((encoded, scope, source))
        self._arrivals += 1
        held.arrived = self._arrivals
        start, end = message.start_time_unix_nano, max(message.start_time_unix_nano, message.end_time_unix_nano)
        failed = message.status.code == 2
        held.error_spans += failed
        held.first = min(held.first, start)
        held.last = max(held.last, end)
        root = _is_local_root(message)
        rank = (bool(message.parent_span_id), not root, start)
        if held.root is None or rank < held.rank:
            held.rank = rank
            held.root = (message.name, start, end, _status(message), _http_status(message), source)
        if root:
            held.error = held.error or failed
            held.slow = held.slow or (self._slow_ns is not None and end - start >= self._slow_ns)
            finished = _finished(message, source, self._next())
            self._tell(finished, LINE_OVERHEAD + source_weight + weight_of((finished.name, finished.attributes)))
        notable = held.error or held.slow
        if notable and not self._traces.is_notable(trace_id):
            for sequence in self._lines_of.get(trace_id, ()):
                self._lines.promote(sequence)
        self._traces.put(trace_id, held, weight, notable=notable)

    def _add_line(self, record: Any, scope: str, source: Source, source_weight: int) -> bool:
        line = _line(record, scope, source, self._sequence + 1)
        weight = LINE_OVERHEAD + source_weight + weight_of((line.message, line.level, line.logger, line.attributes))
        if weight > self._lines.max_bytes // SHARE:
            return False
        self._sequence += 1
        notable = line.error or self._traces.is_notable(line.trace_id)
        if line.trace_id:
            self._lines_of.setdefault(line.trace_id, []).append(line.sequence)
        for gone in self._lines.put(line.sequence, line, weight, notable=notable):
            self._forget(gone)
        self._tell(line, weight)
        return True

    def _forget(self, line: Line) -> None:
        sequences = self._lines_of.get(line.trace_id)
        if sequences is not None:
            sequences.remove(line.sequence)
            if not sequences:
                del self._lines_of[line.trace_id]

    def _tell(self, item: Line | Finished, weight: int) -> None:
        self._news.append((item, weight))
        self._news_bytes += weight
        while self._news_bytes > self._max_news_bytes and self._news:
            self._news_bytes -= self._news.popleft()[1]

    def _lines_of_trace(self, trace_id: str) -> list[Line]:
        found = (self._lines.get(sequence) for sequence in self._lines_of.get(trace_id, ()))
        return [line for line in found if line is not None]

    def _summary(self, held: _Held) -> TraceSummary:
        assert held.root is not None
        name, start, end, status, http_status, source = held.root
        complete = not held.rank[0]
        local = not held.rank[1]
        return TraceSummary(
            trace_id=held.trace_id,
            name=name,
            service=source.service,
            role=source.role,
            start_ns=start if local else held.first,
            duration_ns=end - start if local else held.last - held.first,
            status=status,
            http_status=http_status,
            span_count=len(held.spans),
            dropped_spans=held.dropped,
            line_count=len(self._lines_of.get(held.trace_id, ())),
            error_spans=held.error_spans,
            error=held.error,
            slow=held.slow,
            complete=complete,
        )


class _Held:
    """A trace as it is kept: spans as bytes, a tenth of what their objects take."""

    __slots__ = (
        "arrived",
        "dropped",
        "error",
        "error_spans",
        "first",
        "ids",
        "last",
        "rank",
        "root",
        "slow",
        "spans",
        "trace_id",
    )

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id
        self.spans: list[tuple[bytes, str, Source]] = []
        self.ids: set[bytes] = set()
        self.arrived = 0
        self.dropped = 0
        self.error_spans = 0
        self.error = False
        self.slow = False
        self.first = 1 << 64
        self.last = 0
        self.rank: tuple[bool, bool, int] = (True, True, 0)
        self.root: tuple[str, int, int, str, int | None, Source] | None = None


K = TypeVar("K")
V = TypeVar("V")


class _Shelf(Generic[K, V]):
    """Things by their key, within so many bytes and pieces; the oldest makes room, the notable ones last."""

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self.max_bytes = max_bytes
        self.max_items = max_items
        self.evicted = 0
        self.clear()

    def clear(self) -> None:
        self._ordinary: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._notable: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0
        self._notable_bytes = 0

    def __len__(self) -> int:
        return len(self._ordinary) + len(self._notable)

    def get(self, key: K) -> V | None:
        found = self._ordinary.get(key) or self._notable.get(key)
        return found[0] if found else None

    def weight(self, key: K) -> int:
        found = self._ordinary.get(key) or self._notable.get(key)
        return found[1] if found else 0

    def is_notable(self, key: K) -> bool:
        return key in self._notable

    def values(self) -> Iterable[V]:
        for shelf in (self._notable, self._ordinary):
            for value, _ in shelf.values():
                yield value

    def latest_first(self, age: Callable[[V], int]) -> list[V]:
        return sorted(self.values(), key=age, reverse=True)

    def put(self, key: K, value: V, weight: int, *, notable: bool) -> list[V]:
        """Put it at the new end; return what had to make room, which may be the thing itself."""
        self._take(key)
        shelf = self._notable if notable else self._ordinary
        shelf[key] = (value, weight)
        self.bytes += weight
        self._notable_bytes += weight if notable else 0
        gone = []
        while self.bytes > self.max_bytes or len(self) > self.max_items:
            crowded = self._notable_bytes * 2 > self.max_bytes or len(self._notable) * 2 > self.max_items
            oldest = next(iter(self._notable if crowded or not self._ordinary else self._ordinary))
            evicted = self._take(oldest)
            assert evicted is not None
            gone.append(evicted[0])
        self.evicted += len(gone)
        return gone

    def promote(self, key: K) -> None:
        """Keep it longer from now on."""
        found = self._ordinary.pop(key, None)
        if found is not None:
            self._notable[key] = found
            self._notable_bytes += found[1]

    def _take(self, key: K) -> tuple[V, int] | None:
        found = self._ordinary.pop(key, None)
        if found is None:
            found = self._notable.pop(key, None)
            if found is None:
                return None
            self._notable_bytes -= found[1]
        self.bytes -= found[1]
        return found


# -- Reading OTLP -----------------------------------------------------------------------------------------------------


def parsed(kind: Any, body: bytes) -> Any:
    """Return the message of this kind. Raises ValueError."""
    # It has no types, and comes with the classes of OpenTelemetry.
    decode_error: Any = import_module("google.protobuf.message").DecodeError
    try:
        return kind.FromString(body)
    except decode_error as error:
        raise ValueError(f"not an {kind.DESCRIPTOR.name}: {error}") from None


def plain(value: Any) -> Plain:
    """Return an AnyValue as what it stands for; bytes as hexadecimal text."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    found = getattr(value, kind)
    return found.hex() if isinstance(found, bytes) else found


def attributes_of(pairs: Iterable[Any]) -> dict[str, Plain]:
    """Return KeyValues as a dict."""
    return {pair.key: plain(pair.value) for pair in pairs}


def weight_of(value: object) -> int:
    """Return the bytes that a value takes in memory, all that it holds included."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(weight_of(key) + weight_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return size + sum(map(weight_of, value))
    return size


def _has_ids(span: Any) -> bool:
    return len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) and any(span.span_id)


def _is_local_root(span: Any) -> bool:
    """Tell whether a span is the first one of its trace in a process."""
    if not span.parent_span_id or span.flags & (HAS_IS_REMOTE | IS_REMOTE) == HAS_IS_REMOTE | IS_REMOTE:
        return True
    # Who does not tell where the parent is: these kinds have theirs elsewhere.
    return not span.flags & HAS_IS_REMOTE and span.kind in (2, 5)


def _status(span: Any) -> str:
    # The enumeration is open: any number may come.
    return STATUSES[span.status.code] if span.status.code in (0, 1, 2) else STATUSES[0]


def _http_status(span: Any) -> int | None:
    for pair in span.attributes:
        if pair.key in ("http.response.status_code", "http.status_code"):
            found = plain(pair.value)
            return found if isinstance(found, int) else None
    return None


def _finished(message: Any, source: Source, sequence: int) -> Finished:
    return Finished(
        sequence=sequence,
        trace_id=message.trace_id.hex(),
        span_id=message.span_id.hex(),
        name=message.name,
        kind=KINDS[message.kind] if 0 <= message.kind < len(KINDS) else KINDS[0],
        start_ns=message.start_time_unix_nano,
        duration_ns=max(0, message.end_time_unix_nano - message.start_time_unix_nano),
        status=_status(message),
        http_status=_http_status(message),
        attributes=attributes_of(message.attributes),
        source=source,
    )


def _unpacked(packed: tuple[bytes, str, Source]) -> Span:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

    encoded, scope, source = packed
    message = Message.FromString(encoded)
    return Span(
        span_id=message.span_id.hex(),
        parent_id=message.parent_span_id.hex(),
        name=message.name,
        kind=KINDS[message.kind] if 0 <= message.kind < len(KINDS) else KINDS[0],
        start_ns=message.start_time_unix_nano,
        end_ns=message.end_time_unix_nano,
        attributes=attributes_of(message.attributes),
        status=_status(message),
        status_message=message.status.message,
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano, attributes_of(event.attributes)) for event in message.events
        ),
        scope=scope,
        source=source,
    )


def _line(record: Any, scope: str, source: Source, sequence: int) -> Line:
    levelno, level = next(
        ((levelno, level) for least, levelno, level in LEVELS if record.severity_number >= least),
        # 0 is "not told".
        TRACE_LEVEL if record.severity_number else (20, "INFO"),
    )
    body = plain(record.body)
    return Line(
        sequence=sequence,
        time_ns=record.time_unix_nano or record.observed_time_unix_nano,
        level=record.severity_text or level,
        levelno=levelno,
        logger=scope,
        message=body if isinstance(body, str) else "" if body is None else str(body),
        trace_id=record.trace_id.hex() if len(record.trace_id) == 16 and any(record.trace_id) else "",
        span_id=record.span_id.hex() if len(record.span_id) == 8 and any(record.span_id) else "",
        attributes=attributes_of(record.attributes),
        source=source,
    )


def _summary_of_lines(trace_id: str, lines: list[Line]) -> TraceSummary:
    first, last = min(line.time_ns for line in lines), max(line.time_ns for line in lines)
    source = lines[0].source
    return TraceSummary(
        trace_id=trace_id,
        name="",
        service=source.service,
        role=source.role,
        start_ns=first,
        duration_ns=last - first,
        status=STATUSES[0],
        http_status=None,
        span_count=0,
        dropped_spans=0,
        line_count=len(lines),
        error_spans=0,
        error=any(line.error for line in lines),
        slow=False,
        complete=False,
    )

"""OTLP protobuf, written by hand: the messages of opentelemetry-proto 1.x as bytes, with cached fragments.

A message of protobuf is the concatenation of its fields, so whatever repeats (a key, a key with its value, all of a
statement but its ids and times) is encoded once and kept as bytes. The caches are bounded: one that is full is emptied.
Field numbers: https://github.com/open-telemetry/opentelemetry-proto/tree/main/opentelemetry/proto
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanContext

from django_obs import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Status, TraceState

    from .limits import SpanLimits
    from .span import LocalTrace, Span

# The schema of the semantic conventions whose names our spans use.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.34.0"
CACHE_SIZE: Final = 4096
# Longer strings (paths with ids, user agents, statements) seldom repeat and would make the caches large.
CACHED_LENGTH: Final = 200
# Deeper values are written as text: a value that contains itself must come to an end.
MAX_DEPTH: Final = 32
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = (bytes((0x30, number)) for number in range(1, 6))
# SpanFlags of the proto: 0x100 says that the next bit is known, 0x200 that the parent is in another process.
FLAGS_LOCAL: Final = b"\x85\x01\x00\x01\x00\x00"
FLAGS_REMOTE: Final = b"\x85\x01\x00\x03\x00\x00"
STATUS_ERROR: Final = b"\x7a\x02\x18\x02"

_VARINTS = tuple(bytes((number,)) for number in range(128))
_pack_double = struct.Struct("<Bd").pack
_pack_time = struct.Struct("<BQ").pack
# Field 7 and 8 of a span, fixed64 each.
_pack_times = struct.Struct("<BQBQ").pack
_pack_id = struct.Struct(">Q").pack
_pack_ids = struct.Struct(">2s16s2sQ").pack
_pack_ids_with_parent = struct.Struct(">2s16s2sQ2sQ").pack

# Keyed by (key, value). Two dicts, because 1 == 1.0 == True and all three hash alike.
_texts: dict[tuple[str, str], bytes] = {}
_integers: dict[tuple[str, int], bytes] = {}
_keys: dict[str, bytes] = {}
_names: dict[str, bytes] = {}


def varint(number: int) -> bytes:
    """Encode a number from 0 to 2**64 - 1."""
    if number < 128:
        return _VARINTS[number]
    if number < 16384:
        return bytes((number & 127 | 128, number >> 7))
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def delimited(tag: bytes, content: bytes) -> bytes:
    """Encode a length-delimited field: a string, bytes or a message."""
    return tag + varint(len(content)) + content


def text_bytes(text: str) -> bytes:
    """Encode text as UTF-8; a lone surrogate is written as its escape, since a collector refuses the whole batch."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def encode_value(value: Any, limit: int | None = None, depth: int = 0) -> bytes:
    """Encode an AnyValue. What the protocol has no type for is written as its text."""
    kind = type(value)
    if kind is str:
        if limit is not None:
            value = value[:limit]
        try:
            encoded: bytes = value.encode()
        except UnicodeEncodeError:
            encoded = text_bytes(value)
        return b"\x0a" + varint(len(encoded)) + encoded
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        if INT64_MIN <= value <= INT64_MAX:
            return b"\x18" + varint(value & 0xFFFFFFFFFFFFFFFF)
        return delimited(b"\x0a", str(value).encode())
    if kind is float:
        return _pack_double(0x21, value)
    return _encode_rare_value(value, limit, depth)


def _encode_rare_value(value: object, limit: int | None, depth: int) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return encode_value(str.__str__(value), limit)
    if isinstance(value, int):
        return encode_value(int(value))
    if isinstance(value, float):
        return _pack_double(0x21, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return delimited(b"\x3a", bytes(value))
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            pairs = b"".join(
                delimited(b"\x0a", _key_value(str(key), item, limit, depth + 1)) for key, item in value.items()
            )
            return delimited(b"\x32", pairs)
        if isinstance(value, (Sequence, set, frozenset)):
            items = b"".join(delimited(b"\x0a", encode_value(item, limit, depth + 1)) for item in value)
            return delimited(b"\x2a", items)
    return delimited(b"\x0a", text_bytes(str(value)[:limit]))


def _key_value(key: str, value: object, limit: int | None, depth: int = 0) -> bytes:
    name = _keys.get(key)
    if name is None:
        name = delimited(b"\x0a", text_bytes(key)) + b"\x12"
        if len(key) <= CACHED_LENGTH:
            if len(_keys) >= CACHE_SIZE:
                _keys.clear()
            _keys[key] = name
    encoded = encode_value(value, limit, depth)
    return name + varint(len(encoded)) + encoded


def _span_attribute(pair: tuple[str, Any]) -> bytes:
    """Encode one attribute of a span, with its tag, and keep it if it may come again; empty if it cannot be encoded."""
    key, value = pair
    kind = type(value)
    try:
        if type(key) is not str:
            return delimited(b"\x4a", _key_value(str(key), value, None))
        if not key:
            return b""
        encoded = _key_value(key, value, None)
    except Exception:
        # An object whose __str__ raises costs its attribute, not its span.
        return b""
    fragment = b"\x4a" + varint(len(encoded)) + encoded
    if kind is str:
        if len(value) <= CACHED_LENGTH:
            if len(_texts) >= CACHE_SIZE:
                _texts.clear()
            _texts[pair] = fragment
    elif kind is int:
        if len(_integers) >= CACHE_SIZE:
            _integers.clear()
        _integers[pair] = fragment
    return fragment


def _span_attributes(attributes: dict[str, Any]) -> list[bytes]:
    """Encode the attributes of a span; those that cannot be encoded are empty."""
    try:
        # Text is found in one pass; a number is equal to no text, and what cannot be a key of a dict raises.
        fragments: list[Any] = list(map(_texts.get, attributes.items()))
    except TypeError:
        fragments = [None] * len(attributes)
    missing = fragments.count(None)
    if missing:
        pairs = list(attributes.items())
        at = -1
        for _ in range(missing):
            at = fragments.index(None, at + 1)
            pair = pairs[at]
            fragments[at] = (type(pair[1]) is int and _integers.get(pair)) or _span_attribute(pair)
    return fragments


def _name(name: str) -> bytes:
    """Encode field 5 of a span, and keep it if it may come again."""
    encoded = delimited(b"\x2a", text_bytes(name if type(name) is str else str(name)))
    if type(name) is str and len(name) <= CACHED_LENGTH:
        if len(_names) >= CACHE_SIZE:
            _names.clear()
        _names[name] = encoded
    return encoded


def encode_attributes(
    tag: bytes, attributes: Mapping[Any, Any], limit: int | None = None, count: int | None = None
) -> tuple[bytes, int]:
    """Encode repeated KeyValues under a tag, the newest ``count`` of them; return them and how many were left out."""
    pairs = list(attributes.items())
    dropped = 0
    if count is not None and len(pairs) > count:
        dropped = len(pairs) - count
        pairs = pairs[dropped:]
    out = []
    for key, value in pairs:
        if key == "" or key is None:
            dropped += 1
            continue
        try:
            out.append(delimited(tag, _key_value(str(key), value, limit)))
        except Exception:
            dropped += 1
    return b"".join(out), dropped


def _encode_event(name: str, attributes: dict[str, Any], timestamp: int, limits: SpanLimits) -> bytes:
    encoded, dropped = encode_attributes(b"\x1a", attributes, limits.value_length, limits.event_attributes)
    parts = [_pack_time(0x09, _time(timestamp)), delimited(b"\x12", text_bytes(str(name))), encoded]
    if dropped:
        parts.append(b"\x20" + varint(dropped))
    return delimited(b"\x5a", b"".join(parts))


def _encode_link(link: Link) -> bytes:
    context = link.context
    parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    if context.trace_state:
        parts.append(delimited(b"\x1a", encode_trace_state(context.trace_state)))
    attributes, dropped = encode_attributes(b"\x22", link.attributes or {})
    parts.append(attributes)
    dropped += link.dropped_attributes
    if dropped:
        parts.append(b"\x28" + varint(dropped))
    parts.append(b"\x35\x00\x03\x00\x00" if context.is_remote else b"\x35\x00\x01\x00\x00")
    return delimited(b"\x6a", b"".join(parts))


def _encode_status(status: Status) -> bytes:
    description = status.description
    message = delimited(b"\x12", text_bytes(description)) if description else b""
    return delimited(b"\x7a", message + b"\x18" + varint(status.status_code.value))


def encode_trace_state(state: TraceState) -> bytes:
    """Encode the entries as they stand in a ``tracestate`` header."""
    return text_bytes(",".join(f"{key}={value}" for key, value in state.items()))


def _time(nanoseconds: object) -> int:
    """Make an unsigned 64-bit number of whatever was given as a time."""
    return min(max(int(nanoseconds), 0), 0xFFFFFFFFFFFFFFFF)  # type: ignore[call-overload, no-any-return]


def encode_span(span: Span, trace_id: bytes, limits: SpanLimits) -> bytes:
    """Encode an ended span as field 2 of ScopeSpans."""
    parent_id = span.parent_id
    if parent_id:
        out = [_pack_ids_with_parent(b"\x0a\x10", trace_id, b"\x12\x08", span.span_id, b"\x22\x08", parent_id)]
    else:
        out = [_pack_ids(b"\x0a\x10", trace_id, b"\x12\x08", span.span_id)]
    append = out.append
    append(_names.get(span.name) or _name(span.name))
    append(span.kind_field)
    try:
        append(_pack_times(0x39, span.start_time, 0x41, span.end_time))
    except struct.error:
        append(_pack_times(0x39, _time(span.start_time), 0x41, _time(span.end_time)))
    attributes = span.all_attributes()
    extras = span.extras
    dropped = 0
    if limits.span_value_length is None and (limits.attributes is None or len(attributes) <= limits.attributes):
        encoded_attributes = _span_attributes(attributes)
        if not all(encoded_attributes):
            dropped = encoded_attributes.count(b"")
        out += encoded_attributes
    else:
        encoded, dropped = encode_attributes(b"\x4a", attributes, limits.span_value_length, limits.attributes)
        append(encoded)
    if extras is not None:
        dropped += extras.dropped_attributes
        for event in extras.events:
            append(_encode_event(*event, limits))
        if extras.dropped_events:
            append(b"\x60" + varint(extras.dropped_events))
        for link in extras.links:
            append(_encode_link(link))
        if extras.dropped_links:
            append(b"\x70" + varint(extras.dropped_links))
    if dropped:
        append(b"\x50" + varint(dropped))
    if span.recorded_status is not None:
        append(_encode_status(span.recorded_status))
    origin = span.origin
    append(FLAGS_REMOTE if type(origin) is SpanContext and origin.is_remote else FLAGS_LOCAL)
    state = span.trace.state
    if state:
        append(delimited(b"\x1a", encode_trace_state(state)))
    body = b"".join(out)
    return b"\x12" + varint(len(body)) + body


def encode_scope(
    name: str, version: str | None = None, schema_url: str | None = None, attributes: Mapping[str, Any] | None = None
) -> bytes:
    """Encode an instrumentation scope and its schema URL as fields 1 and 3 of ScopeSpans (and of ScopeLogs)."""
    parts = delimited(b"\x0a", text_bytes(name)) if name else b""
    if version:
        parts += delimited(b"\x12", text_bytes(version))
    if attributes:
        parts += encode_attributes(b"\x1a", attributes)[0]
    return delimited(b"\x0a", parts) + (delimited(b"\x1a", text_bytes(schema_url)) if schema_url else b"")


OUR_SCOPE: Final = encode_scope("django_obs", __version__, SCHEMA_URL)


class LeafSource:
    """Where leaves come from (one database alias, one cache): what all of its leaves have in common.

    ``describe(statement)`` gives the span name and the attributes of a statement. It is asked once per statement, when
    the first leaf with it is encoded, and what it said is kept as bytes unless it is long.
    """

    __slots__ = ("_fragments", "describe", "kind", "repeats", "scope")

    SIZE: Final = 1024
    # Bytes that are kept of one. Longer statements insert or look for so many rows, and most often come once.
    LENGTH: Final = 4096

    def __init__(
        self,
        describe: Any,
        *,
        kind: bytes = CLIENT,
        scope: bytes = OUR_SCOPE,
        repeats: bool = False,
    ) -> None:
        self.describe = describe
        self.kind = kind
        self.scope = scope
        self.repeats = repeats  # whether the same statement many times over is worth a mark on the root
        self._fragments: dict[Any, tuple[bytes, bytes, bytes]] = {}

    def fragments(self, statement: Any) -> tuple[bytes, bytes, bytes]:
        """Return what comes before the trace id, between the parent id and the times, and after the times."""
        found = self._fragments.get(statement)
        if found is None:
            name, attributes = self.describe(statement)
            before_times = delimited(b"\x2a", text_bytes(name)) + self.kind
            encoded, dropped = encode_attributes(b"\x4a", attributes)
            after_times = encoded + (b"\x50" + varint(dropped) if dropped else b"") + FLAGS_LOCAL
            # 18 and 10 bytes of ids, 10 of the parent's, 18 of times.
            size = 18 + 10 + 10 + len(before_times) + 18 + len(after_times)
            found = (b"\x12" + varint(size) + b"\x0a\x10", before_times, after_times)
            if size > self.LENGTH:
                return found
            if len(self._fragments) >= self.SIZE:
                self._fragments.clear()
            self._fragments[statement] = found
        return found


# (source, statement, span id of the parent, start and end in ns since the epoch, error type, further attributes)
Leaf = tuple[LeafSource, Any, int, int, int, str | None, dict[str, Any] | None]
# (scope, number of spans or records, these as fields of ScopeSpans or ScopeLogs)
Group = tuple[bytes, int, bytes]


def encode_leaf(leaf: Leaf, trace_id: bytes, span_id: bytes, state: bytes) -> bytes:
    """Encode a leaf as field 2 of ScopeSpans."""
    source, statement, parent_id, start, end, error, attributes = leaf
    before_ids, before_times, after_times = source.fragments(statement)
    if error is None and attributes is None and not state:
        return b"".join(
            (
                before_ids,
                trace_id,
                b"\x12\x08",
                span_id,
                b"\x22\x08",
                _pack_id(parent_id),
                before_times,
                _pack_times(0x39, start, 0x41, end),
                after_times,
            )
        )
    parts = [
        _pack_ids_with_parent(
            b"\x0a\x10", trace_id, b"\x12\x08", int.from_bytes(span_id, "big"), b"\x22\x08", parent_id
        ),
        before_times,
        _pack_times(0x39, start, 0x41, end),
    ]
    if attributes:
        parts.append(encode_attributes(b"\x4a", attributes)[0])
    if error is not None:
        parts += [delimited(b"\x4a", _key_value("error.type", error, None)), STATUS_ERROR]
    if state:
        parts.append(state)
    parts.append(after_times)
    return delimited(b"\x12", b"".join(parts))


def encode_items(
    items: Sequence[Span | Leaf], trace: LocalTrace, limits: SpanLimits, generator: random.Random
) -> list[Group]:
    """Encode spans and leaves of one trace, grouped by instrumentation scope."""
    trace_id = trace.trace_id.to_bytes(16, "big")
    count = len(items)
    if count == 1 and type(items[0]) is not tuple:
        span: Span = items[0]  # type: ignore[assignment]
        return [(span.tracer.scope, 1, encode_span(span, trace_id, limits))]
    state = delimited(b"\x1a", encode_trace_state(trace.state)) if trace.state else b""
    # Ids of leaves, all drawn at once. A zero would be invalid; it has a chance of 2**-64 each.
    ids = generator.getrandbits(64 * count).to_bytes(8 * count, "big")
    groups: dict[bytes, list[bytes]] = {}
    at = 0
    for item in items:
        if type(item) is tuple:
            scope = item[0].scope
            encoded = encode_leaf(item, trace_id, ids[at : at + 8], state)
            at += 8
        else:
            scope = item.tracer.scope  # type: ignore[union-attr]
            encoded = encode_span(item, trace_id, limits)  # type: ignore[arg-type]
        group = groups.get(scope)
        if group is None:
            groups[scope] = [encoded]
        else:
            group.append(encoded)
    return [(scope, len(group), b"".join(group)) for scope, group in groups.items()]


def encode_resource(attributes: Mapping[str, Any]) -> bytes:
    """Encode a resource as field 1 of ResourceSpans (and of ResourceLogs)."""
    return delimited(b"\x0a", encode_attributes(b"\x0a", attributes)[0])


def encode_request(resource: bytes, groups: Iterable[tuple[bytes, Sequence[bytes]]]) -> bytes:
    """Encode an ExportTraceServiceRequest (or one of logs) of one resource from a scope and its spans, by scope.

    Everything is copied once: with one copy a level, a batch takes four times its size for a moment, and the process
    keeps the room.
    """
    parts = [b"", resource]
    for scope, contents in groups:
        parts += (b"\x12" + varint(len(scope) + sum(map(len, contents))), scope, *contents)
    parts[0] = b"\x0a" + varint(sum(map(len, parts)))
    return b"".join(parts)


def encode_log(
    *,
    time_ns: int,
    observed_ns: int | None = None,
    severity_number: int = 0,
    severity_text: str = "",
    body: object = None,
    attributes: Mapping[str, Any] | None = None,
    trace_id: str = "",
    span_id: str = "",
    flags: int = 0,
    event_name: str = "",
) -> bytes:
    """Encode a log record as field 2 of ScopeLogs. The ids are 32 and 16 hexadecimal digits, or empty."""
    parts = [_pack_time(0x09, _time(time_ns))]
    if severity_number:
        parts.append(b"\x10" + varint(severity_number))
    if severity_text:
        parts.append(delimited(b"\x1a", text_bytes(severity_text)))
    if body is not None:
        parts.append(delimited(b"\x2a", encode_value(body)))
    if attributes:
        encoded, dropped = encode_attributes(b"\x32", attributes)
        parts.append(encoded)
        if dropped:
            parts.append(b"\x38" + varint(dropped))
    if flags:
        parts.append(b"\x45" + flags.to_bytes(4, "little"))
    if trace_id:
        parts.append(b"\x4a\x10" + bytes.fromhex(trace_id))
    if span_id:
        parts.append(b"\x52\x08" + bytes.fromhex(span_id))
    parts.append(_pack_time(0x59, _time(time_ns if observed_ns is None else observed_ns)))
    if event_name:
        parts.append(delimited(b"\x62", text_bytes(event_name)))
    return delimited(b"\x12", b"".join(parts))

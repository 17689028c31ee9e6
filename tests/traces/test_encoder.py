from __future__ import annotations

import enum
import math
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs as official_encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from django_obs.traces import encoder
from django_obs.traces.provider import KIND_FIELDS
from django_obs.traces.readable import readable
from django_obs.traces.span import LocalTrace

from .support import QUERIES, attributes, make_provider, plain

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
scalars = st.one_of(
    texts,
    st.booleans(),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=50),
    st.none(),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)
attribute_dicts = st.dictionaries(keys, values, max_size=12)
times = st.integers(min_value=0, max_value=2**64 - 1)
states = st.none() | st.just(TraceState([("vendor", "value"), ("other", "1")]))
contexts = st.builds(
    SpanContext,
    st.integers(min_value=1, max_value=2**128 - 1),
    st.integers(min_value=1, max_value=2**64 - 1),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1)]),
)
events = st.lists(st.tuples(texts, attribute_dicts, times), max_size=3)
links = st.lists(st.tuples(contexts, attribute_dicts), max_size=3)
statuses = st.none() | st.builds(Status, st.just(StatusCode.ERROR), texts) | st.just(Status(StatusCode.OK))


def decoded(sink: Any) -> ExportTraceServiceRequest:
    payload = encoder.encode_request(b"", [(scope, [spans]) for scope, _, spans in sink.groups])
    return ExportTraceServiceRequest.FromString(payload)


@settings(deadline=None, max_examples=200)
@given(
    name=texts,
    kind=st.sampled_from(SpanKind),
    own=attribute_dicts,
    start=times,
    end=times,
    status=statuses,
    happened=events,
    linked=links,
    remote=st.none() | contexts,
    state=states,
)
def test_span_says_what_the_official_encoder_says(
    name: str,
    kind: SpanKind,
    own: dict[str, Any],
    start: int,
    end: int,
    status: Status | None,
    happened: list[Any],
    linked: list[Any],
    remote: SpanContext | None,
    state: TraceState | None,
) -> None:
    provider, sink = make_provider(1.0, parent_based=False)
    tracer = provider.tracer("shop", "1.2", "https://schema", {"scope": 1})
    if remote is not None and state is not None:
        remote = SpanContext(remote.trace_id, remote.span_id, remote.is_remote, remote.trace_flags, state)
    span = tracer._start_root(name, encoder.INTERNAL, own, start, remote, None)
    span.kind_field = KIND_FIELDS[kind]
    for event_name, event_attributes, timestamp in happened:
        span.add_event(event_name, event_attributes, timestamp)
    for context, link_attributes in linked:
        span.add_link(context, link_attributes)
    if status is not None:
        span.set_status(status)
    span.end(end)

    official = encode_spans([readable(span)])
    ours = decoded(sink)
    expected = official.resource_spans[0].scope_spans[0]
    # The official encoder writes a status that is not set as an empty message; both mean the same.
    for message in expected.spans:
        if message.status == SpanMessage().status:
            message.ClearField("status")
    assert ours.resource_spans[0].scope_spans[0] == expected


@settings(deadline=None, max_examples=200)
@given(value=values)
def test_value_comes_back_as_it_was(value: object) -> None:
    def listed(value: object) -> object:
        if isinstance(value, list):
            return [listed(each) for each in value]
        if isinstance(value, dict):
            return {key: listed(each) for key, each in value.items()}
        return value

    assert plain(AnyValue.FromString(encoder.encode_value(value))) == listed(value)


class Colour(enum.StrEnum):
    RED = "red"


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("\udc80broken", "\\udc80broken"),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (math.inf, math.inf),
        (Decimal("1.50"), "1.50"),
        (Colour.RED, "red"),
        (enum.IntEnum("N", "ONE").ONE, 1),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({1: "x", None: b"\xff"}, {"1": "x", "None": b"\xff"}),
        (bytearray(b"ab"), b"ab"),
        (frozenset({3}), [3]),
        ("x" * 1_000_000, "x" * 1_000_000),
        (1 + 2j, "(1+2j)"),
    ],
)
def test_value_of_any_type_is_valid(value: object, expected: object) -> None:
    assert plain(AnyValue.FromString(encoder.encode_value(value))) == expected


def test_nan_is_a_double() -> None:
    assert math.isnan(AnyValue.FromString(encoder.encode_value(math.nan)).double_value)


def test_value_that_contains_itself_comes_to_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert AnyValue.FromString(encoder.encode_value(endless)).HasField("array_value")


def test_equal_values_of_different_types_stay_apart() -> None:
    provider, sink = make_provider()
    for value in (1, True, 1.0, "1", 1):
        tracer = provider.tracer("t")
        tracer.start_span("s", attributes={"k": value}).end()
    assert [repr(attributes(span)["k"]) for span in sink.spans()] == ["1", "True", "1.0", "'1'", "1"]


def test_attribute_that_cannot_be_encoded_is_counted_and_the_rest_is_there() -> None:
    provider, sink = make_provider()
    provider.tracer("t").start_span("s", attributes={"a": 1, "bad": Unprintable(), "": 2, 7: "x", "z": 3}).end()
    (span,) = sink.spans()
    assert attributes(span) == {"a": 1, "7": "x", "z": 3}
    assert span.dropped_attributes_count == 2


def test_caches_are_bounded() -> None:
    provider, _ = make_provider()
    tracer = provider.tracer("t")
    for number in range(encoder.CACHE_SIZE + 10):
        tracer.start_span("s", attributes={"text": f"v{number}", "number": number, f"key{number}": 1.5}).end()
    assert len(encoder._texts) <= encoder.CACHE_SIZE
    assert len(encoder._integers) <= encoder.CACHE_SIZE
    assert len(encoder._keys) <= encoder.CACHE_SIZE


def test_leaf_fragments_are_bounded() -> None:
    source = encoder.LeafSource(lambda statement: (statement, {}))
    for number in range(source.SIZE * 2 + 5):
        source.fragments(f"select {number}")
    assert len(source._fragments) <= source.SIZE
    kept = len(source._fragments)
    long = source.fragments(f"insert {'(%s), ' * 10_000}")
    assert source.fragments(f"insert {'(%s), ' * 10_000}") == long
    assert len(source._fragments) == kept


@settings(deadline=None, max_examples=50)
@given(statement=texts, error=st.none() | texts, more=st.none() | attribute_dicts, state=states)
def test_leaf_is_a_whole_span(
    statement: str, error: str | None, more: dict[str, Any] | None, state: TraceState | None
) -> None:
    provider, _ = make_provider()
    source = encoder.LeafSource(lambda text: ("SELECT", {"db.query.text": text}))
    trace = LocalTrace(provider, 7, 8, 3, state)
    trace.append((source, statement, 9, 1000, 2000, error, more))
    ((scope, count, encoded),) = encoder.encode_items(trace, trace, provider.limits, random.Random(1))
    request = ExportTraceServiceRequest.FromString(encoder.encode_request(b"", [(scope, [encoded])]))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert count == 1
    assert (span.name, span.kind) == ("SELECT", SpanMessage.SPAN_KIND_CLIENT)
    assert (int.from_bytes(span.trace_id, "big"), int.from_bytes(span.parent_span_id, "big")) == (7, 9)
    assert len(span.span_id) == 8
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1000, 2000)
    assert span.flags == 0x100
    assert span.trace_state == ("vendor=value,other=1" if state else "")
    found = attributes(span)
    assert found["db.query.text"] == statement or (more and "db.query.text" in more)
    if error is not None:
        assert found["error.type"] == error
        assert span.status.code == 2
    for key, value in (more or {}).items():
        assert key in found, (key, value)


def test_time_out_of_range_does_not_lose_the_span() -> None:
    provider, sink = make_provider()
    provider.tracer("t").start_span("s", start_time=-5).end(2**70)
    (span,) = sink.spans()
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (0, 2**64 - 1)


def test_span_that_cannot_be_encoded_does_not_cost_the_others() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    for name in ("one", "two"):
        root.add_leaf(name, 1, 2, source=QUERIES)
    root.add_leaf("bad", "not a time", 2, source=QUERIES)  # type: ignore[arg-type]
    root.end()
    assert sorted(sink.names()) == ["one", "root", "two"]
    assert provider.failed == 1


@settings(deadline=None, max_examples=100)
@given(body=values, own=attribute_dicts, time=times, ids=st.none() | contexts, text=texts, event=texts)
def test_log_record_says_what_the_official_encoder_says(
    body: object, own: dict[str, Any], time: int, ids: SpanContext | None, text: str, event: str
) -> None:
    record = LogRecord(
        timestamp=time,
        observed_timestamp=time,
        severity_text=text,
        body=body,
        attributes=own,
        event_name=event,
    )
    if ids is not None:
        record.trace_id, record.span_id, record.trace_flags = ids.trace_id, ids.span_id, ids.trace_flags
    official = official_encode_logs([ReadableLogRecord(record, Resource({}), InstrumentationScope("shop.views"))])
    ours = encoder.encode_log(
        time_ns=time,
        severity_text=text,
        body=body,
        attributes=own,
        trace_id=f"{ids.trace_id:032x}" if ids else "",
        span_id=f"{ids.span_id:016x}" if ids else "",
        flags=int(ids.trace_flags) if ids else 0,
        event_name=event,
    )
    (expected,) = official.resource_logs[0].scope_logs
    if body is None:
        expected.log_records[0].ClearField("body")
    assert ScopeLogs.FromString(ours).log_records[0] == expected.log_records[0]

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace as api
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from django_obs.traces import span as span_module
from django_obs.traces.limits import SpanLimits
from django_obs.traces.propagation import attach, detach, get_current, suppress
from django_obs.traces.span import HELD_SPANS, Span, UnrecordedSpan, current_ids, recording_span

from .support import QUERIES, attributes, make_provider

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE_UNSAMPLED = REMOTE[:-1] + "0"


def test_child_and_leaf_hang_below_their_parents_in_order() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("GET /", {}, {"http.request.method": "GET"})
    token = root.activate()
    with tracer.start_as_current_span("checkout") as child:
        recording_span().add_leaf("SELECT 1", 5, 6, source=QUERIES)  # type: ignore[union-attr]
    root.add_leaf("INSERT 2", 7, 8, source=QUERIES)
    detach(token)
    assert sink.groups == []
    root.end()

    spans = {span.name: span for span in sink.spans()}
    assert [span.name for span in sink.spans()] == ["SELECT", "checkout", "INSERT", "GET /"]
    assert spans["GET /"].parent_span_id == b""
    assert spans["checkout"].parent_span_id == spans["GET /"].span_id
    assert spans["SELECT"].parent_span_id == spans["checkout"].span_id
    assert spans["INSERT"].parent_span_id == spans["GET /"].span_id
    assert len({span.trace_id for span in sink.spans()}) == 1
    assert len({span.span_id for span in sink.spans()}) == 4
    assert child.get_span_context().span_id.to_bytes(8, "big") == spans["checkout"].span_id


def test_child_that_ends_after_its_root_is_exported_on_its_own() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    late = tracer.start_span("late", api.set_span_in_context(root))
    root.end()
    assert sink.names() == ["root"]
    late.add_leaf("SELECT 1", 1, 2, source=QUERIES)  # type: ignore[attr-defined]
    late.end()
    assert sink.names() == ["root", "SELECT", "late"]
    assert sink.spans()[2].parent_span_id == sink.spans()[0].span_id


def test_child_that_ends_after_a_root_that_was_left_out_is_left_out() -> None:
    provider, sink = make_provider(0.0, errors=True)
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    late = tracer.start_span("late", api.set_span_in_context(root))
    root.end()
    late.end()
    assert sink.groups == []
    assert provider.sampled_out == 2


def test_sampled_root_that_never_ends_exports_what_it_holds() -> None:
    provider, sink = make_provider()
    root = provider.tracer("shop").start_request("root", {}, {})
    for number in range(3 * HELD_SPANS):
        root.add_leaf("SELECT 1", number, number + 1, source=QUERIES)
        assert len(root.trace) <= HELD_SPANS
    assert len(sink.spans()) >= 2 * HELD_SPANS
    root.end()
    assert len(sink.spans()) == 3 * HELD_SPANS + 1


def test_unsampled_root_that_never_ends_holds_so_many_spans_and_counts_the_others() -> None:
    provider, sink = make_provider(0.0, errors=True)
    root = provider.tracer("shop").start_request("root", {}, {})
    for number in range(3 * HELD_SPANS):
        root.add_leaf("SELECT 1", number, number + 1, source=QUERIES)
        assert len(root.trace) <= HELD_SPANS
    root.set_status(Status(StatusCode.ERROR))
    root.end()
    assert len(sink.spans()) == HELD_SPANS + 1
    assert provider.dropped == 2 * HELD_SPANS


def test_root_that_is_abandoned_is_collected_with_what_it_holds() -> None:
    provider, _ = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    tracer.start_span("child", api.set_span_in_context(root)).end()
    reference = weakref.ref(root)
    del root
    gc.collect()
    assert reference() is None


def test_ended_tree_leaves_nothing_for_the_garbage_collector() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    child = tracer.start_span("child", api.set_span_in_context(root))
    references = weakref.ref(root), weakref.ref(child)
    gc.disable()
    try:
        child.end()
        root.end()
        del root, child
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
    assert len(sink.spans()) == 2


@pytest.mark.parametrize(
    ("header", "kept"), [(None, False), (REMOTE, True), (REMOTE_UNSAMPLED, False), ("rubbish", False)]
)
def test_head_decision_follows_the_remote_parent(header: str | None, kept: bool) -> None:
    provider, sink = make_provider(0.0)
    meta = {} if header is None else {"HTTP_TRACEPARENT": header}
    span = provider.tracer("shop").start_request("root", meta, {})
    span.end()
    assert bool(sink.groups) is kept
    assert provider.sampled_out == (0 if kept else 1)
    if header in (REMOTE, REMOTE_UNSAMPLED):
        assert span.ids()[0] == "0af7651916cd43dd8448eb211c80319c"


def test_head_decision_ignores_the_remote_parent_where_told() -> None:
    provider, sink = make_provider(0.0, parent_based=False)
    provider.tracer("shop").start_request("root", {"HTTP_TRACEPARENT": REMOTE}, {}).end()
    assert sink.groups == []


@pytest.mark.parametrize("meta", [{}, {"HTTP_TRACEPARENT": REMOTE_UNSAMPLED}])
def test_unsampled_root_that_fails_is_kept_and_says_why(meta: dict[str, str]) -> None:
    provider, sink = make_provider(0.0, errors=True)
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", meta, {})
    root.add_leaf("SELECT 1", 1, 2, source=QUERIES)
    assert not root.get_span_context().trace_flags.sampled
    root.set_status(Status(StatusCode.ERROR))
    root.end()
    assert sink.names() == ["SELECT", "root"]
    assert attributes(sink.spans()[1])["django_obs.sampling.kept"] == "error"
    assert provider.sampled_out == 0


def test_unsampled_root_that_is_slow_is_kept_and_says_why() -> None:
    provider, sink = make_provider(0.0, slower_than=0.5)
    tracer = provider.tracer("shop")
    tracer.start_request("fast", {}, {}, 1_000).end(1_000 + 499_999_999)
    tracer.start_request("slow", {}, {}, 1_000).end(1_000 + 500_000_000)
    assert sink.names() == ["slow"]
    assert attributes(sink.spans()[0]) == {"django_obs.sampling.kept": "slow"}


def test_sampled_root_that_fails_bears_no_mark() -> None:
    provider, sink = make_provider(1.0, errors=True, slower_than=0.001)
    root = provider.tracer("shop").start_request("root", {}, {}, 1)
    root.set_status(Status(StatusCode.ERROR))
    root.end(10**12)
    assert attributes(sink.spans()[0]) == {}


def test_unrecorded_span_passes_ids_on_and_its_children_are_unrecorded() -> None:
    provider, sink = make_provider(0.0)
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    assert type(root) is UnrecordedSpan
    token = root.activate()
    try:
        assert current_ids() == root.ids()
        assert recording_span() is None
        child = tracer.start_span("child")
        assert not child.is_recording()
        assert child.get_span_context().trace_id == root.get_span_context().trace_id
        assert child.get_span_context().span_id != root.get_span_context().span_id
        root.add_leaf("SELECT 1", 1, 2, source=QUERIES)
        root.set_attribute("k", "v")
        child.end()
    finally:
        detach(token)
    root.end()
    root.end()
    assert sink.groups == []
    assert provider.sampled_out == 1


def test_current_ids_are_padded_and_there_when_unsampled() -> None:
    provider, _ = make_provider(0.0, errors=True)
    span = provider.tracer("shop")._start_root("s", b"\x30\x01", {}, 1, SpanContext(7, 8, True), None)
    token = span.activate()
    try:
        ids = current_ids()
        assert ids is not None
        assert ids[0] == "0" * 31 + "7"
        assert len(ids[1]) == 16
        assert current_ids() is ids
    finally:
        detach(token)
    assert current_ids() is None


def test_current_ids_of_another_providers_span() -> None:
    token = attach(api.set_span_in_context(NonRecordingSpan(SpanContext(0xA, 0xB, False, TraceFlags(1)))))
    try:
        assert current_ids() == (f"{0xA:032x}", f"{0xB:016x}")
        assert recording_span() is None
    finally:
        detach(token)


def test_suppressed_context_takes_no_leaves_and_starts_no_request() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    token = root.activate()
    assert recording_span() is root
    suppression = suppress()
    assert recording_span() is None
    inner = tracer.start_request("inner", {}, {})
    assert not inner.is_recording()
    assert not inner.get_span_context().is_valid
    inner.end()
    detach(suppression)
    detach(token)
    root.end()
    assert sink.names() == ["root"]


def test_suppression_is_what_instrumentations_look_for() -> None:
    from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled, is_instrumentation_enabled

    token = suppress()
    try:
        assert not is_instrumentation_enabled()
        assert not is_http_instrumentation_enabled()
    finally:
        detach(token)
    assert is_instrumentation_enabled()


def test_detach_in_another_context_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    import contextvars

    provider, _ = make_provider()
    token = contextvars.copy_context().run(provider.tracer("t").start_request("root", {}, {}).activate)
    detach(token)
    assert caplog.records == []


def test_repeated_statement_is_marked_on_the_root() -> None:
    provider, sink = make_provider()
    root = provider.tracer("shop").start_request("root", {}, {})
    for number in range(12):
        root.add_leaf("SELECT * FROM book WHERE author_id = %s", number, number + 1, source=QUERIES)
    root.add_leaf("SELECT 1", 1, 2, source=QUERIES)
    root.end()
    marked = attributes(sink.spans()[-1])
    assert marked["django_obs.db.repeated.count"] == 12
    assert marked["django_obs.db.repeated.query_text"] == "SELECT * FROM book WHERE author_id = %s"


def test_statements_that_differ_are_not_marked() -> None:
    provider, sink = make_provider()
    root = provider.tracer("shop").start_request("root", {}, {})
    for number in range(30):
        root.add_leaf(f"SELECT {number}", number, number + 1, source=QUERIES)
    root.end()
    assert attributes(sink.spans()[-1]) == {}


def test_failed_leaf_has_its_error_and_status() -> None:
    provider, sink = make_provider()
    root = provider.tracer("shop").start_request("root", {}, {})
    root.add_leaf("SELECT 1", 1, 2, "IntegrityError", source=QUERIES, attributes={"db.operation.batch.size": 3})
    root.end()
    leaf = sink.spans()[0]
    assert attributes(leaf)["error.type"] == "IntegrityError"
    assert attributes(leaf)["db.operation.batch.size"] == 3
    assert leaf.status.code == 2


def test_exception_is_recorded_where_it_leaves_the_block() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    with pytest.raises(KeyError), tracer.start_as_current_span("work"):
        raise KeyError("book")
    (span,) = sink.spans()
    assert span.status.code == 2
    assert span.status.message == "KeyError: 'book'"
    (event,) = span.events
    assert event.name == "exception"
    found = attributes(event)
    assert found["exception.type"] == "KeyError"
    assert "raise KeyError" in found["exception.stacktrace"]


def test_generator_exit_is_no_error() -> None:
    provider, sink = make_provider()

    def work() -> Any:
        with provider.tracer("shop").start_as_current_span("work"):
            yield 1

    generator = work()
    next(generator)
    generator.close()
    (span,) = sink.spans()
    assert span.status.code == 0
    assert not span.events


async def _decorated(tracer: Any) -> list[int]:
    seen: list[int] = []

    @tracer.start_as_current_span("coroutine")
    async def work() -> None:
        seen.append(api.get_current_span().get_span_context().span_id)

    await work()
    await work()
    return seen


def test_decorator_makes_a_span_per_call_of_a_coroutine() -> None:
    import asyncio

    provider, sink = make_provider()
    seen = asyncio.run(_decorated(provider.tracer("shop")))
    assert sink.names() == ["coroutine", "coroutine"]
    assert [span.span_id for span in sink.spans()] == [each.to_bytes(8, "big") for each in seen]


def test_limits_cut_and_count() -> None:
    limits = SpanLimits(
        attributes=2, events=1, links=1, event_attributes=1, link_attributes=1, span_value_length=3, value_length=2
    )
    provider, sink = make_provider(limits=limits)
    span = provider.tracer("shop").start_span("s", attributes={"a": "long text", "b": 2})
    span.set_attribute("c", "another")
    span.add_event("one", {"x": "xxxx", "y": "yyyy"})
    span.add_event("two", {"x": "xxxx", "y": "yyyy"})
    for number in (1, 2):
        span.add_link(SpanContext(number, number, False), {"x": "xxxx", "y": "yyyy"})
    span.end()
    (exported,) = sink.spans()
    assert attributes(exported) == {"b": 2, "c": "ano"}
    assert exported.dropped_attributes_count == 1
    assert [event.name for event in exported.events] == ["two"]
    assert attributes(exported.events[0]) == {"y": "yy"}
    assert exported.events[0].dropped_attributes_count == 1
    assert exported.dropped_events_count == 1
    assert [link.span_id for link in exported.links] == [(2).to_bytes(8, "big")]
    assert attributes(exported.links[0]) == {"y": "yy"}
    assert exported.dropped_links_count == 1


def test_limits_are_read_from_the_environment(caplog: pytest.LogCaptureFixture) -> None:
    limits = SpanLimits.from_environment(
        {
            "OTEL_ATTRIBUTE_COUNT_LIMIT": "7",
            "OTEL_SPAN_EVENT_COUNT_LIMIT": "",
            "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "3",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "50",
            "OTEL_SPAN_LINK_COUNT_LIMIT": "many",
        }
    )
    assert limits == SpanLimits(
        attributes=7,
        events=None,
        links=128,
        event_attributes=7,
        link_attributes=3,
        span_value_length=50,
        value_length=50,
    )
    assert "OTEL_SPAN_LINK_COUNT_LIMIT='many'" in caplog.text


def test_ended_span_changes_no_more() -> None:
    provider, sink = make_provider()
    span = provider.tracer("shop").start_span("s", attributes={"a": 1})
    span.end()
    span.end()
    span.set_attribute("a", 2)
    span.set_attributes({"b": 2})
    span.add_event("e")
    span.add_link(SpanContext(1, 1, False))
    span.update_name("other")
    span.set_status(StatusCode.ERROR)
    assert not span.is_recording()
    assert len(sink.spans()) == 1
    assert span.attributes == {"a": 1}  # type: ignore[attr-defined]
    assert (span.name, span.status.status_code) == ("s", StatusCode.UNSET)  # type: ignore[attr-defined]


def test_misuse_is_reported_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_module, "_reported", set())
    provider, _ = make_provider()
    span = provider.tracer("shop").start_span("s")
    for _ in range(3):
        span.end()
    assert [record.getMessage() for record in caplog.records] == ["end() called on an ended span (reported once)"]


def test_spans_of_many_threads_are_all_there() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    context = api.set_span_in_context(root)

    def work() -> None:
        for number in range(100):
            with tracer.start_as_current_span("child", context):
                recording_span().add_leaf("SELECT 1", number, number + 1, source=QUERIES)  # type: ignore[union-attr]

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    root.end()
    assert len(sink.spans()) == 8 * 200 + 1


def test_request_below_a_current_span_is_its_internal_child() -> None:
    provider, sink = make_provider()
    tracer = provider.tracer("shop")
    with tracer.start_as_current_span("server", kind=SpanKind.SERVER):
        tracer.start_request("inner", {"HTTP_TRACEPARENT": REMOTE}, {}).end()
    inner, server = sink.spans()
    assert inner.parent_span_id == server.span_id
    assert inner.kind == 1


def test_child_of_another_providers_span_is_a_local_root() -> None:
    provider, sink = make_provider()
    parent = NonRecordingSpan(SpanContext(5, 6, False, TraceFlags(1)))
    span = provider.tracer("shop").start_span("s", api.set_span_in_context(parent))
    assert isinstance(span, Span)
    assert span.parent == parent.get_span_context()
    span.end()
    (exported,) = sink.spans()
    assert exported.parent_span_id == (6).to_bytes(8, "big")
    assert exported.flags == 0x100


def test_baggage_of_a_request_is_current_with_its_span() -> None:
    from opentelemetry import baggage

    provider, _ = make_provider()
    meta = {"HTTP_TRACEPARENT": REMOTE, "HTTP_BAGGAGE": "tenant=shop"}
    span = provider.tracer("shop").start_request("root", meta, {})
    token = span.activate()
    try:
        assert baggage.get_baggage("tenant") == "shop"
        assert span.ids()[0] == REMOTE[3:35]
    finally:
        detach(token)
    assert baggage.get_baggage("tenant") is None


def test_other_values_of_the_context_survive_activation() -> None:
    provider, _ = make_provider()
    outer = attach(context_api.set_value("mine", 1))
    span = provider.tracer("shop").start_request("root", {}, {})
    token = span.activate()
    assert get_current()["mine"] == 1
    assert api.get_current_span() is span
    detach(token)
    detach(outer)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


def test_exception_that_cannot_be_printed_stays_the_one_that_is_raised() -> None:
    provider, sink = make_provider()
    with pytest.raises(Unprintable), provider.tracer("t").start_as_current_span("work"):
        raise Unprintable
    (span,) = sink.spans()
    assert span.status.message == "Unprintable: <unprintable Unprintable>"
    assert attributes(span.events[0])["exception.message"] == "<unprintable Unprintable>"


def test_time_that_is_none_does_not_fail_the_request() -> None:
    provider, sink = make_provider(0.0, slower_than=1.0)
    provider.tracer("t").start_request("root", {}, {}).end("now")  # type: ignore[arg-type]
    assert sink.groups == []
    assert provider.sampled_out == 1


def test_span_does_not_end_before_its_start_when_the_clock_is_set_back() -> None:
    provider, sink = make_provider()
    later = time.time_ns() + 3600 * 10**9
    provider.tracer("shop").start_span("root", start_time=later).end()
    (span,) = sink.spans()
    assert span.start_time_unix_nano == span.end_time_unix_nano == later


def late(**attributes: Any) -> tuple[Any, ...]:
    return ((lambda: dict(attributes)),)


def test_late_attributes_are_the_oldest() -> None:
    provider, sink = make_provider(limits=SpanLimits(attributes=4))
    span: Any = provider.tracer("shop").start_request("root", {}, {})
    span.late = late(first=1, second=2, third=3)
    span.set_attribute("mine.0", 0)
    span.set_attribute("mine.1", 1)
    assert span.dropped_attributes == 1
    span.set_attributes({"second": "mine"})
    span.end()
    (exported,) = sink.spans()
    assert list(attributes(exported)) == ["second", "third", "mine.0", "mine.1"]
    assert attributes(exported)["second"] == "mine"
    assert exported.dropped_attributes_count == 1


def test_late_attributes_that_change_while_somebody_looks_are_all_there() -> None:
    provider, sink = make_provider()
    span: Any = provider.tracer("shop").start_request("root", {}, {})

    def opened() -> dict[str, Any]:
        # The request comes to its end in another thread.
        span.late = late(path="/", status=200)
        return {"path": "/"}

    span.late = (opened,)
    assert dict(span.attributes) == {"path": "/"}
    span.end()
    assert attributes(sink.spans()[0]) == {"path": "/", "status": 200}

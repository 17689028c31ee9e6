from __future__ import annotations

import threading
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_obs.server import recent as module
from django_obs.server.recent import Finished, Line, Recent
from tests.server.otlp import CLIENT, CONSUMER, EPOCH, SECOND, logs, pairs, record, span, traces, traces_request


def hexadecimal(trace: int) -> str:
    return f"{trace:032x}"


def test_trace_has_its_spans_and_lines_by_time() -> None:
    recent = Recent()
    recent.add_logs(logs(record("Later", trace=1, start=EPOCH + 2), record("Sooner", trace=1, start=EPOCH + 1)))
    recent.add_traces(
        traces(
            span(1, 2, parent=1, name="SELECT", kind=CLIENT, start=EPOCH + 5, db__system__name="sqlite"),
            span(1, 1, name="GET /cart", http__response__status_code=200, tags=["a", 1, 1.5, True, None, {"b": b"\0"}]),
        ),
        role="web",
    )

    trace = recent.trace(hexadecimal(1))

    assert trace is not None
    root, query = trace.spans
    assert (root.name, root.kind, root.parent_id, root.duration_ns) == ("GET /cart", "server", "", SECOND // 10)
    assert root.attributes["tags"] == ["a", 1, 1.5, True, None, {"b": "00"}]
    assert (query.parent_id, query.kind) == (root.span_id, "client")
    assert query.attributes == {"db.system.name": "sqlite"}
    assert (query.source.service, query.source.role, query.source.pid) == ("shop", "web", 4711)
    assert [line.message for line in trace.lines] == ["Sooner", "Later"]
    assert trace.summary == recent.traces()[0]
    assert (trace.summary.name, trace.summary.http_status, trace.summary.role) == ("GET /cart", 200, "web")
    assert (trace.summary.span_count, trace.summary.line_count, trace.summary.complete) == (2, 2, True)
    assert (trace.summary.start_ns, trace.summary.duration_ns) == (EPOCH, SECOND // 10)


def test_trace_without_its_root_says_so() -> None:
    recent = Recent()
    recent.add_traces(traces(span(1, 2, parent=1, name="SELECT", kind=CLIENT)))

    (summary,) = recent.traces()

    assert (summary.name, summary.complete) == ("SELECT", False)
    assert recent.follow(0).items == ()


def test_trace_of_which_only_lines_have_come_is_found() -> None:
    recent = Recent()
    recent.add_logs(logs(record("Alone", trace=7)))

    trace = recent.trace(hexadecimal(7))

    assert trace is not None
    assert [line.message for line in trace.lines] == ["Alone"]
    assert trace.spans == ()
    assert recent.traces() == []
    assert recent.trace(hexadecimal(8)) is None


def test_line_is_as_it_was_logged() -> None:
    recent = Recent()
    recent.add_logs(logs(record("Paid", trace=3, severity=13, order=7)), role="task")

    (line,) = recent.lines()

    assert (line.level, line.levelno, line.logger, line.message) == ("WARNING", 30, "shop.cart", "Paid")
    assert (line.trace_id, line.attributes, line.source.role) == (hexadecimal(3), {"order": 7}, "task")
    assert not line.error


def test_failed_and_slow_traces_are_found() -> None:
    recent = Recent(slower_than=1.0)
    recent.add_traces(traces(span(1, 1), span(2, 2, error=True), span(3, 3, seconds=2)))

    assert [summary.trace_id for summary in recent.traces()] == [hexadecimal(3), hexadecimal(2), hexadecimal(1)]
    assert [summary.trace_id for summary in recent.traces(errors=True)] == [hexadecimal(2)]
    assert [summary.trace_id for summary in recent.traces(slower_than=1.5)] == [hexadecimal(3)]
    assert len(recent.traces(errors=True, slower_than=0.5)) == 2
    assert recent.traces()[0].slow
    assert recent.traces(limit=1, matches=lambda each: not each.slow)[0].trace_id == hexadecimal(2)


def test_failure_that_was_dealt_with_is_none_of_the_request() -> None:
    recent = Recent()
    recent.add_traces(traces(span(1, 2, parent=1, kind=CLIENT, error=True), span(1, 1)))

    (summary,) = recent.traces()

    assert not summary.error
    assert summary.error_spans == 1


def test_task_of_a_request_finishes_on_its_own() -> None:
    recent = Recent()
    recent.add_traces(
        traces(span(1, 2, parent=1, name="shop.pay", kind=CONSUMER, flags=0x300, error=True)), role="task"
    )
    recent.add_traces(traces(span(1, 1, name="GET /cart")), role="web")

    finished = [item for item in recent.follow(0).items if isinstance(item, Finished)]

    assert [(item.name, item.source.role, item.error) for item in finished] == [
        ("shop.pay", "task", True),
        ("GET /cart", "web", False),
    ]
    (summary,) = recent.traces()
    assert (summary.name, summary.error, summary.complete) == ("GET /cart", True, True)


def test_span_that_is_sent_twice_is_kept_once() -> None:
    recent = Recent()
    for _ in range(2):
        assert recent.add_traces(traces(span(1, 1))) == 0
    assert recent.traces()[0].span_count == 1
    assert len(recent.follow(0).items) == 1


def test_span_without_ids_is_refused_and_counted() -> None:
    recent = Recent()
    assert recent.add_traces(traces(span(0, 1), span(1, 0), span(1, 1))) == 2
    assert recent.stats()["refused"] == 2
    assert recent.stats()["spans"] == 1


# -- Bounds


def test_oldest_goes_first_and_failures_stay() -> None:
    recent = Recent(max_traces=10, max_lines=10)
    recent.add_traces(traces(span(1, 1, error=True)))
    recent.add_logs(logs(record("Why", trace=1), record("Broken", severity=17)))
    for number in range(2, 40):
        recent.add_traces(traces(span(number, 1)))
        recent.add_logs(logs(record("Fine", trace=number)))

    assert [int(summary.trace_id, 16) for summary in recent.traces()] == [*range(39, 30, -1), 1]
    assert len(recent.traces(errors=True)) == 1
    assert [line.message for line in recent.lines()][-2:] == ["Broken", "Why"]
    trace = recent.trace(hexadecimal(1))
    assert trace is not None
    assert [line.message for line in trace.lines] == ["Why"]
    assert recent.stats()["evicted_traces"] == 29


def test_lines_of_a_trace_stay_with_it_when_it_fails_later() -> None:
    recent = Recent(max_lines=10)
    recent.add_logs(logs(record("Why", trace=1)))
    recent.add_traces(traces(span(1, 1, error=True)))
    recent.add_logs(logs(*(record("Fine", trace=2) for _ in range(30))))

    assert recent.lines()[-1].message == "Why"


def test_failures_leave_half_of_the_room_to_the_others() -> None:
    recent = Recent(max_traces=10)
    for number in range(1, 40):
        recent.add_traces(traces(span(number, 1, error=number < 30)))
    assert [summary.error for summary in recent.traces()].count(True) == 5


def test_memory_is_bounded_whatever_comes_in() -> None:
    limit = 1024 * 1024
    recent = Recent(max_bytes=limit)
    bodies = [
        (
            traces(*(span(1000 * step + each, each + 1, error=each % 3 == 0, text="x" * 50) for each in range(1, 50))),
            logs(*(record("y" * 200, trace=each, severity=each % 24, field="z" * 100) for each in range(1, 50))),
        )
        for step in range(100)
    ]
    tracemalloc.start()
    try:
        for spans, lines in bodies:
            recent.add_traces(spans)
            recent.add_logs(lines)
            assert recent.stats()["bytes"] <= limit
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recent.stats()["evicted_traces"] > 0
    assert recent.stats()["evicted_lines"] > 0
    # What is counted is what it takes.
    assert used < 1.5 * limit


def test_long_names_of_scopes_are_counted() -> None:
    recent = Recent(max_bytes=1024 * 1024)
    for number in range(1, 100):
        recent.add_trace_request(traces_request(span(number, 1), scope="x" * 50_000))
    assert 0 < recent.stats()["traces"] <= 10


def test_large_resource_counts_as_what_it_takes() -> None:
    request = traces_request(span(1, 1))
    # A few bytes each, and twenty times as much as a list of Python.
    request.resource_spans[0].resource.attributes.extend(pairs({"x": [[] for _ in range(10_000)]}))
    recent = Recent(max_bytes=1024 * 1024)
    recent.add_trace_request(request)
    assert recent.stats()["traces"] == 0


def test_one_trace_cannot_take_all_the_memory() -> None:
    recent = Recent(max_bytes=1024 * 1024)
    recent.add_traces(traces(span(2, 1)))
    for number in range(1, 100):
        recent.add_traces(traces(*(span(1, 100 * number + each, parent=9, kind=CLIENT) for each in range(50))))

    summaries = {int(summary.trace_id, 16): summary for summary in recent.traces()}

    assert set(summaries) == {1, 2}
    assert summaries[1].dropped_spans > 0
    assert summaries[1].dropped_spans + summaries[1].span_count == 99 * 50


def test_huge_line_is_refused_and_costs_no_other() -> None:
    recent = Recent(max_bytes=1024 * 1024)
    assert recent.add_logs(logs(record("Small"), record("x" * 500_000))) == 1
    assert [line.message for line in recent.lines()] == ["Small"]


# -- Following


def test_follower_sees_what_comes_after_its_cursor_in_order() -> None:
    recent = Recent()
    recent.add_logs(logs(record("Before")))
    cursor = recent.follow(None).cursor
    recent.add_logs(logs(record("1"), record("2")))
    recent.add_traces(traces(span(1, 1, name="3")))

    news = recent.follow(cursor)

    assert [item.message if isinstance(item, Line) else item.name for item in news.items] == ["1", "2", "3"]
    assert news.missed == 0
    assert recent.follow(news.cursor) == type(news)(news.cursor, (), 0)
    assert [len(recent.follow(cursor, limit=2).items), len(recent.follow(cursor + 2, limit=2).items)] == [2, 1]


def test_follower_waits_for_news() -> None:
    recent = Recent()
    found: list[str] = []

    def follow() -> None:
        for item in recent.follow(0, timeout=60).items:
            assert isinstance(item, Line)
            found.append(item.message)

    thread = threading.Thread(target=follow)
    thread.start()
    recent.add_logs(logs(record("Hello")))
    thread.join(60)
    assert found == ["Hello"]


def test_follower_is_told_what_it_missed() -> None:
    recent = Recent(max_bytes=64 * 1024)
    for _ in range(100):
        recent.add_logs(logs(record("x" * 100)))

    news = recent.follow(0)

    assert news.missed > 0
    assert news.missed + len(news.items) == 100


def test_cursor_of_another_store_begins_now() -> None:
    recent = Recent()
    recent.add_logs(logs(record()))
    assert recent.follow(1_000_000).cursor == 1


def test_close_ends_the_wait() -> None:
    recent = Recent()
    thread = threading.Thread(target=recent.follow, args=(0,), kwargs={"timeout": 600})
    thread.start()
    recent.close()
    thread.join(60)
    assert not thread.is_alive()
    assert recent.follow(0, timeout=600).items == ()


# -- Hostile input


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    recent = Recent()
    for add in (recent.add_traces, recent.add_logs):
        with suppress(ValueError):
            add(body)


@settings(deadline=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_any_number_is_understood(kind: int, status: int, start: int, end: int) -> None:
    message = span(1, 1)
    message.kind = kind
    message.status.code = status
    message.start_time_unix_nano, message.end_time_unix_nano = start, end
    recent = Recent()
    recent.add_traces(traces(message))
    recent.add_logs(logs(record(severity=kind, start=start)))

    trace = recent.trace(hexadecimal(1))

    assert trace is not None
    assert trace.spans[0].kind in module.KINDS
    assert trace.spans[0].status in module.STATUSES
    assert trace.summary.duration_ns >= 0
    assert len(recent.lines()) == 1


@pytest.mark.parametrize("method", ["add_traces", "add_logs"])
def test_what_is_no_otlp_is_a_value_error(method: str) -> None:
    with pytest.raises(ValueError, match="not an Export"):
        getattr(Recent(), method)(b"\xff\xff\xff")

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from django_obs.server.console import waterfall as module
from django_obs.server.console.waterfall import DEEPEST, NARROWEST, SCALE, Waterfall, kind_of, tree, waterfall
from django_obs.server.recent import Recent, Trace
from tests.server.otlp import CLIENT, EPOCH, SECOND, span, traces

MILLISECOND = SECOND // 1000
QUERY = {"kind": CLIENT, "db__system__name": "sqlite", "db__query__text": "SELECT 1"}


def trace(*spans: object) -> Trace:
    recent = Recent()
    recent.add_traces(traces(*spans))  # type: ignore[arg-type]
    found = recent.trace(f"{1:032x}")
    assert found is not None
    return found


def shape(found: Trace) -> list[tuple[str, int]]:
    return [(each.name, depth) for each, depth in tree(found.spans)]


def test_children_stand_below_their_parent_by_time() -> None:
    found = trace(
        span(1, 4, parent=2, name="d", start=EPOCH + 2),
        span(1, 3, parent=1, name="c", start=EPOCH + 9),
        span(1, 2, parent=1, name="b", start=EPOCH + 1),
        span(1, 1, name="a"),
    )

    assert shape(found) == [("a", 0), ("b", 1), ("d", 2), ("c", 1)]


def test_child_whose_parent_is_missing_stands_alone() -> None:
    assert shape(trace(span(1, 2, parent=9, name="b", start=EPOCH + 1), span(1, 1, name="a"))) == [("a", 0), ("b", 0)]


def test_parents_in_a_ring_are_each_shown_once() -> None:
    found = trace(
        span(1, 1, parent=2, name="a"), span(1, 2, parent=1, name="b", start=EPOCH + 1), span(1, 3, parent=3, name="c")
    )

    assert sorted(shape(found)) == [("a", 0), ("b", 1), ("c", 0)]


def test_depth_of_a_trace_is_no_matter() -> None:
    found = trace(*(span(1, n, parent=n - 1, start=EPOCH + n, seconds=0.001) for n in range(1, 3000)))

    assert shape(found)[-1][1] == 2998
    laid = waterfall(found)
    assert len(laid.bars) == module.MOST_ROWS
    assert laid.left_out == 2999 - module.MOST_ROWS
    assert max(bar.depth for bar in laid.bars) == DEEPEST


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 9)), max_size=12, unique_by=lambda each: each[0]))
def test_every_span_is_shown_once_whatever_the_parents(edges: list[tuple[int, int]]) -> None:
    if edges:
        found = trace(*(span(1, number, parent=parent) for number, parent in edges))
        shown = [each.span_id for each, _ in tree(found.spans)]
        assert sorted(shown) == sorted(f"{number:016x}" for number, _ in edges)


def bars(laid: Waterfall) -> list[tuple[int, int]]:
    return [(bar.x, bar.width) for bar in laid.bars]


def test_bars_lie_where_their_time_is() -> None:
    laid = waterfall(
        trace(
            span(1, 1, seconds=0.1),
            span(1, 2, parent=1, start=EPOCH + 50 * MILLISECOND, seconds=0.025),
            # Too short to be seen, and at the very end.
            span(1, 3, parent=1, start=EPOCH + 100 * MILLISECOND, seconds=0),
        )
    )

    assert bars(laid) == [(0, SCALE), (500, 250), (SCALE - NARROWEST, NARROWEST)]
    assert laid.ticks == ["0", "25.0 ms", "50.0 ms", "75.0 ms", "100 ms"]
    assert ("began", "+50.0 ms") in laid.bars[1].facts


def test_clocks_that_disagree_leave_all_bars_on_the_page() -> None:
    laid = waterfall(
        trace(span(1, 1, seconds=0.1), span(1, 2, parent=1, start=EPOCH - SECOND, seconds=5), span(1, 3, parent=1))
    )

    for x, width in bars(laid):
        assert 0 <= x < x + width <= SCALE


def test_single_moment_is_a_trace_as_well() -> None:
    assert bars(waterfall(trace(span(1, 1, seconds=0)))) == [(0, NARROWEST)]


def test_queries_are_counted_and_a_loop_is_noticed() -> None:
    laid = waterfall(trace(span(1, 1), *(span(1, n, parent=1, seconds=0.001, **QUERY) for n in range(2, 12))))

    assert laid.queries.number == 10
    assert laid.queries.duration == "10.0 ms"
    assert laid.queries.repeated == 10
    assert [bar.times for bar in laid.bars[:2]] == [0, 10]
    assert laid.bars[1].statement == "SELECT 1"
    assert "db.query.text" not in dict(laid.bars[1].attributes)


def test_few_queries_are_no_loop() -> None:
    assert waterfall(trace(span(1, 1), span(1, 2, parent=1, **QUERY))).queries.repeated == 0


def test_kinds_have_their_colours() -> None:
    found = trace(
        span(1, 1, kind=CLIENT),
        span(1, 2, error=True, **QUERY),
        span(1, 3, **QUERY),
        span(1, 4, kind=CLIENT, django_obs__cache__operation="get"),
        span(1, 5),
        span(1, 6, kind=1),
    )

    assert {int(each.span_id): kind_of(each) for each in found.spans} == {
        1: "client",
        2: "error",
        3: "database",
        4: "cache",
        5: "server",
        6: "internal",
    }

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_obs.server.recent import Finished, Line, Recent
from django_obs.server.selection import Selection
from tests.server.otlp import EPOCH, logs, record, span, traces


def line(logger: str = "shop.cart", severity: int = 9, trace: int = 1, **fields: Any) -> Line:
    recent = Recent()
    recent.add_logs(logs(record(trace=trace, severity=severity, start=EPOCH, **fields), logger=logger))
    return recent.lines()[0]


def access(status: int = 200, duration_ms: float = 12.5, **fields: Any) -> Line:
    found = {"method": "GET", "route": "/cart/<int:id>", "path": "/cart/7", "status": status}
    return line("django_obs.access", 17 if status >= 500 else 9, duration_ms=duration_ms, **found, **fields)


def finished(**options: Any) -> Finished:
    recent = Recent()
    attributes = {"http__request__method": "GET", "url__path": "/cart/7", "http__route": "/cart/<int:id>"}
    recent.add_traces(traces(span(name="GET /cart/<int:id>", **{**attributes, **options})))
    (item,) = recent.follow(0).items
    assert isinstance(item, Finished)
    return item


def admitted(text: str, item: Line | Finished, **options: Any) -> bool:
    return Selection.read(text, **options).admits(item)


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("", line(severity=5), True),
        ("info", line(severity=5), False),
        ("debug", line(severity=5), True),
        ("warn", line(), False),
        ("off,shop=debug", line(severity=5), True),
        ("off,shop=debug", line("other"), False),
        ("shop=warn", line("other"), True),  # what no directive names has info, as in the filter
        ("off,shop.cart=debug,shop=error", line(severity=5), True),
        ("off,[{order=7}]", line(order=7), True),
        ("off,[{order=7}]", line(order=8), False),
        ("off,[{order}]", line(), False),
        ("off,[/cart/7]", access(), True),
        ("off,[GET /cart/<int:id>]", access(), True),
        ("off,[GET]", access(), True),
        ("off,[POST]", access(), False),
        ("off,[GET*]", finished(), True),
        ("off,[GET /cart/7]", finished(), True),
        ("off,[{user.id=3}]", access(user_id="3"), True),
        ("off,[{trace_id=00000000000000000000000000000001}]", line(), True),
        ("off,[shop.pay]", line("django_obs.access", task="shop.pay"), True),
        ("error", finished(), False),
        ("error", finished(error=True), True),
        ("off,[{path=/^.cart/}]", finished(), True),
    ],
)
def test_directives_mean_what_they_mean_in_the_filter(text: str, item: Any, expected: bool) -> None:
    assert admitted(text, item) is expected


def test_trace_is_found_by_how_its_id_begins() -> None:
    assert admitted("", line(trace=1), trace_id="0" * 31)
    assert admitted("", line(trace=0xAB << 120), trace_id="AB")
    assert not admitted("", line(trace=1), trace_id="1")
    assert not admitted("", line(trace=0), trace_id="0")


def test_errors_and_slow_ones_are_either() -> None:
    for item in (access(500), finished(error=True), line(severity=17)):
        assert admitted("", item, errors=True)
        assert not admitted("", item, slower_than=1.0)
    for item in (access(duration_ms=1500), finished(seconds=2)):
        assert admitted("", item, slower_than=1.0)
        assert admitted("", item, slower_than=1.0, errors=True)
        assert not admitted("", item, errors=True)
    # A duration that somebody logs is none of a request.
    assert not admitted("", line(duration_ms=5000), slower_than=1.0)
    assert not admitted("", line(), errors=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "shop=loud"},
        {"trace_id": "xyz"},
        {"trace_id": "0" * 33},
        {"slower_than": -1.0},
        {"slower_than": float("nan")},
    ],
)
def test_what_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Selection.read(**wrong)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["method", "path", "route", "task", "status", "duration_ms", "user_id"]),
        st.none() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 1), max_size=2),
    )
)
def test_no_line_breaks_it(fields: dict[str, Any]) -> None:
    item = line("django_obs.access", **fields)
    for text in ("", "off,[GET /]", "off,[{status=5}]", "[{path=/a/}]=debug", "off,[*]"):
        Selection.read(text, slower_than=0.1).admits(item)
        Selection.read(text).admits(item)

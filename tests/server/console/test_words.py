from __future__ import annotations

import pytest

from django_obs.server.console import words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, words.NOTHING),
        (0, "0 µs"),
        (12e-6, "12 µs"),
        (0.9996e-3, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.456, "456 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (99.96, "1 m 40 s"),
        (125, "2 m 05 s"),
        (3599.9, "1 h"),
        (90061, "1 d 1 h"),
    ],
)
def test_duration_has_three_digits_and_a_fitting_unit(value: float | None, expected: str) -> None:
    assert words.seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, words.NOTHING), (-1, "0 s"), (59.6, "1 m"), (61, "1 m 1 s"), (3601, "1 h"), (273600, "3 d 4 h")],
)
def test_age_has_two_units(value: float | None, expected: str) -> None:
    assert words.age(value) == expected


def test_rate_share_count_and_size_are_short() -> None:
    assert [words.rate(value) for value in (None, 0, 0.034, 9.996, 120, 12345)] == [
        words.NOTHING,
        "0",
        "0.03",
        "10.0",
        "120",
        "12\N{NARROW NO-BREAK SPACE}345",
    ]
    assert [words.percent(value) for value in (None, 0, 0.00001, 0.0123, 0.5, 1)] == [
        words.NOTHING,
        "0 %",
        "< 0.01 %",
        "1.23 %",
        "50.0 %",
        "100 %",
    ]
    assert [words.size(value) for value in (None, 12, 2048, 90 << 20, 3 << 30, 5 << 40)] == [
        words.NOTHING,
        "12 B",
        "2 KiB",
        "90 MiB",
        "3.0 GiB",
        "5120.0 GiB",
    ]


def test_time_that_no_calendar_has_is_no_error() -> None:
    assert words.clock(0) == "00:00:00.000"
    assert words.clock(1e30) == words.NOTHING
    assert words.date(float("nan")) == words.NOTHING

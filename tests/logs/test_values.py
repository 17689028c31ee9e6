from __future__ import annotations

import enum
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any

import orjson
import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_obs.logs.entry import Stamper
from django_obs.logs.redaction import MASK, Redaction
from django_obs.logs.values import MAX_DEPTH, MAX_ITEMS, MAX_TEXT, plain, text_of

REDACTION = Redaction(["password", "api_key"])


class Colour(enum.Enum):
    RED = "red"
    PALE = ("pale", 1)


class Number(enum.IntEnum):
    ONE = 1


@dataclass
class Order:
    number: int
    password: str


class Broken:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


class BrokenMapping(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (7, 7),
        (1.5, 1.5),
        (None, None),
        (True, True),
        (2**63, 2**63),
        (2**64, str(2**64)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (Decimal("1.10"), "1.10"),
        (timedelta(seconds=1), "0:00:01"),
        (b"bytes", "bytes"),
        (b"\xff\xfe", "//4="),
        (bytearray(b"bytes"), "bytes"),
        (memoryview(b"bytes"), "bytes"),
        ("\ud800", "\\ud800"),
        (lazystr("lazy"), "lazy"),
        (mark_safe("<b>"), "<b>"),
        (Text("text"), "text"),
        (Colour.RED, "red"),
        (Colour.PALE, ["pale", 1]),
        (Number.ONE, 1),
        (Order(1, "x"), {"number": 1, "password": MASK}),
        (Order, "Order"),
        (ValueError("bad"), "ValueError: bad"),
        (Broken(), "<unprintable Broken: ValueError>"),
        (BrokenMapping(a=1), "<unprintable BrokenMapping: RuntimeError>"),
        ({1: "a", None: "b", 1.5: "c", (2,): "d"}, {"1": "a", "null": "b", "1.5": "c", "(2,)": "d"}),
        ({True: "a", False: "b"}, {"true": "a", "false": "b"}),
        ({"a": {"PASSWORD": "x", "b": [{"Api-Key": 1}]}}, {"a": {"PASSWORD": MASK, "b": [{"Api-Key": MASK}]}}),
        ((1, [2, {3}]), [1, [2, [3]]]),
    ],
)
def test_value_becomes_plain(value: object, expected: object) -> None:
    assert plain(value, REDACTION) == expected
    orjson.dumps(plain(value, REDACTION))


def test_number_beyond_the_limit_for_digits_is_written_in_hexadecimal() -> None:
    assert str(plain(1 << 20_000, REDACTION)).startswith("0x1000")


def test_generator_is_not_used_up() -> None:
    numbers = (number for number in range(3))
    assert "generator" in plain(numbers, REDACTION)
    assert list(numbers) == [0, 1, 2]


def test_circular_value_ends() -> None:
    circle: list[Any] = [1]
    circle.append({"again": circle})
    assert plain(circle, REDACTION) == [1, {"again": "[circular]"}]
    shared = {"a": 1}
    assert plain([shared, shared], REDACTION) == [shared, shared]


def test_deep_value_ends() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    text = json.dumps(plain(deep, REDACTION))
    assert text.count("[") == MAX_DEPTH + 1
    assert "[too deep]" in text
    while deep:
        deep = deep[0]


def test_large_value_is_cut() -> None:
    assert plain("x" * (MAX_TEXT + 5), REDACTION) == "x" * MAX_TEXT + "... [5 more characters]"
    numbers = plain(list(range(10**6)), REDACTION)
    assert len(numbers) == MAX_ITEMS + 1
    assert numbers[-1] == "[too large]"
    wide = plain({str(number): list(range(900)) for number in range(900)}, REDACTION)
    assert len(orjson.dumps(wide)) < 200_000


def test_text_of_anything_is_text() -> None:
    assert text_of(Broken()) == "<unprintable Broken: ValueError>"
    assert text_of("\udcff") == "\\udcff"
    assert type(text_of(Text("a"))) is str


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.binary(max_size=20),
        st.decimals(),
        st.dates(),
        st.datetimes(timezones=st.sampled_from([None, UTC])),
        st.times(),
        st.timedeltas(),
        st.uuids(),
        st.complex_numbers(),
        st.builds(Broken),
        st.just(lazystr("lazy")),
        st.sampled_from(list(Colour)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.none(), st.booleans(), st.floats()), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_anything_becomes_what_json_can_hold(value: object) -> None:
    atoms = (str, int, float, bool, type(None), datetime, date, time, uuid.UUID)

    def check(part: object) -> None:
        if type(part) is dict:
            assert all(type(key) is str for key in part)
            for each in part.values():
                check(each)
        elif type(part) is list:
            for each in part:
                check(each)
        else:
            assert type(part) in atoms

    made = plain(value, REDACTION)
    check(made)
    json.loads(orjson.dumps(made))


class BrokenZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise ValueError("no")


def test_times_with_zones_are_what_the_encoder_takes() -> None:
    noon = time(12, tzinfo=UTC)
    assert plain(noon, REDACTION) == "12:00:00+00:00"
    assert plain(datetime(2026, 1, 31, tzinfo=UTC), REDACTION) == datetime(2026, 1, 31, tzinfo=UTC)
    # orjson 3.11 dies of a segmentation fault when it asks this one for its offset.
    assert plain(datetime(2026, 1, 31, tzinfo=BrokenZone()), REDACTION) == "<unprintable datetime: ValueError>"
    fields = {"at": noon, "then": datetime(2026, 1, 31, tzinfo=BrokenZone())}
    assert orjson.loads(orjson.dumps(Stamper().snapshot(fields)))["at"] == "12:00:00+00:00"

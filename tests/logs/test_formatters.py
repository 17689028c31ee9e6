from __future__ import annotations

import json
import logging
import re
import sys
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_obs.context import Scope, current
from django_obs.logs.entry import RESERVED, AccessStamp, Entry, Failure, Stamper
from django_obs.logs.formatters import REMEMBERED, REMEMBERED_LENGTH, ConsoleFormatter, JSONFormatter
from django_obs.logs.redaction import MASK, Redaction
from tests.logs.test_values import Broken, anything

STAMPER = Stamper(lambda: ("a" * 32, "b" * 16), redaction=Redaction(["password"]))
JSON = JSONFormatter(service="shop", stamper=STAMPER)
CONSOLE = ConsoleFormatter(stamper=STAMPER)


def record(message: Any = "message", *args: Any, extra: dict[Any, Any] | None = None, **more: Any) -> logging.LogRecord:
    made = logging.getLogger("shop").makeRecord(
        "shop.cart", logging.INFO, "cart.py", 1, message, args, more.pop("exc_info", None), "view", None, **more
    )
    # Not through makeRecord(), which refuses some names that hostile code may use all the same.
    made.__dict__.update(extra or {})
    return made


def line_of(made: logging.LogRecord, formatter: JSONFormatter = JSON) -> dict[str, Any]:
    text = formatter.format(made)
    assert "\n" not in text
    parsed = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert isinstance(parsed, dict)
    return parsed


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return sys.exc_info()


def test_keys_come_in_the_order_of_the_layout(clean_context: None) -> None:
    scope = Scope("request")
    scope.request_id = "r-1"
    scope.bound["order_id"] = 7
    current.set(scope)
    made = record(extra={"amount": 1.5}, exc_info=raised(ValueError("bad")), sinfo="Stack (most recent call last):")
    made.created = 1767225600.000001
    line = line_of(made)
    assert list(line) == [
        "timestamp",
        "level",
        "logger",
        "message",
        "trace_id",
        "span_id",
        "request_id",
        "service",
        "order_id",
        "amount",
        "exception",
        "stack",
    ]
    assert line["timestamp"] == "2026-01-01T00:00:00.000001Z"
    assert list(line["exception"]) == ["type", "message", "stack"]


text = st.text(st.characters(), max_size=20)  # lone surrogates included
number = st.integers(0, 10**15)


def access_stamp(
    *, created: float = 1767225600.5, bound: dict[Any, Any] | None = None, failure: Failure | None = None, **said: Any
) -> AccessStamp:
    """What is queued of a request of which this is said."""
    scope = Scope("request")
    for name, value in {"ids": ("a" * 32, "b" * 16), "request_id": "a" * 32, "method": "GET", **said}.items():
        setattr(scope, name, value)
    counts = scope.db_count, scope.db_ns, scope.cache_hits, scope.cache_misses
    return (created, 20, scope, *counts, bound, failure)


@given(
    created=st.floats(-1e10, 1e11),
    bound=st.none() | st.dictionaries(text, number, max_size=2),
    failure=st.none() | st.just(Failure("ValueError", "bad", "Traceback")),
    said=st.fixed_dictionaries(
        {
            "ids": st.none() | st.tuples(st.just("a" * 32), st.sampled_from(["", "b" * 16])),
            "request_id": st.sampled_from(["", "a" * 32]) | text,
            "method": text,
            "route": st.none() | text,
            "path": text,
            "status": st.integers(100, 599),
            "ended": number,
            "queue_ns": st.none() | number,
            "size": st.just(-1) | number,
            "db_count": number,
            "db_ns": number,
            "cache_hits": number,
            "cache_misses": number,
            "user_id": st.none() | text,
            "client": st.none() | text,
        }
    ),
    formatter=st.sampled_from(
        [JSON, JSONFormatter(service="", stamper=STAMPER), JSONFormatter(service="shop", static_fields={"a": 1})]
    ),
)
def test_access_line_is_to_the_letter_that_of_its_entry(
    created: float, bound: Any, failure: Failure | None, said: dict[str, Any], formatter: JSONFormatter
) -> None:
    stamp = access_stamp(created=created, bound=bound, failure=failure, **said)
    assert formatter.stamped(stamp) == formatter.line(formatter.stamper.entry(stamp))


@given(
    shared=st.fixed_dictionaries(
        {"method": text, "route": st.none() | text, "path": text, "status": st.integers(100, 599)}
    ),
    numbers=st.lists(
        st.fixed_dictionaries(
            dict.fromkeys(("ended", "size", "db_count", "db_ns", "cache_hits", "cache_misses"), number)
        ),
        min_size=2,
        max_size=3,
    ),
    client=text.filter(bool),
    request_id=text.filter(bool) | st.just("a" * 32),
)
def test_usual_access_lines_are_to_the_letter_those_of_their_entries(
    shared: dict[str, Any], numbers: list[dict[str, int]], client: str, request_id: str
) -> None:
    formatter = JSONFormatter(service="shop", stamper=STAMPER)
    for each in numbers:
        ids = ("a" * 32, f"{each['size'] % 2**64:016x}")
        stamp = access_stamp(ids=ids, client=client, request_id=request_id, **shared, **each)
        line = formatter.stamped(stamp)
        assert line == formatter.line(STAMPER.entry(stamp))
        # The way by the parts that are kept has been taken, but for what no JSON can have.
        if is_text(shared["method"], shared["path"], shared["route"], client, request_id):
            assert line == formatter._access_line(stamp)


def is_text(*parts: str | None) -> bool:
    try:
        "".join(part or "" for part in parts).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_access_lines_of_a_client_that_makes_paths_up_take_bounded_room() -> None:
    formatter = JSONFormatter(service="shop", stamper=STAMPER)
    for number in range(3 * REMEMBERED):
        # Every other one is made up at length, too, of which nothing is kept.
        method = "GET" if number % 2 else "G" * REMEMBERED_LENGTH
        stamp = access_stamp(method=method, path=f"/{number}", status=404, size=1, client="127.0.0.1")
        assert json.loads(formatter.stamped(stamp))["path"] == f"/{number}"
    assert 0 < len(formatter._access) <= REMEMBERED
    assert {shared[0] for shared in formatter._access} == {"GET"}


@pytest.mark.parametrize("created", [0.0, 1.999999, 1e9 + 0.5, -1.5, 253402300799.0])
def test_timestamp_has_microseconds_and_is_utc(created: float) -> None:
    made = record()
    made.created = created
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line_of(made)["timestamp"])


@pytest.mark.parametrize("created", [float("nan"), float("inf"), 1e300, -1e300])
def test_impossible_time_still_makes_a_line(created: float) -> None:
    made = record()
    made.created = created
    assert line_of(made)["message"] == "message"


def test_fields_never_overwrite_ours() -> None:
    line = line_of(record(extra=dict.fromkeys(RESERVED, "theirs")))
    assert line["level"] == "INFO"
    assert line["logger"] == "shop.cart"
    # "message" in a record's attributes is what another formatter has left there.
    assert {f"{name}_" for name in RESERVED - {"message"}} <= set(line)


def test_own_field_goes_before_a_bound_one(clean_context: None) -> None:
    scope = Scope("request")
    scope.bound.update(order_id=7, message="bound")
    current.set(scope)
    line = line_of(record(extra={"order_id": 8}))
    assert line["order_id"] == 8
    assert line["message"] == "message"
    assert line["message_"] == "bound"


def test_secrets_are_masked_on_each_way(clean_context: None) -> None:
    scope = Scope("request")
    scope.bound["password"] = "x1"
    current.set(scope)
    assert line_of(record())["password"] == MASK
    assert line_of(record(extra={"user": {"password": "x2"}}))["user"] == {"password": MASK}
    assert line_of(record({"password": "x3"}))["password"] == MASK
    assert line_of(record(extra={"password": object()}))["password"] == MASK


def test_private_fields_are_left_out() -> None:
    assert "_sentry" not in line_of(record(extra={"_sentry": 1, "a": 1}))
    assert "_sentry" not in line_of(record(extra={"_sentry": object(), "a": 1}))


@pytest.mark.parametrize(
    ("message", "args", "expected"),
    [
        ("plain %s", (), "plain %s"),
        ("%s and %d", ("a", 1), "a and 1"),
        ("%(a)s", ({"a": 1},), "1"),
        (7, (), "7"),
        (ValueError("bad"), (), "bad"),
        ("tear\nme\x1b[31m\u2028", (), "tear\nme\x1b[31m\u2028"),
        ({"a": 1, "message": "text"}, (), "text"),
        ("\ud800", (), "\\ud800"),
        (b"bytes", (), "b'bytes'"),
    ],
)
def test_message(message: object, args: tuple[object, ...], expected: str) -> None:
    assert line_of(record(message, *args))["message"] == expected


@pytest.mark.parametrize(("message", "args"), [("%d", ("x",)), ("%s %s", ("x",)), ("%s", (Broken(),)), (Broken(), ())])
def test_message_that_cannot_be_merged_is_told(message: object, args: tuple[object, ...]) -> None:
    assert "not merged" in line_of(record(message, *args))["message"]


def test_exception_has_type_message_and_stack() -> None:
    class OutOfStock(Exception):
        pass

    exception = line_of(record(exc_info=raised(OutOfStock("sold out"))))["exception"]
    assert exception["type"] == f"{__name__}.{OutOfStock.__qualname__}"
    assert exception["message"] == "sold out"
    assert exception["stack"].startswith("Traceback (most recent call last):")
    assert exception["stack"].endswith("OutOfStock: sold out")


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("never")


def test_exception_that_cannot_be_told_is_told_as_far_as_it_can() -> None:
    exception = line_of(record(exc_info=raised(Silent())))["exception"]
    assert exception["type"].endswith("Silent")
    assert exception["message"] == "<unprintable Silent: ValueError>"
    assert "test_formatters.py" in exception["stack"]


def test_endless_recursion_makes_a_stack_of_readable_size() -> None:
    def forever(depth: int) -> int:
        return forever(depth + 1) + 1 if depth % 2 else forever(depth + 1)

    try:
        forever(0)
    except RecursionError:
        exception = line_of(record(exc_info=sys.exc_info()))["exception"]
    assert exception["type"] == "RecursionError"
    assert len(exception["stack"]) < 70_000
    # The message goes on where a tracer, such as that of coverage, was called last.
    assert "maximum recursion depth exceeded" in exception["stack"].splitlines()[-1]


@pytest.mark.parametrize("exc_info", [(None, None, None), None])
def test_record_without_exception_has_none(exc_info: Any) -> None:
    assert "exception" not in line_of(record(exc_info=exc_info))


def test_text_of_an_exception_from_another_process_is_its_stack() -> None:
    made = record()
    made.exc_text = "Traceback: elsewhere"
    assert line_of(made)["exception"] == {"type": "", "message": "", "stack": "Traceback: elsewhere"}


def test_record_of_a_class_of_its_own_keeps_its_fields() -> None:
    class Special(logging.LogRecord):
        def __init__(self, *args: Any) -> None:
            self.early = 1
            super().__init__(*args)
            self.late = 2

    line = line_of(Special("shop", 20, "", 1, "message", (), None))
    assert (line["early"], line["late"]) == (1, 2)


def test_record_that_another_formatter_has_seen_carries_nothing_of_it() -> None:
    made = record(extra={"a": 1})
    logging.Formatter("%(asctime)s %(message)s").format(made)
    assert set(line_of(made)) == set(line_of(record(extra={"a": 1})))


def test_keywords_of_python_json_logger_work_on_the_layout() -> None:
    formatter = JSONFormatter(
        service="shop",
        stamper=STAMPER,
        rename_fields={"level": "severity", "order_id": "order"},
        static_fields={"region": "eu"},
        defaults={"order_id": 0, "colour": "none"},
        json_default=lambda value: "default",
        prefix="@cee:",
    )
    text = formatter.format(record(extra={"order_id": 7}))
    assert text.startswith("@cee:{")
    line = json.loads(text.removeprefix("@cee:"))
    assert line["severity"] == "INFO"
    assert "level" not in line
    assert (line["order"], line["region"], line["colour"]) == (7, "eu", "none")


def test_indented_output_is_one_object() -> None:
    text = JSONFormatter(service="shop", json_indent=True).format(record())
    assert text.count("\n") > 3
    assert json.loads(text)["message"] == "message"


def test_value_that_the_encoder_refuses_is_written_in_the_layout_of_python_json_logger_too() -> None:
    made = record(extra={"big": 2**70, "lone": "\ud800"}, exc_info=raised(Silent()))
    line = json.loads(JSONFormatter().format(made))
    assert (line["big"], line["lone"]) == (str(2**70), "\\ud800")
    assert "exc_info" in line


def test_renamed_fields_that_are_missing_are_kept_if_asked_for() -> None:
    formatter = JSONFormatter(service="shop", rename_fields={"tenant": "tenant_id"}, rename_fields_keep_missing=True)
    assert json.loads(formatter.format(record()))["tenant_id"] is None


hostile = st.fixed_dictionaries(
    {
        "message": anything,
        "args": st.one_of(st.just(()), st.tuples(anything), st.tuples(st.dictionaries(st.text(), anything))),
        "extra": st.dictionaries(st.one_of(st.text(), st.sampled_from(sorted(RESERVED))), anything, max_size=4),
        "name": st.text(),
        "level": st.integers(min_value=-5, max_value=10**6),
        "created": st.floats(),
        "error": st.one_of(st.none(), st.text().map(ValueError), st.just(Silent())),
        "stack": st.one_of(st.none(), st.text()),
    }
)


def make(parts: dict[str, Any]) -> logging.LogRecord:
    made = logging.LogRecord(parts["name"], parts["level"], "", 0, parts["message"], (), None)
    made.args = parts["args"]
    made.created = parts["created"]
    made.stack_info = parts["stack"]
    if parts["error"] is not None:
        made.exc_info = raised(parts["error"])
    for name, value in parts["extra"].items():
        made.__dict__.setdefault(name, value)
    return made


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile)
def test_any_record_makes_one_line_of_json(parts: dict[str, Any]) -> None:
    line = line_of(make(parts))
    assert line["level"] == logging.getLevelName(parts["level"])
    assert isinstance(line["message"], str)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile)
def test_any_record_makes_lines_that_do_not_command_the_terminal(parts: dict[str, Any]) -> None:
    text = CONSOLE.format(make(parts))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile)
def test_any_record_is_json_in_the_layout_of_python_json_logger(parts: dict[str, Any]) -> None:
    made = make(parts)
    try:
        made.getMessage()
    except Exception:
        return
    json.loads(JSONFormatter().format(made))


# -- For people --------------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> Entry:
    whole = Entry(0.25, 20, "INFO", "shop.cart", "paid", "a" * 32, "b" * 16, "r-1", {"order_id": 7}, None, None)
    return whole._replace(**changes)


def console(colours: bool = False, **changes: Any) -> str:
    return ConsoleFormatter(colours=colours).line(entry(**changes)).decode()


def test_console_line_is_aligned_and_has_the_fields() -> None:
    first = console(logger="a", message="one")
    second = console(logger="shop.cart", message="two", levelno=40, levelname="ERROR")
    assert first.index("order_id=7") == second.index("order_id=7")
    assert first.index("one") == second.index("two")
    assert f"trace_id={'a' * 32} request_id=r-1\n" in first
    assert "\x1b" not in first


def test_console_line_is_coloured_on_a_terminal() -> None:
    assert "\x1b[31mERROR" in console(colours=True, levelno=40, levelname="ERROR")


def test_console_shows_the_traceback_below() -> None:
    made = record(exc_info=raised(ValueError("bad")))
    lines = CONSOLE.format(made).split("\n")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ValueError: bad"


def test_console_escapes_what_would_command_the_terminal() -> None:
    line = console(message="\x1b[2Jcleared\rtwo\nlines", fields={"a b": "x\x07"})
    assert "\\x1b[2Jcleared\\rtwo\n    lines" in line
    assert "a b=x\\x07" in line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("word", "v=word"),
        ("two words", 'v="two words"'),
        ("", 'v=""'),
        (7, "v=7"),
        (None, "v=null"),
        ({"a": [1]}, 'v={"a":[1]}'),
    ],
)
def test_console_writes_values_as_one_reads_them(value: object, expected: str) -> None:
    assert f"{expected} trace_id" in console(fields={"v": value})


@pytest.mark.parametrize("created", [float("nan"), 1e300])
def test_console_line_of_an_impossible_time_has_none(created: float) -> None:
    assert console(created=created).startswith("--:--:--.---")


def test_console_shows_the_stack_that_was_asked_for() -> None:
    assert console(stack="Stack (most recent call last):\n  here").endswith(
        "\n    Stack (most recent call last):\n      here\n"
    )


def test_json_of_a_mapping_of_any_class() -> None:
    assert line_of(record(extra={"a": MappingProxyType({"b": 1})}))["a"] == {"b": 1}

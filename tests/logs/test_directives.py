from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_obs.logs.directives import (
    LEVELS,
    MAX_FILTER,
    OFF,
    TRACE,
    Directive,
    DirectiveError,
    most_specific_first,
    parse,
    parse_lenient,
)


def as_text(text: str) -> list[str]:
    return [str(directive) for directive in parse(text)]


# What EnvFilter's documentation and its tests say about each text, in our words for levels. "crate1::mod1" stays as it
# is: a colon may stand in the name of a logger, but the hierarchy of loggers is written with dots.
ENV_FILTER_TABLE = [
    ("tokio.net=info", ["tokio.net=info"]),
    ("warn,tokio.net=info", ["warning", "tokio.net=info"]),
    ("my_crate[span_a]=trace", ["my_crate[span_a]=trace"]),
    ('[span_b{name="bob"}]', ['[span_b{name="bob"}]=trace']),
    ("[{field}]=trace", ["[{field}]=trace"]),
    ('[span{field="value"}]=debug', ['[span{field="value"}]=debug']),
    ("crate1::mod1=error,crate1::mod2,crate2=debug", ["crate1::mod1=error", "crate1::mod2=trace", "crate2=debug"]),
    ("crate1::mod1=ERROR,crate2=dEbUg", ["crate1::mod1=error", "crate2=debug"]),
    ("crate2=", ["crate2=trace"]),
    ("warn,crate2=debug", ["warning", "crate2=debug"]),
    ("warn", ["warning"]),
    ("WARN", ["warning"]),
    ("wArN", ["warning"]),
    ("off", ["off"]),
    ("crate2=off", ["crate2=off"]),
    ("trace", ["trace"]),
    (
        "crate1::mod1[foo]=error,crate1::mod2[bar],crate2[baz]=debug",
        ["crate1::mod1[foo]=error", "crate1::mod2[bar]=trace", "crate2[baz]=debug"],
    ),
    (
        "[foo]=trace,[bar]=trace",
        ["[foo]=trace", "[bar]=trace"],
    ),
    ("target-name=info", ["target-name=info"]),
    ("target[span-name]=info", ["target[span-name]=info"]),
    ("target[span{a,b=1,c=true}]=info", ["target[span{a,b=1,c=true}]=info"]),
    # Every character but the two that end a span's name.
    (
        "target[!\"#$%&'()*+-./:;<=>?@^_`|~[}]=info",
        ["target[!\"#$%&'()*+-./:;<=>?@^_`|~[}]=info"],
    ),
    ("", []),
    (",", []),
    ("info,", ["info"]),
    # What only a web application needs.
    ("shop[GET /cart{user.id=42}]=debug", ["shop[GET /cart{user.id=42}]=debug"]),
    (" info , shop = debug"[:7], ["info"]),
    ("[{path=/^\\/api\\//}]=debug", ["[{path=/^\\/api\\//}]=debug"]),
    ('[{name="a,]}=b"}]=debug,x=off', ['[{name="a,]}=b"}]=debug', "x=off"]),
]


@pytest.mark.parametrize(("text", "expected"), ENV_FILTER_TABLE)
def test_filter_of_the_table_is_read_as_env_filter_does(text: str, expected: list[str]) -> None:
    assert as_text(text) == expected


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("crate1::mod1=warn=info", 17, "Too many '='"),
        ("crate1::mod1=noNumber", 13, "Unknown level 'noNumber', must be one of: off, critical, error"),
        ("shop=inof", 5, "Unknown level 'inof'"),
        ("inof", 0, "did you mean 'info'?"),
        ("warrn,shop=debug", 0, "did you mean 'warn"),
        ("3", 0, "Expected a level (off, critical"),
        ("info,shop[", 10, "Expected '{' or ']', found the end"),
        ("shop[]=info", 5, "Expected the name of a span or '{', found ']'"),
        ("shop[a]]=debug", 7, "Expected ',' or the end, found ']'"),
        ("target[]{]=info", 7, "Expected the name of a span"),
        ("[{}]=info", 2, "Expected the name of a field, found '}'"),
        ("[{a,}]=info", 4, "Expected the name of a field, found '}'"),
        ("[{a=}]=info", 4, "Expected a value, found '}'"),
        ("[{a=1]=info", 5, "Expected ',' or '}', found ']'"),
        ('[{a="b}]=info', 4, 'Expected a closing "'),
        ("[{a=/b}]=info", 4, "Expected a closing /"),
        ("[{a=/(/}]=info", 5, "Not a regular expression: missing )"),
        ("[{a=/x(/}]=info", 6, "Not a regular expression: missing )"),
        ("{a}=info", 0, "Expected a level, a logger name or '[', found '{'"),
        ("=info", 0, "Expected a level, a logger name or '[', found '='"),
        ("info shop", 5, "Expected ',' or the end, found 's'"),
        ("shop=]", 5, "Expected a level (off, critical"),
    ],
)
def test_error_points_at_the_character(text: str, position: int, problem: str) -> None:
    with pytest.raises(DirectiveError) as raised:
        parse(text)
    assert (raised.value.position, raised.value.text) == (position, text)
    assert problem in str(raised.value)
    first, shown, caret = str(raised.value).split("\n")
    assert f"at character {position + 1}:" in first
    assert shown == f"  {text}"
    assert caret == f"  {' ' * position}^"


def test_error_far_inside_a_long_filter_shows_the_place() -> None:
    text = ",".join(f"logger{number}=info" for number in range(100)) + ",x=[y"
    with pytest.raises(DirectiveError) as raised:
        parse(text)
    _, shown, caret = str(raised.value).split("\n")
    assert len(shown) <= 102
    assert shown[caret.index("^")] == "["


def test_filter_of_unreasonable_length_is_refused() -> None:
    with pytest.raises(DirectiveError, match="at most"):
        parse("a" * (MAX_FILTER + 1))
    with pytest.raises(DirectiveError, match="in a regular expression"):
        parse("[{a=/" + "b" * 300 + "/}]=info")


def test_lenient_reading_keeps_what_can_be_read() -> None:
    errors: list[DirectiveError] = []
    directives = parse_lenient("info,shop=wrong,[{a=1,b=/x,y/}]=debug,cart=debug", errors.append)
    assert [str(directive) for directive in directives] == ["info", "[{a=1,b=/x,y/}]=debug", "cart=debug"]
    (error,) = errors
    assert error.position == 10
    assert error.text[error.position :].startswith("wrong")


def test_last_of_two_for_the_same_subject_holds() -> None:
    assert as_text("info,shop=debug,warn,shop=error") == ["warning", "shop=error"]


def test_level_of_the_project_is_known() -> None:
    logging.addLevelName(25, "NOTICE")
    try:
        assert parse("shop=notice") == (Directive(25, "shop"),)
    finally:
        logging._levelToName.pop(25)
        logging._nameToLevel.pop("NOTICE")


def test_most_specific_stands_first() -> None:
    directives = most_specific_first(
        parse("info,shop=debug,shop.cart=warn,[GET]=debug,[{a}]=debug,[{a=1}]=debug,[{a,b}]=error,shop[x]=off")
    )
    assert [str(directive) for directive in directives] == [
        "shop.cart=warning",
        "shop[x]=off",
        "shop=debug",
        "[GET]=debug",
        "[{a,b}]=error",
        "[{a=1}]=debug",
        "[{a}]=debug",
        "info",
    ]


@pytest.mark.parametrize(
    ("target", "name", "covered"),
    [
        ("", "shop", True),
        ("shop", "shop", True),
        ("shop", "shop.cart", True),
        # EnvFilter compares prefixes; the hierarchy of loggers goes by dots.
        ("shop", "shopping", False),
        ("shop.cart", "shop", False),
    ],
)
def test_target_covers_its_children(target: str, name: str, covered: bool) -> None:
    assert Directive(logging.DEBUG, target).covers(name) is covered


@pytest.mark.parametrize(
    ("condition", "value", "matches"),
    [
        ("a=42", 42, True),
        ("a=42", "42", True),
        ("a=42", 42.0, True),
        ("a=42", 43, False),
        ("a=42", True, False),
        ("a=1", True, False),
        ("a=042", "042", True),
        ("a=-1.5", -1.5, True),
        ("a=1e3", 1000, True),
        ("a=nan", float("nan"), True),
        ("a=nan", 1.0, False),
        ("a=true", True, True),
        ("a=true", "True", True),
        ("a=true", 1, False),
        ("a=false", False, True),
        ("a=bob", "bob", True),
        ("a=bob", "Bob", False),
        ("a=b b", "b b", True),
        ('a="true"', "true", True),
        ('a="true"', True, False),
        ('a="say \\"x\\" \\\\"', 'say "x" \\', True),
        ("a=/^b.b$/", "bob", True),
        ("a=/o/", "bob", True),
        ("a=/x/", "bob", False),
        ("a=/a\\/b/", "a/b", True),
        (r"a=/\d{2}/", 42, True),
        ("a", None, True),
    ],
)
def test_field_condition(condition: str, value: object, matches: bool) -> None:
    (directive,) = parse("[{" + condition + "}]=debug")
    (field,) = directive.fields
    assert field.matches(value) is matches


def test_field_condition_matches_the_beginning_of_a_long_value() -> None:
    (directive,) = parse("[{a=/y/}]=debug")
    assert directive.fields[0].matches("xy") is True
    assert directive.fields[0].matches("x" * 1_000_000 + "y") is False


@pytest.mark.parametrize(
    ("span", "name", "matches"),
    [
        ("GET /cart", "GET /cart", True),
        ("GET /cart", "GET /cart/7", False),
        ("GET /cart/*", "GET /cart/7", True),
        ("*/cart", "GET /cart", True),
        ("/items/<int:pk>/", "/items/<int:pk>/", True),
        ("/a?c*", "/abc", False),
        ("/[a*", "/a", False),
    ],
)
def test_span_pattern(span: str, name: str, matches: bool) -> None:
    assert bool(Directive(logging.DEBUG, span=span).span_pattern()(name)) is matches


names = st.lists(st.text("ab_1", min_size=1, max_size=6), min_size=1, max_size=3).map(".".join)
values = st.one_of(
    st.integers().map(str),
    st.booleans().map(lambda value: str(value).lower()),
    names,
    st.text(max_size=10).map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    names.map(lambda text: f"/{text}/"),
)


@st.composite
def directives(draw: st.DrawFn) -> str:
    target = draw(names)
    span = draw(st.one_of(st.just(""), names, names.map(lambda name: f"GET /{name}/<int:pk>/")))
    fields = draw(st.lists(st.tuples(names, st.one_of(st.none(), values)), max_size=3))
    where = span
    if fields:
        where += "{" + ",".join(name if value is None else f"{name}={value}" for name, value in fields) + "}"
    level = draw(st.sampled_from(sorted(LEVELS)))
    # "level=debug" for a logger whose name is that of a level is fine, without "=" it would be the level.
    return (draw(st.sampled_from([target, ""])) if where else target) + (f"[{where}]" if where else "") + f"={level}"


# The first draw compiles tables of Unicode, which a busy machine takes its time for.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(directives(), max_size=5))
def test_filter_written_out_reads_the_same(texts: list[str]) -> None:
    once = parse(",".join(texts))
    assert parse(",".join(map(str, once))) == once


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), st.text(alphabet='ab.=,[]{}"/\\*1 -:infodebug', max_size=40)))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    errors: list[DirectiveError] = []
    for directive in parse_lenient(text, errors.append):
        assert TRACE <= directive.level <= OFF
        directive.covers("shop")
        for field in directive.fields:
            field.matches("value")
    assert all(0 <= error.position <= len(text) for error in errors)
    if errors:
        with pytest.raises(DirectiveError):
            parse(text)
    else:
        parse(text)


def test_error_in_the_documentation_is_what_is_said() -> None:
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    with pytest.raises(DirectiveError) as raised:
        parse("info,shop=inof")
    assert f"```text\n{raised.value}\n```" in text


def test_directives_in_the_documentation_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    table = text[text.index("| directives |") : text.index("Levels are")]
    found = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(found) >= 5
    for filter_text in found:
        assert parse(filter_text)

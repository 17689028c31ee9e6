r"""The grammar of the filter: that of Rust's tracing ``EnvFilter``, over the loggers of the standard library.

::

    filter    = directive *("," directive)
    directive = level                              ; for everything that no other directive names
              / target ["[" where "]"] ["=" level] ; without a level: everything
              / "[" where "]" ["=" level]
    where     = [span] ["{" field *("," field) "}"]
    field     = name ["=" value]
    value     = number / "true" / "false" / text / '"' text '"' / "/" regex "/"
    level     = "off" / "critical" / "error" / "warning" / "info" / "debug" / "trace"

https://docs.rs/tracing-subscriber/latest/tracing_subscriber/filter/struct.EnvFilter.html; where we differ and why is
told in ``docs/logs.md``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import translate
from typing import Any, NamedTuple

# Above and below every level that is in use.
OFF = 1 << 30
TRACE = 1

LEVELS = {
    "off": OFF,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
LEVEL_CHOICES = "off, critical, error, warning, info, debug, trace"

MAX_FILTER = 8192
MAX_PATTERN = 256


class DirectiveError(ValueError):
    """A filter that cannot be read.

    ``position`` counts characters of ``text`` from 0; the message shows both and says what was expected.
    """

    def __init__(self, text: str, position: int, problem: str) -> None:
        self.text = text
        self.position = position
        self.problem = problem
        shown, offset = text, position
        if len(text) > 100:
            start = max(0, position - 50)
            shown, offset = text[start : start + 100], position - start
        shown = "".join(char if char.isprintable() else "?" for char in shown)
        super().__init__(f"{problem}, at character {position + 1}:\n  {shown}\n  {' ' * offset}^")


class FieldMatch(NamedTuple):
    """A condition on one field: that it is there, or what its value is."""

    name: str
    value: bool | int | float | str | re.Pattern[str] | None = None
    literal: str = ""
    """The value as it was written."""

    def matches(self, value: Any) -> bool:
        expected = self.value
        if expected is None:
            return True
        if isinstance(expected, re.Pattern):
            return expected.search(str(value)[:MAX_MATCHED]) is not None
        if isinstance(expected, bool):
            return value is expected or str(value).lower() == self.literal
        if isinstance(expected, str):
            return str(value) == expected
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value == expected or (expected != expected and value != value)
        # Ids of users are text in most places and numbers in the minds of those who write filters.
        return str(value) == self.literal

    def __str__(self) -> str:
        return f"{self.name}={self.literal}" if self.literal else self.name


# A regular expression may take long on a long text; what a field says, it says early.
MAX_MATCHED = 1024


class Directive(NamedTuple):
    """One part of a filter."""

    level: int
    target: str = ""
    """Logger name, matching itself and its children; empty for all."""
    span: str | None = None
    """Name of the request, task or command, ``*`` standing for any characters."""
    fields: tuple[FieldMatch, ...] = ()

    @property
    def is_dynamic(self) -> bool:
        """Whether it depends on what is going on, not on the logger alone."""
        return self.span is not None or bool(self.fields)

    @property
    def specificity(self) -> tuple[int, bool, int, int]:
        """The order of ``EnvFilter``: length of the target, then span, then fields, then values."""
        return (
            len(self.target),
            self.span is not None,
            len(self.fields),
            sum(field.value is not None for field in self.fields),
        )

    def covers(self, name: str) -> bool:
        """Tell whether the target is this logger or one of its parents."""
        target = self.target
        return not target or name == target or name.startswith(f"{target}.")

    def span_pattern(self) -> Callable[[str], object]:
        assert self.span is not None
        if "*" in self.span:
            # Only the star: brackets and question marks are part of routes.
            return re.compile(translate(re.sub(r"([?\[])", r"[\1]", self.span))).match
        return self.span.__eq__

    def __str__(self) -> str:
        where = self.span or ""
        if self.fields:
            where += "{" + ",".join(map(str, self.fields)) + "}"
        subject = self.target + (f"[{where}]" if where else "")
        return f"{subject}={level_name(self.level)}" if subject else level_name(self.level)


def level_name(level: int) -> str:
    """Return the name by which directives call a level."""
    for name, value in LEVELS.items():
        if value == level:
            return name
    return logging.getLevelName(level).lower()


def level_number(word: str) -> int | None:
    """Return the number of a level, one added with ``logging.addLevelName`` included; None if there is none such."""
    word = word.lower()
    if word in LEVELS:
        return LEVELS[word]
    for name, value in logging.getLevelNamesMapping().items():
        if name.lower() == word and value > 0:
            return value
    return None


def parse(text: str) -> tuple[Directive, ...]:
    """Read a filter strictly.

    Raises `DirectiveError`, which points at the first character that cannot be understood.
    """
    if len(text) > MAX_FILTER:
        raise DirectiveError(text, MAX_FILTER, f"Expected at most {MAX_FILTER} characters")
    directives: list[Directive] = []
    reader = Reader(text)
    while True:
        reader.skip_spaces()
        if reader.ended:
            break
        if reader.take(","):
            # EnvFilter lets empty parts pass, as in "info,".
            continue
        directives.append(reader.directive())
        reader.skip_spaces()
        if not reader.ended and not reader.take(","):
            raise reader.error("',' or the end")
    return latest(directives)


def parse_lenient(text: str, report: Callable[[DirectiveError], None] | None = None) -> tuple[Directive, ...]:
    """Read what can be read of a filter; tell ``report`` what was left out, one error for each part."""
    directives: list[Directive] = []
    for start, part in parts(text[:MAX_FILTER]):
        try:
            directives.extend(parse(part))
        except DirectiveError as error:
            if report is not None:
                report(DirectiveError(text, start + error.position, error.problem))
    return latest(directives)


def latest(directives: Iterable[Directive]) -> tuple[Directive, ...]:
    """Keep the last of those that differ in nothing but their level."""
    kept: dict[object, Directive] = {}
    for directive in directives:
        key = (directive.target, directive.span, tuple(str(field) for field in directive.fields))
        kept.pop(key, None)
        kept[key] = directive
    return tuple(kept.values())


def parts(text: str) -> list[tuple[int, str]]:
    """Split at the commas that separate directives; return where each part starts, and the part."""
    found: list[tuple[int, str]] = []
    start, depth, quote = 0, 0, ""
    position = 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char == "[":
            depth += 1
        elif char == "]":
            depth = 0
        elif depth and char in '"/' and text[position - 1] == "=":
            quote = char
        elif char == "," and not depth:
            found.append((start, text[start:position]))
            start = position + 1
        position += 1
    found.append((start, text[start:]))
    return found


# Text, that each process compiles only those that its filter needs.
_target = r"[\w.\-:]+"
_word = r"[^\s,\[\]{}=]+"
_name = r"[^\s,\[\]{}=\"]+"
_span = r"[^\]{]*"
_bare = r"[^,{}\]\"]*"
_number = r"(?a:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|nan|NaN)"


class Reader:
    """A position in a text, and what may stand there."""

    __slots__ = ("position", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    @property
    def ended(self) -> bool:
        return self.position >= len(self.text)

    def skip_spaces(self) -> None:
        while not self.ended and self.text[self.position].isspace():
            self.position += 1

    def take(self, token: str) -> bool:
        if self.text.startswith(token, self.position):
            self.position += len(token)
            return True
        return False

    def match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.position)
        if found is None:
            return ""
        self.position = found.end()
        return found.group()

    def error(self, expected: str, position: int | None = None) -> DirectiveError:
        if position is None:
            position = self.position
        found = "the end" if position >= len(self.text) else repr(self.text[position])
        return DirectiveError(self.text, position, f"Expected {expected}, found {found}")

    def directive(self) -> Directive:
        start = self.position
        target = self.match(_target)
        span: str | None = None
        fields: tuple[FieldMatch, ...] = ()
        where = self.take("[")
        if where:
            span, fields = self.where()
        elif not target:
            raise self.error("a level, a logger name or '['")
        if self.take("="):
            return Directive(self.level(), target, span, fields)
        if not where:
            level = level_number(target)
            if level is not None:
                return Directive(level)
            self.refuse_misspelled(target, start)
        return Directive(TRACE, target, span, fields)

    def refuse_misspelled(self, word: str, start: int) -> None:
        # In EnvFilter "inof" turns everything on for a target of that name and nothing else: a slip that hides lines.
        likely = get_close_matches(word.lower(), LEVELS, n=1, cutoff=0.75)
        if word.isdecimal():
            raise DirectiveError(self.text, start, f"Expected a level ({LEVEL_CHOICES}) by name, found {word!r}")
        if likely:
            raise DirectiveError(
                self.text,
                start,
                f"Unknown level {word!r}, did you mean {likely[0]!r}? (For a logger of that name: {word}=trace)",
            )

    def level(self) -> int:
        start = self.position
        word = self.match(_word)
        if not word:
            if self.ended or self.text[self.position] == ",":
                return TRACE
            raise self.error(f"a level ({LEVEL_CHOICES})")
        if not self.ended and self.text[self.position] == "=":
            raise DirectiveError(self.text, self.position, "Too many '=' in a directive, expected at most one")
        level = level_number(word)
        if level is None:
            raise DirectiveError(self.text, start, f"Unknown level {word!r}, must be one of: {LEVEL_CHOICES}")
        return level

    def where(self) -> tuple[str | None, tuple[FieldMatch, ...]]:
        span = self.match(_span).strip() or None
        fields: list[FieldMatch] = []
        if span is None and not self.ended and self.text[self.position] == "]":
            raise self.error("the name of a span or '{'")
        if self.take("{"):
            while True:
                self.skip_spaces()
                fields.append(self.field())
                self.skip_spaces()
                if self.take("}"):
                    break
                if not self.take(","):
                    raise self.error("',' or '}'")
            self.skip_spaces()
        if not self.take("]"):
            raise self.error("']'" if fields else "'{' or ']'")
        return span, tuple(fields)

    def field(self) -> FieldMatch:
        name = self.match(_name)
        if not name:
            raise self.error("the name of a field")
        self.skip_spaces()
        if not self.take("="):
            return FieldMatch(name)
        self.skip_spaces()
        return self.value(name)

    def value(self, name: str) -> FieldMatch:
        start = self.position
        if self.take('"'):
            content = self.quoted('"')
            return FieldMatch(name, content, self.text[start : self.position])
        if self.take("/"):
            content = self.quoted("/")
            return FieldMatch(name, self.pattern(content, start + 1), self.text[start : self.position])
        literal = self.match(_bare).strip()
        if not literal:
            raise self.error("a value")
        if literal in ("true", "false"):
            return FieldMatch(name, literal == "true", literal)
        if re.fullmatch(_number, literal):
            number = float(literal)
            whole = literal.lstrip("+-").isdecimal() and len(literal) <= 40
            return FieldMatch(name, int(literal) if whole else number, literal)
        return FieldMatch(name, literal, literal)

    def quoted(self, end: str) -> str:
        start = self.position - 1
        characters: list[str] = []
        while not self.ended:
            char = self.text[self.position]
            self.position += 1
            if char == end:
                return "".join(characters)
            if char == "\\" and not self.ended:
                escaped = self.text[self.position]
                self.position += 1
                # In a regular expression a backslash means more than the character behind it.
                char = escaped if escaped == end or end == '"' else char + escaped
            characters.append(char)
        raise DirectiveError(self.text, start, f"Expected a closing {end} for the one")

    def pattern(self, regex: str, start: int) -> re.Pattern[str]:
        if len(regex) > MAX_PATTERN:
            raise DirectiveError(
                self.text, start + MAX_PATTERN, f"Expected at most {MAX_PATTERN} characters in a regular expression"
            )
        try:
            return re.compile(regex)
        except (re.error, OverflowError, RecursionError) as error:
            place = min(start + (getattr(error, "pos", None) or 0), len(self.text) - 1)
            raise DirectiveError(
                self.text, place, f"Not a regular expression: {getattr(error, 'msg', error)}"
            ) from None


def most_specific_first(directives: Sequence[Directive]) -> list[Directive]:
    """Sort directives so that the first that matches is the one that holds."""
    return sorted(directives, key=lambda directive: directive.specificity, reverse=True)

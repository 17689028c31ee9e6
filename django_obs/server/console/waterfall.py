"""A trace as a waterfall: its spans as a tree, each with its place on a common scale of time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from django_obs.server.console import words

if TYPE_CHECKING:
    from django_obs.server.recent import Source, Span, Trace

# What the bars are measured in; the narrowest one is still to be seen.
SCALE = 1000
NARROWEST = 3
# Rows of a page. A request with more queries is shown by its first ones, with a word on the others.
MOST_ROWS = 1000
# Of one text, in characters, and of the attributes of one span or line: a page has to be rendered, sent and read.
LONGEST = 10_000
LONGEST_NAME = 300
MOST_PAIRS = 200
# Steps to the right; what lies deeper is not indented further.
DEEPEST = 12

STATEMENT = "db.query.text"
EXCEPTION_TRACE = "exception.stacktrace"


class Event(NamedTuple):
    """Something that happened in a span."""

    name: str
    offset: str
    attributes: list[tuple[str, str]]
    stacktrace: str


class Bar(NamedTuple):
    """A row: a span, and where its bar begins and how long it is, in thousandths of the whole."""

    span_id: str
    name: str
    depth: int
    kind: str  # one of "error", "database", "cache", "server", "client", "internal"
    x: int
    width: int
    duration: str
    statement: str
    times: int  # that the same statement is executed in this trace
    facts: list[tuple[str, str]]
    attributes: list[tuple[str, str]]
    events: list[Event]


class Queries(NamedTuple):
    """What the trace did with databases."""

    number: int
    duration: str
    repeated: int  # of the statement that was executed most, if that looks like a loop


class Waterfall(NamedTuple):
    """The bars from top to bottom."""

    bars: list[Bar]
    left_out: int
    start_ns: int
    duration: str
    ticks: list[str]  # at the quarters
    queries: Queries


def waterfall(trace: Trace) -> Waterfall:
    """Lay out a trace."""
    spans = trace.spans
    start = min((span.start_ns for span in spans), default=trace.summary.start_ns)
    length = max((span.end_ns for span in spans), default=start) - start or 1
    statements = Counter(_statement(span) for span in spans)
    bars: list[Bar] = []
    for span, depth in tree(spans):
        if len(bars) == MOST_ROWS:
            break
        x = (span.start_ns - start) * SCALE // length
        width = max(NARROWEST, span.duration_ns * SCALE // length)
        statement = _statement(span)
        bars.append(
            Bar(
                span.span_id,
                text(span.name, LONGEST_NAME),
                min(depth, DEEPEST),
                kind_of(span),
                min(x, SCALE - NARROWEST),
                min(width, SCALE - min(x, SCALE - NARROWEST)),
                words.seconds(span.duration_ns / 1e9),
                statement,
                statements[statement] if statement else 0,
                _facts(span, start),
                pairs(span.attributes, without=STATEMENT),
                [
                    Event(
                        text(event.name, LONGEST_NAME),
                        f"+{words.seconds(max(0, event.time_ns - start) / 1e9)}",
                        pairs(event.attributes, without=EXCEPTION_TRACE),
                        text(event.attributes.get(EXCEPTION_TRACE, "")),
                    )
                    for event in span.events
                ],
            )
        )
    ticks = [words.seconds(length * i / 4 / 1e9) if i else "0" for i in range(5)]
    return Waterfall(bars, len(spans) - len(bars), start, words.seconds(length / 1e9), ticks, _queries(trace))


def tree(spans: tuple[Span, ...]) -> Iterator[tuple[Span, int]]:
    """Yield each span once, below its parent and with its depth, whatever nonsense the parents are."""
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in ids else "", []).append(span)
    seen: set[str] = set()
    # A ring of parents has no top: its first span stands in for one.
    for top in (*children.get("", ()), *spans):
        # Not by recursion: a trace may be as deep as its sender likes.
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id not in seen:
                seen.add(span.span_id)
                yield span, depth
                waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, ()))]


def kind_of(span: Span) -> str:
    """Say by which colour a span is known."""
    if span.status == "error":
        return "error"
    if "db.system.name" in span.attributes or "db.system" in span.attributes:
        return "database"
    if "django_obs.cache.operation" in span.attributes:
        return "cache"
    return {"server": "server", "consumer": "server", "client": "client", "producer": "client"}.get(
        span.kind, "internal"
    )


def _facts(span: Span, start: int) -> list[tuple[str, str]]:
    """Return what is known of a span beside its attributes."""
    facts = [
        ("began", f"+{words.seconds((span.start_ns - start) / 1e9)}"),
        ("kind", span.kind),
        ("process", process(span.source)),
        ("scope", text(span.scope, LONGEST_NAME)),
        ("status", text(span.status_message)),
    ]
    return [(name, value) for name, value in facts if value]


def process(source: Source) -> str:
    """Say which process sent something."""
    parts = (source.service, source.role, f"pid {source.pid}" if source.pid else "")
    return text(", ".join(filter(None, parts)), LONGEST_NAME)


def _statement(span: Span) -> str:
    return text(span.attributes.get(STATEMENT) or span.attributes.get("db.statement") or "")


def _queries(trace: Trace) -> Queries:
    found = [span for span in trace.spans if "db.system.name" in span.attributes or "db.system" in span.attributes]
    statements = Counter(filter(None, map(_statement, found)))
    most = max(statements.values(), default=0)
    seconds = sum(span.duration_ns for span in found) / 1e9
    # Three may be chance; a loop over rows has as many as rows.
    return Queries(len(found), words.seconds(seconds), most if most > 3 else 0)


def pairs(attributes: Mapping[str, Any], without: str = "", longest: int = LONGEST) -> list[tuple[str, str]]:
    """Return attributes by name, as text."""
    found = sorted(name for name in attributes if name != without)
    return [(name[:longest], text(attributes[name], longest)) for name in found[:MOST_PAIRS]]


def text(value: Any, longest: int = LONGEST) -> str:
    """Write a value as people would, so far as there is room."""
    if isinstance(value, float):
        return f"{value:.6g}"
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    more = len(written) - longest
    return written if more <= 0 else f"{written[:longest]}\N{HORIZONTAL ELLIPSIS} ({words.count(more)} more characters)"

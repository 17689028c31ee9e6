"""Traces, lines and views as rows of a table: every number in words, the bar beside it in thousandths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from django_obs.server.console import waterfall, words

if TYPE_CHECKING:
    from django_obs.server.console.tally import Tally, View
    from django_obs.server.recent import Line, TraceSummary

SCALE = 1000
UNNAMED = "(no name)"
NO_VIEW = "(no view)"
# Characters of a text in a list.
AT_A_GLANCE = 2000


class Mark(NamedTuple):
    """A word that stands out."""

    text: str
    state: str = ""  # "bad", "slow", "good"


class TraceRow(NamedTuple):
    """A trace in short."""

    trace_id: str
    time: str
    date: str
    name: str
    service: str
    who: str
    marks: list[Mark]
    state: str
    spans: str
    lines: str
    took: str
    width: int


class LineRow(NamedTuple):
    """A log line."""

    sequence: int
    time: str
    level: str
    state: str  # "error", "warning", "debug" or nothing
    logger: str
    message: str
    exception: str
    fields: list[tuple[str, str]]
    link: str
    link_text: str


class ViewRow(NamedTuple):
    """What the requests of a view have come to."""

    method: str
    route: str
    link: str
    requests: str
    errors: str
    failed: bool
    mean: str
    p95: str
    total: str
    share: str
    width: int


def traces(summaries: Iterable[TraceSummary], service: str) -> list[TraceRow]:
    """Return the rows; the bars compare them with the longest. Our own `service` goes without saying."""
    found = list(summaries)
    longest = max((summary.duration_ns for summary in found), default=0) or 1
    return [trace(summary, longest, service) for summary in found]


def trace(summary: TraceSummary, longest: int = 1, service: str = "") -> TraceRow:
    """Return the row of a trace, where the longest takes so many nanoseconds."""
    marks = []
    if summary.http_status is not None:
        failing = summary.http_status >= 500
        marks.append(Mark(str(summary.http_status), "bad" if failing else ""))
    if summary.error:
        marks.append(Mark("failed", "bad"))
    elif summary.error_spans:
        marks.append(Mark("error within", "slow"))
    if summary.slow:
        marks.append(Mark("slow", "slow"))
    if not summary.complete:
        marks.append(Mark("incomplete"))
    moment = summary.start_ns / 1e9
    return TraceRow(
        summary.trace_id,
        words.clock(moment),
        words.date(moment),
        waterfall.text(summary.name, waterfall.LONGEST_NAME) or UNNAMED,
        waterfall.text(summary.service, waterfall.LONGEST_NAME) if summary.service != service else "",
        waterfall.text(", ".join(filter(None, (summary.service, summary.role))), waterfall.LONGEST_NAME),
        marks,
        "bad" if summary.error else "slow" if summary.slow else "",
        words.count(summary.span_count),
        words.count(summary.line_count),
        words.seconds(summary.duration_ns / 1e9),
        summary.duration_ns * SCALE // longest,
    )


def lines(found: Iterable[Line], names: Mapping[str, str] | None = None) -> list[LineRow]:
    """Return the rows. With the names of a trace's spans, by id, lines lead to their span; else to their trace."""
    return [_line(line, names) for line in found]


def _line(line: Line, names: Mapping[str, str] | None) -> LineRow:
    # A list of all shows less of each than the page of a trace.
    longest = AT_A_GLANCE if names is None else waterfall.LONGEST
    if names is None:
        link, link_text = (f"/traces/{line.trace_id}", "The trace of this line") if line.trace_id else ("", "")
    else:
        name = names.get(line.span_id)
        link, link_text = (
            ("", "")
            if name is None
            else (f"#s-{line.span_id}", f"In the span {waterfall.text(name, waterfall.LONGEST_NAME)}")
        )
    fields = waterfall.pairs(line.attributes, waterfall.EXCEPTION_TRACE, longest)
    facts = (("process", waterfall.process(line.source)), ("trace_id", line.trace_id))
    fields += [(name, value) for name, value in facts if value]
    state = "error" if line.levelno >= 40 else "warning" if line.levelno >= 30 else "debug" if line.levelno < 20 else ""
    return LineRow(
        line.sequence,
        words.clock(line.time_ns / 1e9),
        waterfall.text(line.level, waterfall.LONGEST_NAME),
        state,
        waterfall.text(line.logger, waterfall.LONGEST_NAME),
        waterfall.text(line.message, longest),
        waterfall.text(line.attributes.get(waterfall.EXCEPTION_TRACE, "")),
        fields,
        link,
        link_text,
    )


def views(tallies: Mapping[View, Tally], limit: int) -> list[ViewRow]:
    """Return the rows of those that took the most time in all."""
    found = sorted(tallies.items(), key=lambda item: -item[1].seconds)[:limit]
    everything = sum(tally.seconds for tally in tallies.values()) or 1.0
    return [_view(view, tally, tally.seconds / everything) for view, tally in found]


def _view(view: View, tally: Tally, share: float) -> ViewRow:
    return ViewRow(
        view.method,
        view.route or NO_VIEW,
        # By this name the spans go.
        f"/traces?{urlencode({'q': f'{view.method} {view.route}'.strip()})}",
        words.count(tally.count),
        words.count(tally.errors),
        tally.errors > 0,
        words.seconds(tally.mean),
        words.seconds(tally.quantile(0.95)),
        words.seconds(tally.seconds),
        words.percent(share),
        round(share * SCALE),
    )

"""The pages of the console and what their forms do. Who may see them is decided before, by the admin port."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from django.template import Context, Engine

from django_obs.server.console import assets, charts, pipelines, rows, tally, waterfall, words
from django_obs.server.console.history import QUANTILES, History
from django_obs.server.console.processes import ProcessTable
from django_obs.server.response import Environ, Response, Route, answer
from django_obs.server.watch_control import AUTOMATIC_HOLDER

if TYPE_CHECKING:
    from django_obs.metrics.scraper import Page
    from django_obs.server.app import FilterControl
    from django_obs.server.recent import Line, Recent, TraceSummary

HTML = "text/html; charset=utf-8"
POLICY = (
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    # Not no-referrer: with it, browsers send the forms of our own pages from the origin "null".
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
FRESH = ("Cache-Control", "no-store")
FOR_GOOD = ("Cache-Control", "private, max-age=31536000, immutable")
FOR_NOW = ("Cache-Control", "no-cache")

# Longer than any form that a person fills in.
FORM_BYTES = 8192
# Seconds over which the figures above the charts are taken.
LATELY = 60.0
# The base of "lately" in the tables must have been there for so long; before, they show everything.
SETTLED = 30.0
VIEWS = 50
TRACES_AT_A_GLANCE = 15
NOTABLE_AT_A_GLANCE = 9
TRACES = 200
LINES = 300
LEVELS = (("0", "all"), ("10", "DEBUG"), ("20", "INFO"), ("30", "WARNING"), ("40", "ERROR"))
ORDERS = (("notable", "failed and slow first"), ("latest", "latest first"), ("longest", "longest first"))
FILTER_FOR = (("600", "10 minutes"), ("3600", "1 hour"), ("28800", "8 hours"), ("", "until it is reset"))
WATCH_FOR = (("600", "10 minutes"), ("3600", "1 hour"), ("28800", "8 hours"))


class WatchControl(Protocol):
    """Where it is read and said whether processes send what they record to this one."""

    def read(self) -> Mapping[str, Any]:
        """Return whether they are ``watched``, for how many ``seconds`` still, and by which ``holders``.

        Raises OSError.
        """

    def hold(self, seconds: float) -> object:
        """Have them send copies for so many seconds. Raises ValueError and OSError."""

    def release(self) -> object:
        """Have them send no more copies. Raises OSError."""


class Console:
    """A person's view of what runmetrics knows."""

    def __init__(
        self,
        history: History,
        processes: ProcessTable,
        recent: Recent,
        *,
        control: FilterControl | None = None,
        watch: WatchControl | None = None,
        service: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.history = history
        self.processes = processes
        self.recent = recent
        self.control = control
        self.watch = watch
        self.service = service or "django_obs"
        self._now = now
        # An engine of our own: what the project does to its templates is no business of ours, nor the reverse.
        self._engine = Engine(dirs=[str(Path(__file__).parent / "templates")], debug=False)
        self.routes: dict[str, Route] = {
            "/": {"GET": self.overview},
            "/traces": {"GET": self.traces},
            "/lines": {"GET": self.lines},
            "/history.json": {"GET": self.curves},
        }
        if control is not None:
            self.routes["/console/filter"] = {"POST": self.change_filter}
        if watch is not None:
            self.routes["/console/watch"] = {"POST": self.change_watch}

    def route(self, path: str) -> Route | None:
        """Return the methods that a path knows, None if it is none of the console's."""
        if path.startswith("/traces/"):
            return {"GET": self.trace}
        if path.startswith(assets.PREFIX):
            return {"GET": self.asset}
        return self.routes.get(path)

    # -- Pages ---------------------------------------------------------------------------------------------------------

    def overview(
        self,
        environ: Environ,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        filter_error: str = "",
        watch_error: str = "",
        form: Mapping[str, str] | None = None,
    ) -> Response:
        """Show everything at a glance."""
        try:
            page = self.history.look()
        except OSError as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"The metrics cannot be read: {error}")
        base = self.history.base()
        if base is not None and self.history.samples[-1].clock - base.clock < SETTLED:
            base = None
        pipes = pipelines.table(page, None if base is None else base.losses)
        return self._page(
            environ,
            "overview.html",
            "Overview",
            status,
            panels=self._panels(),
            traces=rows.traces(self._at_a_glance(), self.service),
            no_traces=self._no_traces(),
            filter=self._filter(filter_error, form or {}),
            watch=self._watch(watch_error, form or {}),
            pipelines=[
                {
                    "name": row.name,
                    "passed": f"{words.count(row.passed)} {row.unit}",
                    "waiting": words.count(row.waiting),
                    "losses": [
                        {"state": loss.state, "text": f"{words.count(loss.total)} {loss.what}"}
                        for loss in row.losses
                        if loss.total
                    ],
                }
                for row in pipes
            ],
            pipeline_notes=[row.note for row in pipes if row.note],
            views=self._views(page),
            processes=[
                {
                    "role": row.role,
                    "pid": row.pid,
                    "age": words.age(row.age),
                    "cpu": words.percent(row.cpu),
                    "memory": words.size(row.memory),
                    "threads": words.count(row.threads),
                    "own": row.pid == os.getpid(),
                }
                for row in self.processes.rows(page.lanes)
            ],
        )

    def traces(self, environ: Environ) -> Response:
        """List traces that match a search."""
        query = _query(environ)
        text, order = query.get("q", "").strip(), query.get("order", "")
        errors, slower = bool(query.get("errors")), _number(query.get("slower", ""))
        wanted = text.lower()

        def matches(summary: TraceSummary) -> bool:
            if errors and not summary.error:
                return False
            if slower is not None and summary.duration_ns < slower * 1e6:
                return False
            return not wanted or any(
                wanted in part.lower() for part in (summary.name, summary.service, summary.role, summary.trace_id)
            )

        order = order if order in dict(ORDERS) else ORDERS[0][0]
        if order == "longest":
            found = sorted(self.recent.traces(limit=1_000_000, matches=matches), key=lambda each: -each.duration_ns)
        elif order == "latest":
            found = self.recent.traces(limit=TRACES, matches=matches)
        else:
            found = sorted(self.recent.traces(limit=1_000_000, matches=matches), key=_dullness)
        return self._page(
            environ,
            "traces.html",
            "Traces",
            traces=rows.traces(found[:TRACES], self.service),
            no_traces=f"None of the traces held matches. {self._no_traces()}" if query else self._no_traces(),
            search={
                "q": text,
                "slower": query.get("slower", "") if slower is not None else "",
                "errors": errors,
                "orders": _choices(ORDERS, order),
            },
            held=self._held(),
        )

    def trace(self, environ: Environ) -> Response:
        """Show one trace: its spans as a waterfall, its lines beside it."""
        trace_id = environ["PATH_INFO"].removeprefix("/traces/")
        trace = self.recent.trace(trace_id)
        if trace is None:
            return self._page(
                environ,
                "missing.html",
                "No such trace",
                HTTPStatus.NOT_FOUND,
                reason="It has not been sent here, or has made room for later ones. "
                "What is seen here are the last few thousand, from the time while somebody watches.",
            )
        laid = waterfall.waterfall(trace)
        queries = laid.queries
        summary = f"{words.count(len(trace.spans))} in {laid.duration}"
        if queries.number:
            noun = "query" if queries.number == 1 else "queries"
            summary += f"; {words.count(queries.number)} {noun}, {queries.duration}"
        notes = []
        if queries.repeated:
            text = f"One statement was executed {queries.repeated} times: perhaps a query per row."
            notes.append({"state": "warn", "text": text})
        if trace.summary.dropped_spans:
            text = f"{words.count(trace.summary.dropped_spans)} spans of this trace were too many to be held."
            notes.append({"state": "warn", "text": text})
        if trace.spans and not trace.summary.complete:
            text = "The root of this trace has not come in: it runs still, or was sent elsewhere."
            notes.append({"state": "", "text": text})
        names = {span.span_id: span.name for span in trace.spans}
        row = rows.trace(trace.summary)
        return self._page(
            environ,
            "trace.html",
            row.name,
            trace=row,
            notes=notes,
            summary=summary,
            bars=laid.bars,
            ticks=laid.ticks,
            left_out=words.count(laid.left_out) if laid.left_out else "",
            lines=rows.lines(trace.lines[:LINES], names),
            lines_in_all=words.count(len(trace.lines)),
            more_lines=words.count(len(trace.lines) - LINES) if len(trace.lines) > LINES else "",
            no_lines="No line of this trace has come in. Its level may be filtered.",
        )

    def lines(self, environ: Environ) -> Response:
        """List lines that match a search."""
        query = _query(environ)
        text, level = query.get("q", "").strip(), query.get("level", "")
        level = level if level in dict(LEVELS) else "0"
        wanted, least = text.lower(), int(level)

        def matches(line: Line) -> bool:
            if line.levelno < least:
                return False
            return not wanted or any(wanted in part.lower() for part in (line.message, line.logger, line.trace_id))

        # They come in batches, of one process after the other.
        found = sorted(self.recent.lines(limit=LINES, matches=matches), key=lambda line: -line.time_ns)
        return self._page(
            environ,
            "lines.html",
            "Lines",
            lines=rows.lines(found),
            no_lines=f"None of the lines held matches. {self._no_traces()}" if query else self._no_traces(),
            search={"q": text, "levels": _choices(LEVELS, level)},
            held=self._held(),
        )

    def curves(self, environ: Environ) -> Response:
        """Give the curves of the last minutes, for the charts."""
        try:
            self.history.look()
        except OSError as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"The metrics cannot be read: {error}")
        body = json.dumps(self.history.series(), separators=(",", ":")).encode()
        return Response(body, content_type="application/json", headers=[*POLICY, FRESH])

    def asset(self, environ: Environ) -> Response:
        """Serve a file that the pages need."""
        name = environ["PATH_INFO"].removeprefix(assets.PREFIX)
        asset = assets.assets().get(name)
        if asset is None:
            return answer(HTTPStatus.NOT_FOUND, "There is no such file.")
        etag = ("ETag", f'"{asset.version}"')
        caching = FOR_GOOD if _query(environ).get("v") == asset.version else FOR_NOW
        if environ.get("HTTP_IF_NONE_MATCH") == etag[1]:
            return Response(b"", HTTPStatus.NOT_MODIFIED, asset.content_type, [*POLICY, caching, etag])
        return Response(asset.body, content_type=asset.content_type, headers=[*POLICY, caching, etag])

    # -- Forms ---------------------------------------------------------------------------------------------------------

    def change_filter(self, environ: Environ) -> Response:
        """Set the log filter of all processes, or go back to the one of the settings."""
        assert self.control is not None
        form: Mapping[str, str] = {}
        try:
            form = _form(environ)
            if form.get("action") == "clear":
                self.control.clear()
            else:
                directives = form.get("filter", "").strip()
                if not directives:
                    raise ValueError("There are no directives; Reset goes back to those of the settings.")
                self.control.write(directives, _duration(form))
        except (ValueError, OSError) as error:
            return self.overview(environ, status=_status(error), filter_error=str(error), form=form)
        return _see("/#filter")

    def change_watch(self, environ: Environ) -> Response:
        """Have the processes send what they record to this one, or no longer."""
        assert self.watch is not None
        form: Mapping[str, str] = {}
        try:
            form = _form(environ)
            if form.get("action") == "clear":
                self.watch.release()
            else:
                self.watch.hold(_duration(form) or float(WATCH_FOR[0][0]))
        except (ValueError, OSError) as error:
            return self.overview(environ, status=_status(error), watch_error=str(error), form=form)
        return _see("/#watch")

    # -- Parts ---------------------------------------------------------------------------------------------------------

    def _page(
        self, environ: Environ, template: str, title: str, status: HTTPStatus = HTTPStatus.OK, /, **content: Any
    ) -> Response:
        path = environ.get("PATH_INFO") or "/"
        places = [("/", "Overview"), ("/traces", "Traces"), ("/lines", "Lines"), ("/metrics", "Metrics")]
        context = {
            "page_title": title,
            "service": self.service,
            "moment": words.date(self._now()).removesuffix(" UTC"),
            "nav": [{"path": to, "name": name, "here": path == to} for to, name in places],
            "assets": {
                "style": assets.url("console.css"),
                "script": assets.url("console.js"),
                "uplot": assets.url("vendor/uplot/uPlot.iife.min.js"),
                "uplot_style": assets.url("vendor/uplot/uPlot.min.css"),
                "icon": assets.url("icon.svg"),
            },
            **content,
        }
        # What is shown is written out already; the project's thousands separators have no place in a bar's width.
        text = self._engine.get_template(template).render(Context(context, use_l10n=False, use_tz=False))
        return Response(text.encode("utf-8", "replace"), status, HTML, [*POLICY, FRESH])

    def _panels(self) -> list[dict[str, Any]]:
        latest = self.history.latest(LATELY)
        requests = tally.NONE if latest is None else latest.requests
        rate = None if latest is None else requests.count / latest.seconds
        share = requests.error_share
        series = self.history.series()
        quantiles = {name: requests.quantile(q) for name, q in QUANTILES.items()}
        failing = "bad" if requests.errors else ""
        return [
            {
                "key": "rate",
                "title": "Requests",
                "figures": [{"value": words.rate(rate), "name": "a second"}],
                "lines": charts.draw(series["time"], {"rate": series["rate"]}),
            },
            {
                "key": "errors",
                "title": "Errors",
                "figures": [
                    {"value": words.percent(share), "name": "of the requests", "state": failing},
                    {"value": words.count(requests.errors), "name": "in the last minute"},
                ],
                "lines": charts.draw(series["time"], {"errors": series["errors"]}, least=0.01),
            },
            {
                "key": "latency",
                "title": "Latency",
                "figures": [
                    {"value": words.seconds(value), "name": name, "key": name} for name, value in quantiles.items()
                ],
                "lines": charts.draw(series["time"], {name: series[name] for name in quantiles}),
            },
        ]

    def _at_a_glance(self) -> list[TraceSummary]:
        notable = self.recent.traces(limit=NOTABLE_AT_A_GLANCE, matches=lambda each: each.error or each.slow)
        others = self.recent.traces(
            limit=TRACES_AT_A_GLANCE - len(notable), matches=lambda each: not (each.error or each.slow)
        )
        return [*sorted(notable, key=_dullness), *others]

    def _filter(self, error: str, form: Mapping[str, str]) -> dict[str, Any] | None:
        if self.control is None:
            return None
        try:
            state = self.control.read()
        except OSError as problem:
            state, error = {"filter": words.NOTHING, "source": "unknown", "seconds": None}, error or str(problem)
        left = state["seconds"]
        return {
            "text": state["filter"],
            "source": f"from the {state['source']}" if state["source"] == "settings" else f"by {state['source']}",
            "left": words.age(left) if isinstance(left, int | float) else "",
            "input": form.get("filter", ""),
            "choices": _choices(FILTER_FOR, form.get("seconds", FILTER_FOR[0][0])),
            "error": error,
        }

    def _watch(self, error: str, form: Mapping[str, str]) -> dict[str, Any] | None:
        if self.watch is None:
            return None
        try:
            state = self.watch.read()
        except OSError as problem:
            state, error = {"watched": False, "seconds": None}, error or str(problem)
        left = state.get("seconds")
        # It is renewed before it ends, which is no time to tell anybody.
        automatic = state.get("holders") == [AUTOMATIC_HOLDER]
        return {
            "on": state["watched"],
            "left": words.age(left) if isinstance(left, int | float) and not automatic else "",
            "automatic": automatic,
            "text": self._held(),
            "choices": _choices(WATCH_FOR, form.get("seconds", WATCH_FOR[0][0])),
            "error": error,
        }

    def _views(self, page: Page) -> dict[str, Any]:
        now, base = tally.by_view(page), self.history.base()
        over = "since the counts began"
        tallies = now
        if base is not None and base.views is not None:
            seconds = self.history.samples[-1].clock - base.clock
            if seconds >= SETTLED:
                over = f"in the last {words.age(seconds)}"
                tallies = {view: found.since(base.views.get(view)) for view, found in now.items()}
        tallies = {view: found for view, found in tallies.items() if found.count}
        left_out = len(tallies) - VIEWS
        return {
            "rows": rows.views(tallies, VIEWS),
            "over": over,
            "left_out": f"{words.count(left_out)} more took less time." if left_out > 0 else "",
        }

    def _no_traces(self) -> str:
        if not self._is_watched():
            return "Nobody watches, so the processes send nothing here. Watch, on the overview, has them send copies."
        return "Nothing has come in yet. Each request is seen here a moment after it is finished."

    def _is_watched(self) -> bool:
        if self.watch is None:
            return True
        try:
            return bool(self.watch.read()["watched"])
        except OSError:
            return False

    def _held(self) -> str:
        held = self.recent.stats()
        return (
            f"{words.count(held['traces'])} traces and {words.count(held['lines'])} lines held, "
            f"{words.size(held['bytes'])}; the oldest make room."
        )


def _dullness(summary: TraceSummary) -> tuple[bool, bool, int]:
    """Sort what failed before what was slow, that before the rest, and each by time, the latest first."""
    return not summary.error, not summary.slow, -summary.start_ns


def _choices(choices: tuple[tuple[str, str], ...], chosen: str) -> list[dict[str, Any]]:
    return [{"value": value, "name": name, "chosen": value == chosen} for value, name in choices]


def _query(environ: Environ) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # "not >= 0" catches NaN as well.
    return value if value >= 0 else None


def _form(environ: Environ) -> dict[str, str]:
    """Read a form. Raises ValueError."""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ValueError("A form of the console is expected.")
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > FORM_BYTES:
        raise ValueError(f"At most {FORM_BYTES} bytes, please.")
    body = environ["wsgi.input"].read(length).decode("utf-8")
    return {name: values[-1] for name, values in parse_qs(body, keep_blank_values=True).items()}


def _duration(form: Mapping[str, str]) -> float | None:
    """Return the seconds that were chosen, None for good. Raises ValueError."""
    text = form.get("seconds", "")
    if not text:
        return None
    seconds = _number(text)
    if seconds is None or not 0 < seconds < float("inf"):
        raise ValueError("seconds must be a positive number")
    return seconds


def _status(error: Exception) -> HTTPStatus:
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, OSError) else HTTPStatus.BAD_REQUEST


def _see(place: str) -> Response:
    # After a change, so that a reload does not repeat it.
    return Response(b"", HTTPStatus.SEE_OTHER, headers=[("Location", place), *POLICY, FRESH])

"""``manage.py obs tail``: lines and finished requests of all processes in one terminal, as they come."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from django.core.management.base import CommandError

from .durations import seconds_of
from .port import HINT, Port, Unreachable
from .rows import printable

HELP = "follow lines and finished requests of all processes, live"

# Seconds that the processes are watched from each time on, and between two such times: it ends by itself soon after.
HOLD, RENEWAL = 30.0, 10.0
# Seconds of a poll; so that Ctrl-C leaves no thread of the port waiting for long.
WAIT = 8.0
# Seconds between two polls, as otherwise a busy site would have as many polls as requests.
BREATH = 0.1
# Seconds between two attempts to reach a port that has gone.
PAUSE = 1.0
# Seconds that the span of a finished request waits for its access line.
GRACE = 1.0
# Requests of which it is known that they were shown.
REMEMBERED = 10_000
# What a shell says of a program that was ended by SIGINT, and by SIGPIPE.
INTERRUPTED, PIPE_BROKEN = 130, 141


def slowness_of(text: str) -> float:
    """Return the seconds that ``500ms`` or ``2s`` are. Raises ArgumentTypeError."""
    number = text.removesuffix("ms")
    if number == text:
        return seconds_of(text)
    if not number.replace(".", "", 1).isdecimal() or not number.isascii():
        raise ArgumentTypeError(f"{text!r} is no duration, expected such as 500ms or 2s")
    return float(number) / 1000


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what to show, how, and from where."""
    parser.add_argument(
        "directives", nargs="?", default="", metavar="DIRECTIVES", help="as those of obs filter: info,shop=debug"
    )
    parser.add_argument("--trace", default="", metavar="ID", help="only this trace; the first digits of its id will do")
    parser.add_argument("--errors", action="store_true", help="only what failed")
    parser.add_argument(
        "--slow",
        type=slowness_of,
        metavar="DURATION",
        help="only what took so long, such as 500ms; or failed, with --errors",
    )
    parser.add_argument("--last", type=int, default=0, metavar="N", help="begin with the last N that there are already")
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON object a line, for pipes")
    parser.add_argument("--url", help="the admin port, if it is not the one that runs here for this project")


def run(
    out: Any,
    *,
    directives: str,
    trace: str,
    errors: bool,
    slow: float | None,
    last: int,
    as_json: bool,
    url: str | None,
    no_color: bool = False,
    force_color: bool = False,
    **options: Any,
) -> None:
    """Show what comes until it is interrupted, or nobody reads."""
    query = {"filter": directives, "trace": trace, "errors": "1" if errors else "", "last": str(max(0, last))}
    if slow is not None:
        query["slow"] = str(slow)
    colours = force_color or (_is_terminal(out) and not no_color and not os.environ.get("NO_COLOR"))
    tail = Tail(lambda: Port.find(url), query, line_of if as_json else Screen(colours=colours).line_of)
    try:
        while True:
            for line in tail.lines():
                out.write(line)
            out.flush()
            time.sleep(BREATH)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # What is left in the buffer would be written at the exit once more.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_BROKEN)
    finally:
        tail.close()


class Tail:
    """What the port hands out, as lines; it comes back to a port that was started anew."""

    def __init__(
        self, find: Callable[[], Port], query: Mapping[str, str], line_of: Callable[[Mapping[str, Any]], str]
    ) -> None:
        self.holder = f"tail-{os.getpid()}"
        self._find = find
        self._query = {name: value for name, value in query.items() if value}
        self._line_of = line_of
        self._port: Port | None = None
        self._cursor: int | None = None
        self._reached = False
        self._renew_at = 0.0
        self._shown: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._held: dict[tuple[str, str], tuple[float, Mapping[str, Any]]] = {}
        self._said = ""
        self._waiting = False

    def lines(self) -> list[str]:
        """Wait for a while and return what came. Raises CommandError if there is nothing to wait for."""
        items = self._poll()
        now = time.monotonic()
        shown = []
        for item in items:
            key = (item["trace_id"], item["span_id"])
            if not is_end(item) or not item["span_id"]:
                shown.append(item)
            elif key not in self._shown:
                if item["type"] == "finished":
                    # The span comes first, and the access line tells more.
                    self._held.setdefault(key, (now + GRACE, item))
                else:
                    self._held.pop(key, None)
                    self._remember(key)
                    shown.append(item)
        for key, (until, item) in list(self._held.items()):
            if now >= until:
                del self._held[key]
                self._remember(key)
                shown.append(item)
        return [self._line_of(item) for item in shown]

    def _poll(self) -> list[Mapping[str, Any]]:
        try:
            if self._port is None:
                self._port = self._find()
            self._renew(self._port)
            self._reached = True
            query = dict(self._query)
            if self._cursor is not None:
                query |= {"cursor": str(self._cursor), "wait": str(GRACE if self._held else WAIT)}
            news = self._port.ask("GET", "/tail", timeout=WAIT + 20, **query)
        except Unreachable as error:
            if not self._reached:
                raise CommandError(f"The admin port does not answer at {error}. {HINT}.") from None
            if not self._waiting:
                self._waiting = True
                self._say(f"The admin port does not answer at {error}; waiting for it.")
            time.sleep(PAUSE)
            # It may come back at another port, with another token.
            self._renew_at = 0.0
            with suppress(CommandError):
                self._port = self._find()
            return []
        self._waiting = False
        self._cursor = int(news["cursor"])
        if news["missed"]:
            self._say(f"{news['missed']} lines or requests came too fast to be kept for this tail.")
        return list(news["items"])

    def _renew(self, port: Port) -> None:
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + RENEWAL
        try:
            port.ask("PUT", "/watch", seconds=str(HOLD), holder=self.holder)
        except CommandError as error:
            self._say(f"The processes of the project send nothing: {error}")

    def _remember(self, key: tuple[str, str]) -> None:
        """Know that the end of this request was shown."""
        self._shown[key] = None
        if len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            print(printable(message), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Let the processes be watched no longer for us. Never raises."""
        if self._port is not None:
            with suppress(Unreachable, CommandError):
                self._port.ask("DELETE", "/watch", timeout=2.0, holder=self.holder)


def is_end(item: Mapping[str, Any]) -> bool:
    """Tell whether it says that a request, a task or a command is done."""
    return bool(item["type"] == "finished" or item["logger"] == "django_obs.access")


def line_of(item: Mapping[str, Any]) -> str:
    """Return an item as JSON."""
    return json.dumps(item, default=str)


class Screen:
    """Items as lines for people."""

    def __init__(self, *, colours: bool) -> None:
        # Here and not above: `manage.py help` imports every command.
        from django_obs.logs.entry import Entry, Failure
        from django_obs.logs.formatters import ConsoleFormatter

        self._entry, self._failure = Entry, Failure
        self._formatter = ConsoleFormatter(colours=colours)

    def line_of(self, item: Mapping[str, Any]) -> str:
        """Return a line as the console has it, with the process that it comes from."""
        fields = dict(item["fields"])
        found = {name: fields.pop(f"exception.{name}", None) for name in ("type", "message", "stacktrace")}
        failure = None
        if found["stacktrace"] or found["type"]:
            failure = self._failure(*(str(value or "") for value in found.values()))
        if item["type"] == "finished":
            # Of a span the attributes are many, and at hand in the console.
            fields = {"kind": item["kind"], "duration_ms": round(item["duration_ms"], 3)}
            if item["http_status"] is not None:
                fields["status"] = item["http_status"]
            levelno, level, logger = (40, "ERROR", "finished") if item["error"] else (20, "INFO", "finished")
            message = item["name"]
        else:
            levelno, level, logger, message = item["levelno"], item["level"], item["logger"], item["message"]
        fields["process"] = f"{item['role'] or item['service']}:{item['pid'] or '?'}"
        entry = self._entry(
            item["time_ns"] / 1e9,
            levelno,
            # The formatter escapes what commands a terminal, not what begins a line that nobody has logged.
            printable(level),
            printable(logger),
            message,
            item["trace_id"],
            item["span_id"],
            str(fields.pop("request_id", "")),
            {printable(name): value for name, value in fields.items()},
            failure,
            None,
        )
        return self._formatter.line(entry).decode().rstrip("\n")


def _is_terminal(out: Any) -> bool:
    try:
        return bool(out.isatty())
    except (AttributeError, ValueError):
        return False

"""One entry, one line: JSON for machines, columns and colours for people."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring as quoted
from typing import Any, TypeAlias

import orjson
from pythonjsonlogger.core import LogData
from pythonjsonlogger.orjson import OrjsonFormatter, orjson_default

from django_obs.context import Scope
from django_obs.logs.console import ACCESS
from django_obs.logs.entry import SCOPE, AccessStamp, Entry, Failure, Stamp, Stamper, access_message
from django_obs.logs.redaction import Redaction
from django_obs.logs.values import MAX_TEXT, Plainer, clean

_LINE = orjson.OPT_APPEND_NEWLINE
# Access lines of which the shared parts are kept, and characters that their messages may have.
REMEMBERED = 1024
REMEMBERED_LENGTH = 256
AccessKey: TypeAlias = tuple[str, str | None, str, int]  # method, route, path, status
_NO_REDACTION = Redaction()


class Clock:
    """Writes seconds since the epoch as ISO 8601 in UTC with microseconds: ``2026-01-31T12:00:00.000001Z``."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, seconds: float) -> str:
        try:
            second = int(seconds)
            microseconds = int((seconds - second) * 1e6 + 0.5)
            if not 0 <= microseconds < 1_000_000:  # before the epoch, or all but the next second
                second, microseconds = divmod(int(seconds * 1e6 + 0.5), 1_000_000)
            if second != self._second:
                self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
                self._second = second
        except (OverflowError, OSError, ValueError):
            # A clock that shows no time at all.
            return "1970-01-01T00:00:00.000000Z"
        # Not "06d", which takes five times as long.
        return f"{self._text}{str(1_000_000 + microseconds)[1:]}Z"


class JSONFormatter(OrjsonFormatter):
    """One JSON object a line.

    With ``service``, the layout of django_obs (docs/logs.md); without, exactly that of python-json-logger. All keywords
    of python-json-logger's formatters work in both. Any record comes out as one line of valid JSON.
    """

    def __init__(
        self,
        *args: Any,
        service: str | None = None,
        stamper: Stamper | None = None,
        json_default: Callable[[Any], Any] | None = orjson_default,
        **keywords: Any,
    ) -> None:
        super().__init__(*args, json_default=json_default, **keywords)
        self.service = service
        self.stamper = stamper or Stamper()
        self._clock = Clock()
        # What the layout does not do on its fast path.
        self._plain_layout = not (
            self.rename_fields or self.static_fields or self.defaults or self.json_indent or self.prefix
        )
        self._additions = {**self.defaults, **self.static_fields}
        self._knows_access = bool(self._plain_layout and service and not self.stamper.masks_access)
        self._access: dict[AccessKey, tuple[str, str]] = {}
        self._digits = [""] * 1000  # what stands behind the point for so many thousandths

    def format(self, record: logging.LogRecord) -> str:
        if self.service is None:
            return str(super().format(record))
        return self.line(self.stamper.entry(self.stamper.stamp(record))).decode().rstrip("\n")

    def stamped(self, stamp: Stamp) -> bytes:
        """Return the line of what was queued."""
        if type(stamp[SCOPE]) is Scope and self._knows_access:
            try:
                line = self._access_line(stamp)
            except (TypeError, ValueError):
                line = b""  # lone surrogates, or too long
            if line:
                return line
        return self.line(self.stamper.entry(stamp))

    def _access_line(self, stamp: AccessStamp) -> bytes:
        """Return the usual access line as `line` would write it, empty if there is more to say than usual.

        There is one of each request. What it shares with others is kept, and the rest are numbers and ids: written
        into a text they take a third of the time of an entry, its dicts and their encoding.
        """
        created, level, scope, queries, query_ns, hits, misses, bound, failure = stamp
        trace_id, span_id = scope.ids or (scope.trace_id, "")
        request_id, size, client = scope.request_id, scope.size, scope.client
        if bound or failure or not request_id or bool(trace_id) != bool(span_id):
            return b""
        if size < 0 or not client or scope.queue_ns is not None or scope.user_id is not None:
            return b""
        shared = (scope.method, scope.route, scope.path, scope.status)
        what, where = self._access.get(shared) or self._remember_access(shared, level, access_message(scope))
        trace = f'"trace_id":"{trace_id}","span_id":"{span_id}",' if span_id else ""
        asked = f'"{request_id}"' if request_id == trace_id else quoted(request_id)
        # A float would take three times as long as the digits before and behind the point.
        ms, us = divmod((scope.ended - scope.started) // 1000, 1000)
        db_ms, db_us = divmod(query_ns // 1000, 1000) if query_ns else (0, 0)
        digits = self._digits
        return (
            f'{{"timestamp":"{self._clock.text(created)}",{what},{trace}"request_id":{asked},{where},'
            f'"duration_ms":{ms}.{digits[us] or self._remember_digits(us)},"response_bytes":{size},'
            f'"db_queries":{queries},"db_ms":{db_ms}.{digits[db_us] or self._remember_digits(db_us)},'
            f'"cache_hits":{hits},"cache_misses":{misses},"client":{quoted(client)}}}\n'
        ).encode()

    def _remember_digits(self, thousandths: int) -> str:
        digits = self._digits[thousandths] = f"{thousandths:03d}".rstrip("0") or "0"
        return digits

    def _remember_access(self, shared: AccessKey, level: int, message: str) -> tuple[str, str]:
        method, route, path, status = shared
        if len(message) > MAX_TEXT:
            raise ValueError("too long")
        what = {"level": logging.getLevelName(level), "logger": ACCESS, "message": message}
        where = {"service": self.service, "method": method, "route": route, "path": path, "status": status}
        parts = orjson.dumps(what)[1:-1].decode(), orjson.dumps(where)[1:-1].decode()
        # Clients choose methods and paths, which the message has both: what is full is emptied.
        if len(message) <= REMEMBERED_LENGTH:
            if len(self._access) >= REMEMBERED:
                self._access.clear()
            self._access[shared] = parts
        return parts

    def line(self, entry: Entry) -> bytes:
        (created, _, level, logger, message, trace_id, span_id, request_id, fields, failure, stack) = entry
        content: dict[str, Any]
        if span_id and request_id and self.service:
            content = {
                "timestamp": self._clock.text(created),
                "level": level,
                "logger": logger,
                "message": message,
                "trace_id": trace_id,
                "span_id": span_id,
                "request_id": request_id,
                "service": self.service,
            }
        else:
            content = {"timestamp": self._clock.text(created), "level": level, "logger": logger, "message": message}
            if trace_id:
                content["trace_id"] = trace_id
                if span_id:
                    content["span_id"] = span_id
            if request_id:
                content["request_id"] = request_id
            if self.service:
                content["service"] = self.service
        if fields and failure is None and stack is None and self._plain_layout:
            try:
                # No name is in both, so one object goes on where the other ends: copying it would take longer.
                return b"%b,%b" % (orjson.dumps(content)[:-1], orjson.dumps(fields, option=_LINE)[1:])
            except (TypeError, RecursionError):
                pass
        if fields is not None:
            content.update(fields)
        if failure is not None:
            content["exception"] = failure._asdict()
        if stack is not None:
            content["stack"] = stack
        if not self._plain_layout:
            return self._custom_line(content)
        try:
            return orjson.dumps(content, option=_LINE)
        except (TypeError, RecursionError):
            return orjson.dumps(Plainer(_NO_REDACTION).mapping(content.items()), option=_LINE)

    def _custom_line(self, content: dict[str, Any]) -> bytes:
        for name, value in self._additions.items():
            content.setdefault(name, value)
        if self.rename_fields:
            content = {self.rename_fields.get(name, name): value for name, value in content.items()}
        if self.rename_fields_keep_missing:
            for name in self.rename_fields.values():
                content.setdefault(name, None)
        return self.serialize_log_record(content).encode() + b"\n"

    def jsonify_log_record(self, log_data: LogData) -> str:
        try:
            return str(super().jsonify_log_record(log_data))
        except (TypeError, RecursionError):
            # Values that the encoder refuses: circular ones, numbers beyond 64 bits, lone surrogates, keys of any kind.
            plain = Plainer(_NO_REDACTION).mapping(log_data.items())
            return str(super().jsonify_log_record(plain))

    def formatException(self, ei: Any) -> Any:
        try:
            return super().formatException(ei)
        except Exception as error:
            return f"<traceback not formatted: {type(error).__name__}>"


# -- For people --------------------------------------------------------------------------------------------------------

_control = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
RESET, BOLD, DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
COLOURS = (
    (logging.CRITICAL, "\x1b[1;41;97m"),
    (logging.ERROR, "\x1b[31m"),
    (logging.WARNING, "\x1b[33m"),
    (logging.INFO, "\x1b[32m"),
)
DEBUG_COLOUR = "\x1b[36m"
# Characters that most names of loggers and messages need, so that what follows stands in columns.
LOGGER_WIDTH = 20
MESSAGE_WIDTH = 40


class ConsoleFormatter(logging.Formatter):
    """One line for people: time, level, logger, message, fields; a traceback below."""

    def __init__(self, *, colours: bool = False, stamper: Stamper | None = None) -> None:
        super().__init__()
        self.colours = colours
        self.stamper = stamper or Stamper()

    def format(self, record: logging.LogRecord) -> str:
        return self.line(self.stamper.entry(self.stamper.stamp(record))).decode().rstrip("\n")

    def stamped(self, stamp: Stamp) -> bytes:
        return self.line(self.stamper.entry(stamp))

    def line(self, entry: Entry) -> bytes:
        paint = self._paint if self.colours else lambda text, colour: text
        colour = next((colour for level, colour in COLOURS if entry.levelno >= level), DEBUG_COLOUR)
        try:
            clock = time.strftime("%H:%M:%S", time.localtime(entry.created))
            clock += f".{int(entry.created % 1 * 1000):03d}"
        except (OverflowError, OSError, ValueError):
            clock = "--:--:--.---"
        message = shown(entry.message).replace("\n", "\n    ")
        named = dict(entry.fields or {})
        if entry.trace_id:
            named["trace_id"] = entry.trace_id
        if entry.request_id and entry.request_id != entry.trace_id:
            named["request_id"] = entry.request_id
        fields = " ".join(f"{paint(shown(str(name)), DIM)}={shown(value_text(value))}" for name, value in named.items())
        if fields:
            message = message.ljust(MESSAGE_WIDTH)
        line = (
            f"{paint(clock, DIM)} "
            f"{paint(entry.levelname[:8].ljust(8), colour)} "
            f"{paint(shown(entry.logger).ljust(LOGGER_WIDTH), DIM)} "
            f"{paint(message, BOLD)}{' ' + fields if fields else ''}"
        ).rstrip()
        parts = [line]
        if entry.failure is not None:
            parts.append(indented(self._stack(entry.failure, paint)))
        if entry.stack is not None:
            parts.append(indented(shown(entry.stack)))
        return ("\n".join(parts) + "\n").encode(errors="backslashreplace")

    def _stack(self, failure: Failure, paint: Callable[[str, str], str]) -> str:
        lines = shown(failure.stack).split("\n")
        # What happened is what one looks for first.
        return "\n".join(
            paint(line, COLOURS[1][1]) if line and not line.startswith((" ", "Traceback")) else line for line in lines
        )

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{RESET}"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in text.split("\n"))


def shown(text: str) -> str:
    """Return the text with control characters escaped: a line that is logged must not command the terminal."""
    return _control.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def value_text(value: Any) -> str:
    if isinstance(value, str):
        return value if value and not re.search(r'[\s="]', value) else orjson.dumps(clean(value)).decode()
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, RecursionError):
        return clean(str(value))

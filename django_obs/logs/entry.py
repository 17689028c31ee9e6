"""What waits in the queue: the content of one log record, detached from the record and from the thread it came from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TypeAlias, cast

from django_obs.context import Scope, current, unscoped
from django_obs.logs.console import ACCESS
from django_obs.logs.redaction import MASK, Redaction
from django_obs.logs.values import ATOMS, MAX_TEXT, clean, key_of, plain_fields, text_of
from django_obs.stack import stack_of

_BLANK = logging.LogRecord("", 0, "", 0, "", (), None).__dict__
STANDARD = frozenset(_BLANK) | {"asctime", "message", "taskName"}
# A record's own attributes stand first in its __dict__: what the caller added is what follows the last of them.
_LAST = next(reversed(_BLANK))
_OWN = len(_BLANK)

# Keys of a line that are ours; a field of the caller of that name gets an underscore behind it.
RESERVED = frozenset(
    {
        "timestamp",
        "level",
        "logger",
        "message",
        "trace_id",
        "span_id",
        "request_id",
        "service",
        "exception",
        "stack",
    }
)

MAX_STACK = 64 * 1024
# Names of fields come from code; a project that makes them up starts anew now and then.
_REMEMBERED = 4096


class Failure(NamedTuple):
    """An exception as text."""

    type: str
    message: str
    stack: str


class Entry(NamedTuple):
    """One log record, merged, stamped and redacted; nothing but text, numbers, dates, and dicts and lists of these."""

    created: float
    """Seconds since the epoch."""
    levelno: int
    levelname: str
    logger: str
    message: str
    trace_id: str
    """32 hexadecimal digits, or empty."""
    span_id: str
    """16 hexadecimal digits, or empty."""
    request_id: str
    fields: dict[str, Any] | None
    """Bound context, then the record's own extra fields; secrets are masked, and no name is one of `RESERVED`."""
    failure: Failure | None
    stack: str | None
    """The stack of the caller, of ``stack_info=True``."""


# What is queued: an entry before the parts that may as well be done in the listener. A plain tuple, as a named one
# costs 400 ns more, and of atoms for the most part, so that the garbage collector need not look at it.
RecordStamp: TypeAlias = tuple[
    float,  # created
    int,  # levelno
    str,  # levelname
    str,  # logger
    str,  # message
    tuple[str, str] | None,  # trace id and span id
    str,  # request id
    dict[Any, Any] | None,  # bound context
    dict[Any, Any] | None,  # extra fields, the last first
    Failure | None,
    str | None,  # stack
]
# An access line is for the most part what the scope of its request says. That is over, and changes no more, but for
# what work that it has started in the background goes on to count and to bind.
AccessStamp: TypeAlias = tuple[
    float,  # created
    int,  # levelno
    Scope,
    int,  # queries
    int,  # nanoseconds that they took
    int,  # cache hits
    int,  # cache misses
    dict[Any, Any] | None,  # bound context
    Failure | None,
]
Stamp: TypeAlias = RecordStamp | AccessStamp
LEVEL: Final = 1
SCOPE: Final = 2


class Stamper:
    """Makes stamps of records, on the thread that logs, and entries of stamps, in the listener.

    Everything that looks at the caller's objects or its context is in the stamp. In the listener it would be too late
    (objects change), in the wrong thread (a lazy object may query the database there) and would keep them alive.
    """

    def __init__(
        self,
        ids: Callable[[], tuple[str, str] | None] = lambda: None,
        scope: ContextVar[Scope | None] = current,
        redaction: Redaction | None = None,
    ) -> None:
        self.ids = ids
        self.scope = scope
        self.redaction = redaction or Redaction()
        # Names that stand as they are.
        self._shown: set[str] = set()
        # Whether a project hides something of the access line.
        self.masks_access = any(map(self.redaction.hides, ACCESS_FIELDS))

    # -- On the thread that logs ---------------------------------------------------------------------------------------

    def stamp(self, record: logging.LogRecord) -> RecordStamp:
        scope = self.scope.get()
        ids = self.ids()
        bound: dict[Any, Any] | None
        if scope is not None:
            bound = scope.bound
            request_id = scope.request_id
            if ids is None and scope.trace_id:
                ids = (scope.trace_id, "")
        else:
            bound = unscoped.get()
            request_id = ""
        if bound:
            bound = self.snapshot(bound)
        message = record.msg
        extra: dict[Any, Any] | None = None
        attributes = record.__dict__
        if type(message) is not str:
            message, extra = self._unusual_message(record)
        else:
            if record.args:
                try:
                    message = message % record.args
                except Exception as error:
                    # The standard library would print a traceback to stderr and lose the line.
                    message = f"{message} {text_of(record.args)} [not merged: {text_of(error)}]"
            if len(message) > MAX_TEXT:
                message = clean(message)
        if len(attributes) > _OWN:
            extra = self._extra(record, attributes, extra)
        elif extra is not None:
            extra = self.snapshot(extra)
        return (
            record.created,
            record.levelno,
            record.levelname,
            record.name,
            message,
            ids,
            request_id,
            bound,
            extra,
            failure(record.exc_info, record.exc_text) if record.exc_info or record.exc_text else None,
            clean(record.stack_info) if record.stack_info else None,
        )

    def _extra(
        self, record: logging.LogRecord, attributes: dict[str, Any], named: dict[Any, Any] | None
    ) -> dict[Any, Any] | None:
        if named is None and type(record) is logging.LogRecord:
            extra: dict[Any, Any] = {}
            # From the end, as what stands before is ours to skip.
            for name, value in reversed(attributes.items()):
                if name == _LAST:
                    return extra
                kind = type(value)
                if kind not in ATOMS or name == "message" or (kind is str and len(value) > MAX_TEXT):
                    break
                extra[name] = value
        extra = {name: value for name, value in attributes.items() if name not in STANDARD}
        if record.name.startswith("django."):
            # Django adds its request object to what it logs; the line has what is worth knowing of it.
            extra.pop("request", None)
            extra.pop("server_time", None)
        return self.snapshot({**(named or {}), **extra})

    def snapshot(self, fields: dict[Any, Any]) -> dict[Any, Any]:
        """Copy fields, the last first, whatever their values are."""
        for value in fields.values():
            kind = type(value)
            if kind not in ATOMS or (kind is str and len(value) > MAX_TEXT):
                return dict(reversed(plain_fields(fields, self.redaction).items()))
        return dict(reversed(fields.items()))

    def _unusual_message(self, record: logging.LogRecord) -> tuple[str, dict[Any, Any] | None]:
        if isinstance(record.msg, dict):
            # python-json-logger's way to log fields alone.
            fields: dict[Any, Any] = dict(record.msg)
            return text_of(fields.pop("message", "")), fields
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{text_of(record.msg)} {text_of(record.args)} [not merged: {text_of(error)}]"
        return clean(message), None

    # -- In the listener -----------------------------------------------------------------------------------------------

    def entry(self, stamp: Stamp) -> Entry:
        if type(stamp[SCOPE]) is Scope:
            return self._access_entry(stamp)
        record = cast("RecordStamp", stamp)
        created, levelno, levelname, logger, message, ids, request_id, bound, extra, error, stack = record
        trace_id, span_id = ids if ids is not None else ("", "")
        # A record's own field goes before a bound one of the same name.
        fields = self._presentable(bound, extra) if bound or extra else None
        return Entry(created, levelno, levelname, logger, message, trace_id, span_id, request_id, fields, error, stack)

    def _access_entry(self, stamp: AccessStamp) -> Entry:
        created, level, scope, *_, bound, error = stamp
        message, fields = access_message(scope), access_fields(stamp)
        if len(message) > MAX_TEXT:
            message, fields = clean(message), plain_fields(fields, self.redaction)
        if self.masks_access:
            found, fields = fields, {}
            for name, value in found.items():
                self._present(name, value, fields)
        if bound:
            fields = {**(self._presentable(bound) or {}), **fields}
        trace_id, span_id = scope.ids or (scope.trace_id, "")
        name = logging.getLevelName(level)
        return Entry(
            created, level, name, ACCESS, message, trace_id, span_id, scope.request_id, fields or None, error, None
        )

    def _presentable(self, *parts: dict[Any, Any] | None) -> dict[str, Any] | None:
        shown = self._shown
        fields: dict[str, Any] = {}
        for part in parts:
            for name, value in reversed(part.items()) if part else ():
                if name in shown:
                    fields[name] = value
                else:
                    self._present(name, value, fields)
        return fields or None

    def _present(self, name: Any, value: Any, fields: dict[str, Any]) -> None:
        name = name if type(name) is str else key_of(name)
        if name[:1] == "_":
            return
        if self.redaction.hides(name):
            fields[name] = MASK
        elif name in RESERVED:
            fields[f"{name}_"] = value
        else:
            if len(self._shown) >= _REMEMBERED:
                self._shown.clear()
            self._shown.add(name)
            fields[name] = value


def access_message(scope: Scope) -> str:
    """Return the message of an access line."""
    return f"{scope.method} {scope.path} {scope.status}"


# What an access line may say, in the order in which it says it.
ACCESS_FIELDS: Final = (
    "method",
    "route",
    "path",
    "status",
    "duration_ms",
    "queue_ms",
    "response_bytes",
    "db_queries",
    "db_ms",
    "cache_hits",
    "cache_misses",
    "user_id",
    "client",
)


def access_fields(stamp: AccessStamp) -> dict[str, Any]:
    """Return the fields of an access line; what does not apply is left out."""
    _, _, scope, queries, query_ns, hits, misses, _, _ = stamp
    fields: dict[str, Any] = {
        "method": scope.method,
        "route": scope.route,
        "path": scope.path,
        "status": scope.status,
        "duration_ms": (scope.ended - scope.started) // 1000 / 1000,
    }
    if scope.queue_ns is not None:
        fields["queue_ms"] = scope.queue_ns // 1000 / 1000
    if scope.size >= 0:
        fields["response_bytes"] = scope.size
    fields["db_queries"] = queries
    fields["db_ms"] = query_ns // 1000 / 1000
    fields["cache_hits"] = hits
    fields["cache_misses"] = misses
    if scope.user_id is not None:
        fields["user_id"] = scope.user_id
    if scope.client:
        fields["client"] = scope.client
    return fields


def failure(exc_info: Any, exc_text: str | None = None, stack: str | None = None) -> Failure | None:
    """Return an exception as text, however broken it is; None if there is none. The stack may be there already."""
    error = exc_info if isinstance(exc_info, BaseException) else exc_info[1] if isinstance(exc_info, tuple) else None
    if error is None:
        return Failure("", "", clip(exc_text)) if exc_text else None
    if stack is None:
        stack = stack_of(error, exc_info[2] if isinstance(exc_info, tuple) else error.__traceback__)
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return Failure(f"{module}{kind.__qualname__}", text_of(error), clip(stack.rstrip("\n")))


def clip(stack: str) -> str:
    """Cut a stack in the middle: how it began and where it ended are what one reads."""
    if len(stack) > MAX_STACK:
        half = MAX_STACK // 2
        stack = f"{stack[:half]}\n... [{len(stack) - MAX_STACK} more characters] ...\n{stack[-half:]}"
    return stack.encode(errors="backslashreplace").decode()

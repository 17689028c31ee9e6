"""Any Python value as a plain one: what JSON can hold, cut to size, secrets masked, nothing left that could change."""

from __future__ import annotations

import base64
import enum
import traceback
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timezone
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django_obs.logs.redaction import MASK, Redaction

# Exact types whose values nobody can change and the encoder writes as they are; subclasses may override anything.
ATOMS = frozenset({str, int, float, bool, type(None), date, UUID})
# Time zones that are no code of the project's. The encoder asks a datetime's for its offset, and one that raises there
# takes the process down with it.
_ZONES = frozenset({type(None), timezone, ZoneInfo})

# A line of 256 KiB is what Loki takes at most, Docker splits at 16; one text must leave room for others.
MAX_TEXT = 32 * 1024
MAX_ITEMS = 1000
MAX_DEPTH = 12
# All parts of one value together: a list of lists of lists multiplies what each level allows.
MAX_NODES = 5000

# What orjson takes; greater ones become text.
_INTEGERS = range(-(2**63), 2**64)


def text_of(value: object) -> str:
    """Return ``str(value)``, cut to size and encodable, whatever its ``__str__`` does."""
    try:
        text = str(value)
    except Exception as error:
        text = f"<unprintable {type(value).__name__}: {type(error).__name__}>"
    return clean(text)


def clean(text: str) -> str:
    """Return the text as an exact ``str``, cut to size, lone surrogates escaped."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... [{len(text) - MAX_TEXT} more characters]"
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = text.encode(errors="backslashreplace")
        return encoded.decode()
    return text if type(text) is str else encoded.decode()


class Plainer:
    """Turns one value into a plain one; counts what it has cost so far."""

    __slots__ = ("nodes", "parents", "redaction")

    def __init__(self, redaction: Redaction) -> None:
        self.redaction = redaction
        self.nodes = 0
        self.parents: set[int] = set()

    def plain(self, value: Any) -> Any:
        """Return the value made of dict, list and atoms. Never raises but what is no ``Exception``."""
        self.nodes += 1
        kind = type(value)
        if kind is str:
            return clean(value)
        if kind is int:
            return value if value in _INTEGERS else huge(value)
        if kind in ATOMS:
            return value
        if kind is datetime and type(value.tzinfo) in _ZONES:
            return value
        if kind is time and value.tzinfo is None:  # the encoder takes no other
            return value
        try:
            return self._inside(value)
        except RecursionError:
            return "[too deep]"
        except Exception as error:
            return f"<unprintable {kind.__name__}: {type(error).__name__}>"

    def _inside(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return self.plain(value.value)
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, bool | int):
            return self.plain(int(value))
        if isinstance(value, float):
            return float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return readable(value)
        if isinstance(value, BaseException):
            return clean("".join(traceback.format_exception_only(value)).rstrip())
        if isinstance(value, types.TracebackType):
            return clean("".join(traceback.format_tb(value)))
        if isinstance(value, type):
            return value.__name__
        if isinstance(value, Mapping):
            return self._nested(value, lambda: self.mapping(value.items()))
        if isinstance(value, list | tuple | set | frozenset) or type(value) is types.GeneratorType:
            # A generator belongs to its owner: looking into it would use it up.
            if isinstance(value, types.GeneratorType):
                return text_of(value)
            return self._nested(value, lambda: self.sequence(value))
        if isinstance(value, datetime | time):
            return clean(value.isoformat())
        if is_dataclass(value):
            return self._nested(
                value, lambda: self.mapping((field.name, getattr(value, field.name)) for field in fields(value))
            )
        return text_of(value)

    def _nested(self, value: object, build: Any) -> Any:
        if id(value) in self.parents:
            return "[circular]"
        if len(self.parents) >= MAX_DEPTH:
            return "[too deep]"
        if self.nodes > MAX_NODES:
            return "[too large]"
        self.parents.add(id(value))
        try:
            return build()
        finally:
            self.parents.discard(id(value))

    def mapping(self, items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in items:
            if len(result) >= MAX_ITEMS or self.nodes > MAX_NODES:
                result["..."] = "[too large]"
                break
            name = name if type(name) is str else key_of(name)
            result[clean(name)] = MASK if self.redaction.hides(name) else self.plain(value)
        return result

    def sequence(self, values: Iterable[Any]) -> list[Any]:
        result: list[Any] = []
        for value in values:
            if len(result) >= MAX_ITEMS or self.nodes > MAX_NODES:
                result.append("[too large]")
                break
            result.append(self.plain(value))
        return result


def key_of(name: object) -> str:
    # As json.dumps() writes the keys that it takes.
    if name is None:
        return "null"
    if name is True:
        return "true"
    if name is False:
        return "false"
    return text_of(name)


def readable(value: bytes | bytearray | memoryview) -> str:
    """Return bytes as text if they are UTF-8, else in base64, as python-json-logger does."""
    raw = bytes(value[: MAX_TEXT * 4])
    try:
        return clean(raw.decode())
    except UnicodeDecodeError:
        return clean(base64.b64encode(raw).decode())


def huge(value: int) -> str:
    """Return a number beyond 64 bits as text, one beyond Python's limit for decimal digits in hexadecimal."""
    try:
        return clean(str(value))
    except ValueError:
        return clean(hex(value))


def plain(value: Any, redaction: Redaction) -> Any:
    """Return the value made of dict, list, str, numbers, bool, None, dates and UUIDs, its secrets masked."""
    return Plainer(redaction).plain(value)


def plain_fields(named: Mapping[Any, Any], redaction: Redaction) -> dict[str, Any]:
    """Return the fields of a line as a plain dict."""
    return Plainer(redaction).mapping((name, value) for name, value in named.items() if not is_private(name))


def is_private(name: object) -> bool:
    # As in python-json-logger: what tools hang on a record for themselves.
    return isinstance(name, str) and name.startswith("_")

"""Which lines and finished requests somebody wants to see: the directives of the filter, over what has come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django_obs.logs.directives import Directive, most_specific_first, parse
from django_obs.server.recent import Finished, Line

ACCESS: Final = "django_obs.access"
# What no directive speaks of, as in the filter.
INFO, ERROR = 20, 40
# Names in directives -> attributes of a line, and of a span.
LINE_FIELDS: Final = {
    "cache.hits": "cache_hits",
    "cache.misses": "cache_misses",
    "db.queries": "db_queries",
    "name": "task",
    "user.id": "user_id",
}
SPAN_FIELDS: Final = {
    "method": "http.request.method",
    "path": "url.path",
    "route": "http.route",
    "status": "http.response.status_code",
    "user_id": "user.id",
}
MISSING: Final = object()
is_id = re.compile(r"[0-9a-fA-F]{1,32}").fullmatch


@dataclass(frozen=True)
class Selection:
    """What is wanted. Everything if nothing is said."""

    directives: tuple[Directive, ...] = ()
    """The most specific ones first."""
    trace_id: str = ""
    """The trace, or how its id begins."""
    errors: bool = False
    """Only what failed; together with `slower_than`, either."""
    slower_than: float | None = None
    """Only what took so many seconds."""

    @classmethod
    def read(
        cls, text: str = "", *, trace_id: str = "", errors: bool = False, slower_than: float | None = None
    ) -> Selection:
        """Return what these words mean. Raises ValueError."""
        if trace_id and not is_id(trace_id):
            raise ValueError(f"{trace_id[:100]!r} is no trace id, expected 32 hexadecimal digits or how they begin")
        # NaN is not at least 0 either.
        if slower_than is not None and not slower_than >= 0:
            raise ValueError("slow must be seconds, 0 or more")
        return cls(tuple(most_specific_first(parse(text))), trace_id.lower(), errors, slower_than)

    def admits(self, item: Line | Finished) -> bool:
        """Tell whether a line or a finished request is wanted."""
        if self.trace_id and not item.trace_id.startswith(self.trace_id):
            return False
        if self.errors or self.slower_than is not None:
            taken = seconds_of(item)
            slow = self.slower_than is not None and taken is not None and taken >= self.slower_than
            if not (slow or (self.errors and item.error)):
                return False
        return not self.directives or self._directed(item)

    def _directed(self, item: Line | Finished) -> bool:
        logger, level = (
            (item.logger, item.levelno) if isinstance(item, Line) else (ACCESS, ERROR if item.error else INFO)
        )
        for directive in self.directives:
            if not directive.covers(logger):
                continue
            if directive.span is not None and not any(map(_pattern(directive), names_of(item))):
                continue
            if all(_matches(each.matches, field_of(item, each.name)) for each in directive.fields):
                return level >= directive.level
        return level >= INFO


def seconds_of(item: Line | Finished) -> float | None:
    """Return how long it took, if it is the end of something."""
    if isinstance(item, Finished):
        return item.duration_ns / 1e9
    taken = item.attributes.get("duration_ms")
    return taken / 1000 if isinstance(taken, int | float) and item.logger == ACCESS else None


def names_of(item: Line | Finished) -> list[str]:
    """Return the names by which a directive may call the request or task; of a line only if it tells of its end."""
    names = [item.name, item.kind] if isinstance(item, Finished) else []
    method, path, route = (_text(field_of(item, name)) for name in ("method", "path", "route"))
    if task := _text(field_of(item, "task")):
        names += [task, "task"]
    for place in (path, f"/{route.lstrip('/')}" if route else "", route.lstrip("/")):
        if place:
            names += [place, f"{method} {place}"]
    if method:
        names += [method, "request"]
    return names


def field_of(item: Line | Finished, name: str) -> Any:
    """Return the value of a field as directives call it, or `MISSING`."""
    attributes: Mapping[str, Any] = item.attributes
    if name in attributes:
        return attributes[name]
    if name == "trace_id":
        return item.trace_id or MISSING
    other = (LINE_FIELDS if isinstance(item, Line) else SPAN_FIELDS).get(name)
    return MISSING if other is None else attributes.get(other, MISSING)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _pattern(directive: Directive) -> Callable[[str], object]:
    return directive.span_pattern()


def _matches(matches: Callable[[Any], bool], value: Any) -> bool:
    return value is not MISSING and matches(value)

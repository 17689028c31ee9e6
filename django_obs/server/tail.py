"""What comes in, for who follows it live: long polls, each answered as soon as there is something wanted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from django_obs.server.recent import Finished, Line, Recent
from django_obs.server.selection import Selection

# Of the connections that the port has: a scrape must always find one.
MAX_FOLLOWERS: Final = 8
# Seconds that a poll waits at most; below what proxies and clients take for an answer that never comes.
MAX_WAIT: Final = 25.0
MAX_ITEMS: Final = 1000


class Crowded(Exception):
    """There are as many followers as there may be."""


class Tail:
    """Answers long polls."""

    def __init__(self, recent: Recent) -> None:
        self.recent = recent
        self._places = threading.BoundedSemaphore(MAX_FOLLOWERS)

    def poll(self, query: Mapping[str, list[str]]) -> Mapping[str, object]:
        """Return what came in after ``cursor``, within ``wait`` seconds. Raises ValueError and `Crowded`.

        ``filter``, ``trace``, ``errors`` and ``slow`` (seconds) select; ``last`` gives so many of what is there already
        to who has no cursor yet.
        """
        given = {name: values[-1] for name, values in query.items()}
        selection = Selection.read(
            given.get("filter", ""),
            trace_id=given.get("trace", ""),
            errors=given.get("errors", "") not in ("", "0", "false"),
            slower_than=_number(given, "slow", None),
        )
        wait = min(_number(given, "wait", 0.0) or 0.0, MAX_WAIT)
        cursor = given.get("cursor")
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
            raise ValueError("cursor must be a number that was given before")
        if not self._places.acquire(blocking=False):
            raise Crowded(f"{MAX_FOLLOWERS} follow already")
        try:
            if cursor is None:
                return self._begin(selection, int(_number(given, "last", 0.0) or 0.0))
            return self._follow(selection, int(cursor), wait)
        finally:
            self._places.release()

    def _begin(self, selection: Selection, last: int) -> Mapping[str, object]:
        cursor = self.recent.follow(None).cursor
        if last <= 0:
            return _answer(cursor, 0, [])
        everything = self.recent.follow(0, limit=cursor)
        wanted = [item for item in everything.items if selection.admits(item)]
        return _answer(everything.cursor, 0, wanted[-min(last, MAX_ITEMS) :])

    def _follow(self, selection: Selection, cursor: int, wait: float) -> Mapping[str, object]:
        deadline = monotonic() + wait
        missed = 0
        while True:
            news = self.recent.follow(cursor, timeout=max(0.0, deadline - monotonic()), limit=MAX_ITEMS)
            cursor = news.cursor
            missed += news.missed
            wanted = [item for item in news.items if selection.admits(item)]
            # Nothing at all: the time is over, or the port closes.
            if wanted or missed or not news.items or monotonic() >= deadline:
                return _answer(cursor, missed, wanted)


def _answer(cursor: int, missed: int, items: list[Line | Finished]) -> Mapping[str, object]:
    return {"cursor": cursor, "missed": missed, "items": list(map(as_json, items))}


def as_json(item: Line | Finished) -> dict[str, Any]:
    """Return an item as the port hands it out."""
    source = item.source
    shared = {
        "trace_id": item.trace_id,
        "span_id": item.span_id,
        "error": item.error,
        "service": source.service,
        "role": source.role,
        "pid": source.pid,
        "fields": dict(item.attributes),
    }
    if isinstance(item, Line):
        return {
            "type": "line",
            "time_ns": item.time_ns,
            "level": item.level,
            "levelno": item.levelno,
            "logger": item.logger,
            "message": item.message,
            **shared,
        }
    return {
        "type": "finished",
        "time_ns": item.start_ns + item.duration_ns,
        "name": item.name,
        "kind": item.kind,
        "duration_ms": item.duration_ns / 1e6,
        "status": item.status,
        "http_status": item.http_status,
        **shared,
    }


def _number(given: Mapping[str, str], name: str, default: float | None) -> float | None:
    if name not in given:
        return default
    number = float(given[name])
    if not 0 <= number < 1e9:
        raise ValueError(f"{name} must be a number, 0 or more")
    return number

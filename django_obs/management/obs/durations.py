"""Durations and moments, as people write and read them."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import datetime, timezone

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)\s*", re.IGNORECASE | re.ASCII)
# Who wants it longer wants it in the settings.
LONGEST = 365 * UNITS["d"]


def seconds_of(text: str) -> float:
    """Return the seconds that ``90s``, ``10m`` or ``1h30m`` are. Raises ArgumentTypeError."""
    expected = "expected a number and s, m, h or d, such as 90s, 10m or 1h30m"
    total, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise ArgumentTypeError(f"{text!r} is no duration, {expected}")
        if not part[2]:
            raise ArgumentTypeError(f"{text!r} lacks a unit behind {part[1]}, {expected}")
        if part[2].lower() not in UNITS:
            raise ArgumentTypeError(f"{text!r} has the unknown unit {part[2]!r}, {expected}")
        total += float(part[1]) * UNITS[part[2].lower()]
        position = part.end()
    if not 0 < total <= LONGEST:
        raise ArgumentTypeError(f"{text!r} must be more than 0s and at most {LONGEST // UNITS['d']}d")
    return total


def duration(seconds: float) -> str:
    """Write a duration for people, in its two largest units: ``9m 41s``."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def moment(seconds: float) -> str:
    """Write seconds since the epoch for people."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")  # noqa: UP017

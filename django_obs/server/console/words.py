"""How the console writes numbers: short, and in the unit in which people think of them."""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "\N{EN DASH}"
SECOND, MINUTE, HOUR, DAY = 1, 60, 3600, 86400


def seconds(value: float | None) -> str:
    """Write how long something took: ``840 µs``, ``12.3 ms``, ``1.24 s``, ``2 m 05 s``."""
    if value is None:
        return NOTHING
    if value < 0.9995e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 0.9995:
        return f"{_three(value * 1e3)} ms"
    if value < 99.95:
        return f"{_three(value)} s"
    minutes, left = divmod(round(value), MINUTE)
    return f"{minutes} m {left:02} s" if minutes < 60 else age(value)


def age(value: float | None) -> str:
    """Write for how long something has been there, in its two largest units: ``3 d 4 h``."""
    if value is None:
        return NOTHING
    left = max(0, round(value))
    parts = []
    for unit, length in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND)):
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def rate(value: float | None) -> str:
    """Write how often a second."""
    if value is None:
        return NOTHING
    return "0" if not value else _three(value) if value < 1000 else count(value)


def percent(value: float | None) -> str:
    """Write a share of one."""
    if value is None:
        return NOTHING
    shown = value * 100
    return "0 %" if not shown else "< 0.01 %" if shown < 0.01 else f"{_three(shown)} %"


def count(value: float | None) -> str:
    """Write a number of things."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def size(value: float | None) -> str:
    """Write a number of bytes."""
    if value is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def clock(moment: float) -> str:
    """Write seconds since the epoch as a time of the day, in UTC as the lines have it."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S.%f")[:-3]
    except (ValueError, OverflowError, OSError):
        return NOTHING


def date(moment: float) -> str:
    """Write seconds since the epoch whole, in UTC."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return NOTHING


def _three(value: float) -> str:
    """Write three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"

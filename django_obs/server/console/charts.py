"""The curves as plain SVG, for whoever looks without the script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 600, 120
# A missing value ends a line, as does a silence of so many seconds.
SILENCE = 60.0


class Line(NamedTuple):
    """A curve: what it is of, and the points of its pieces as SVG writes them."""

    name: str
    pieces: list[str]


def draw(times: Sequence[float], curves: dict[str, Sequence[float | None]], least: float = 0.0) -> list[Line]:
    """Draw curves over times in seconds, ascending; the top of the chart is at least `least`."""
    values = [value for curve in curves.values() for value in curve if value is not None]
    top = max([least, *values]) or 1.0
    if len(times) < 2:
        return [Line(name, []) for name in curves]
    start, span = times[0], times[-1] - times[0] or 1.0
    lines = []
    for name, curve in curves.items():
        pieces: list[list[str]] = [[]]
        for i, value in enumerate(curve):
            if value is None or (i and times[i] - times[i - 1] > SILENCE):
                pieces.append([])
            if value is not None:
                x, y = (times[i] - start) / span * WIDTH, HEIGHT - value / top * HEIGHT
                pieces[-1].append(f"{x:.1f},{y:.1f}")
        lines.append(Line(name, [" ".join(piece) for piece in pieces if len(piece) > 1]))
    return lines

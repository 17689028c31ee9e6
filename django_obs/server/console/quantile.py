"""Quantiles of a histogram, as ``histogram_quantile`` of Prometheus estimates them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

INFINITY = float("inf")


def quantile(q: float, bounds: Sequence[float], cells: Sequence[float]) -> float | None:
    """Return the value below which the share ``q`` of the observations lies; None if there are none.

    ``bounds``: upper bounds, ascending, infinity last. ``cells``: observations in each bucket alone, not cumulated.
    Within a bucket the observations are taken to lie evenly; what lies beyond the last finite bound is said to lie on
    it, so that an estimate from too few buckets is too low and never made up.
    """
    up_to = list(accumulate(cells))
    if not up_to or up_to[-1] <= 0:
        return None
    rank = q * up_to[-1]
    i = next(i for i, cell in enumerate(cells) if cell and up_to[i] >= rank)
    if bounds[i] == INFINITY:
        return bounds[i - 1] if i else None
    # A first bucket below zero has no lower bound to start from.
    start = bounds[i - 1] if i else min(0.0, bounds[0])
    return start + (bounds[i] - start) * max(0.0, rank - up_to[i] + cells[i]) / cells[i]

"""What the requests of all processes have come to: counts by latency, time, errors; in all and by view."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from django_obs.metrics.catalogue import DURATION, SEMCONV_BUCKETS
from django_obs.server.console.quantile import quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_obs.metrics.scraper import Family, Page

# Views whose numbers are kept apart; those that take the least time of all are left out.
MOST_VIEWS = 500
LABELS = ("http_request_method", "http_route", "error_type")


class View(NamedTuple):
    """What a tally is kept for; an empty route is a path that no view was found for."""

    method: str
    route: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests since the store began, or between two moments."""

    bounds: tuple[float, ...]  # of the latency, in seconds; infinity last
    cells: array[float]  # requests in each bucket alone
    seconds: float
    errors: float

    @property
    def count(self) -> float:
        """How many requests."""
        return sum(self.cells)

    @property
    def mean(self) -> float | None:
        """Seconds that a request took."""
        count = self.count
        return self.seconds / count if count else None

    @property
    def error_share(self) -> float | None:
        """Share of the requests that failed."""
        count = self.count
        return self.errors / count if count else None

    def quantile(self, q: float) -> float | None:
        """Seconds below which the share ``q`` of the requests lies."""
        return quantile(q, self.bounds, self.cells)

    def since(self, earlier: Tally | None) -> Tally:
        """Return what has come since `earlier`; everything, if the counts have begun anew since."""
        if earlier is None or earlier.bounds != self.bounds or earlier.errors > self.errors:
            return self
        grown = array("d", [now - then for now, then in zip(self.cells, earlier.cells, strict=True)])
        if min(grown) < 0:
            return self
        return Tally(self.bounds, grown, max(0.0, self.seconds - earlier.seconds), self.errors - earlier.errors)


NONE = Tally(SEMCONV_BUCKETS, array("d", [0.0] * len(SEMCONV_BUCKETS)), 0.0, 0.0)


def total(page: Page) -> Tally:
    """Add up all requests."""
    family = _durations(page)
    if family is None:
        return NONE
    bounds = _bounds(family)
    cells: Sequence[float] = [0.0] * len(bounds)
    seconds = errors = 0.0
    for _, failed, values in _rows(page, family):
        counts = values[:-1]
        cells = list(map(add, cells, counts))
        seconds += values[-1]
        if failed:
            errors += sum(counts)
    return Tally(bounds, array("d", cells), seconds, errors)


def by_view(page: Page) -> Mapping[View, Tally]:
    """Add up the requests of each view, of those that have taken the most time."""
    family = _durations(page)
    if family is None:
        return {}
    bounds = _bounds(family)
    found: dict[View, list[float]] = {}
    errors: dict[View, float] = {}
    for view, failed, values in _rows(page, family):
        known = found.get(view)
        found[view] = list(values) if known is None else list(map(add, known, values))
        if failed:
            errors[view] = errors.get(view, 0.0) + sum(values[:-1])
    views = heapq.nlargest(MOST_VIEWS, found.items(), key=lambda item: item[1][-1])
    return {view: Tally(bounds, array("d", values[:-1]), values[-1], errors.get(view, 0.0)) for view, values in views}


def _durations(page: Page) -> Family | None:
    family = page.family(DURATION.name)
    # The name is that of the conventions: somebody else's metric may have it, with labels of its own.
    ours = family is not None and family.kind == DURATION.kind and set(LABELS) <= set(family.definition.labelnames)
    return family if ours else None


def _bounds(family: Family) -> tuple[float, ...]:
    return tuple(map(float, family.definition.bounds))


def _rows(page: Page, family: Family) -> Iterator[tuple[View, bool, Sequence[float]]]:
    """Yield view, whether it failed, and the values: the buckets' counts, then the seconds."""
    names = family.definition.labelnames
    method, route, error = map(names.index, LABELS)
    width = len(family.definition.bounds) + 1
    for series in family.series:
        # A later reading may have added to the family.
        if series.slot + width <= page.slots:
            labels = series.labelvalues
            values = page.totals[series.slot : series.slot + width]
            yield View(labels[method], labels[route]), bool(labels[error]), values

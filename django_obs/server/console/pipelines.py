"""How the pipelines fare: what they have passed on, what waits, and what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_obs.metrics import catalogue

if TYPE_CHECKING:
    from django_obs.metrics.scraper import Page

SERIES = "series"
DAMAGED = "damaged"
LOST = {
    "logs": (("dropped", catalogue.LOG_RECORDS_DROPPED), ("failed", catalogue.LOG_RECORDS_FAILED)),
    "traces": (("dropped", catalogue.SPANS_DROPPED), ("failed", catalogue.SPANS_FAILED)),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that should have been delivered: how much, and how much of it lately; None if that is not known."""

    what: str
    total: float
    lately: float | None

    @property
    def state(self) -> str:
        """Say whether it goes on: ``lost``, ``was-lost`` or nothing. What may have been now counts as now."""
        if not self.total:
            return ""
        return "was-lost" if self.lately == 0 else "lost"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A row of the table."""

    name: str
    passed: float
    unit: str
    waiting: float | None
    losses: tuple[Loss, ...]
    note: str = ""


def losses(page: Page) -> Mapping[str, float]:
    """Return what was lost since the store began, by ``pipeline what``."""
    found = {
        f"{name} {what}": _sum(page, declaration.name) for name, kinds in LOST.items() for what, declaration in kinds
    }
    return {**found, f"metrics {SERIES}": page.dropped, f"metrics {DAMAGED}": page.damaged}


def table(page: Page, earlier: Mapping[str, float] | None) -> list[Pipeline]:
    """Return a row for each pipeline; ``earlier`` are the losses at the time from which on they count as lately."""
    now = losses(page)

    def lost(name: str, *kinds: str) -> tuple[Loss, ...]:
        made = []
        for kind in kinds:
            key = f"{name} {kind}"
            # Less than before: the store has begun anew.
            lately = None if earlier is None else now[key] - min(earlier.get(key, 0.0), now[key])
            made.append(Loss(kind, now[key], lately))
        return tuple(made)

    out = _sum(page, catalogue.SPANS_SAMPLED_OUT.name)
    return [
        Pipeline(
            "logs",
            _sum(page, catalogue.LOG_RECORDS_WRITTEN.name),
            "lines",
            _gauge(page, catalogue.LOG_RECORDS_QUEUED.name),
            lost("logs", "dropped", "failed"),
        ),
        Pipeline(
            "traces",
            _sum(page, catalogue.SPANS_EXPORTED.name),
            "spans",
            _gauge(page, catalogue.SPANS_QUEUED.name),
            lost("traces", "dropped", "failed"),
            f"{out:.0f} left out by the sampler" if out else "",
        ),
        Pipeline("metrics", page.series, "series", None, lost("metrics", SERIES, DAMAGED)),
    ]


def _sum(page: Page, name: str) -> float:
    family = page.family(name.removesuffix("_total"))
    if family is None:
        return 0.0
    return sum(page.totals[series.slot] for series in family.series if series.slot < page.slots)


def _gauge(page: Page, name: str) -> float:
    family = page.family(name)
    if family is None:
        return 0.0
    return sum(value for row in page.rows(family) for _, value in page.gauges(family, row))

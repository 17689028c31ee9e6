"""Which text format a client wants, and metrics of prometheus_client written in it.

The formats: https://prometheus.io/docs/instrumenting/exposition_formats/ (text 0.0.4 and 1.0.0),
https://prometheus.io/docs/specs/om/open_metrics_spec/ (OpenMetrics 0.0.1 and 1.0.0), and
https://prometheus.io/docs/instrumenting/escaping_schemes/ for names beyond ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text"
ESCAPINGS = ("allow-utf-8", "underscores", "dots", "values")


@dataclass(frozen=True, slots=True)
class Format:
    """A text format. `escaping` holds for version 1.0.0 alone; the older ones know no other than ``underscores``."""

    media_type: str = TEXT
    version: str = "0.0.4"
    escaping: str = "underscores"

    @property
    def openmetrics(self) -> bool:
        """Whether it is OpenMetrics, which has exemplars and ends with ``# EOF``."""
        return self.media_type == OPENMETRICS

    @property
    def content_type(self) -> str:
        """The exact content type: Prometheus 3 fails a scrape whose type it cannot parse."""
        escaping = f"; escaping={self.escaping}" if self.version == "1.0.0" else ""
        return f"{self.media_type}; version={self.version}; charset=utf-8{escaping}"


PLAIN = Format()
# A range without a version: OpenMetrics at its stable version, text as every scraper reads it.
VERSIONS = {
    TEXT: {"": "0.0.4", "0.0.4": "0.0.4", "1.0.0": "1.0.0"},
    OPENMETRICS: {"": "1.0.0", "0.0.1": "0.0.1", "1.0.0": "1.0.0"},
}
WILDCARDS = {"*/*": TEXT, "text/*": TEXT, "application/*": OPENMETRICS}


def negotiate(accept: str | None) -> Format:
    """Return the format that the header ``Accept`` prefers: the highest ``q``, then the more specific, then the first.

    A client that accepts none of ours is sent text 0.0.4, as by the other servers of Prometheus' world: a page that it
    may be able to read is worth more than status 406.
    """
    best: tuple[float, bool, int] | None = None
    chosen = PLAIN
    refused: set[str] = set()
    ranges = [_parse_range(part) for part in (accept or "").split(",")]
    for media_type, parameters, quality in ranges:
        if quality == 0 and media_type in VERSIONS and "version" not in parameters:
            refused.add(media_type)
    for place, (media_type, parameters, quality) in enumerate(ranges):
        named = media_type in VERSIONS
        offered = media_type if named else WILDCARDS.get(media_type, "")
        if not offered or quality == 0 or offered in refused:
            continue
        version = VERSIONS[offered].get(parameters.get("version", "") if named else "")
        if version is None:
            continue
        rank = (quality, named, -place)
        if best is None or rank > best:
            best = rank
            escaping = parameters.get("escaping", "").lower()
            known = version == "1.0.0" and escaping in ESCAPINGS
            chosen = Format(offered, version, escaping if known else "underscores")
    return chosen


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Tell whether the header ``Accept-Encoding`` allows gzip."""
    allowed: dict[str, float] = {}
    for part in (accept_encoding or "").split(","):
        coding, _, quality = _parse_range(part)
        allowed[coding] = quality
    return allowed.get("gzip", allowed.get("*", 0.0)) > 0


def _parse_range(part: str) -> tuple[str, dict[str, str], float]:
    name, *rest = part.split(";")
    parameters: dict[str, str] = {}
    for item in rest:
        key, _, value = item.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"')
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 0.0
    # "not > 0" catches NaN as well.
    return name.strip().lower(), parameters, min(quality, 1.0) if quality > 0 else 0.0


def render(metrics: Iterable[Metric], dialect: Format) -> bytes:
    """Write metrics of prometheus_client; OpenMetrics without its final ``# EOF``, which is the page's to write."""
    collected = _Collected(metrics)
    if dialect.openmetrics:
        from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

        page: bytes = generate_openmetrics(collected, escaping=dialect.escaping)
        return page.removesuffix(b"# EOF\n")
    from prometheus_client.exposition import generate_latest

    return generate_latest(collected, escaping=dialect.escaping)


class _Collected:
    """What prometheus_client's writers take for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics

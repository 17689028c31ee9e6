"""The last minutes: what the requests had come to, moment by moment.

No thread samples. A sample is taken when the console is asked for something and the newest one is a few seconds old;
its page asks every few seconds while somebody looks at it. A scrape leaves one as well, of the sums that it has made
anyway: where Prometheus scrapes, the curves are there when the console is opened. Beyond that nothing is done.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from django_obs.server.console import pipelines, tally
from django_obs.server.console.tally import Tally, View

if TYPE_CHECKING:
    from django_obs.metrics.scraper import Page

# Seconds between two samples; two that look at the same time see the same ones.
EVERY = 5.0
# Seconds for which samples are kept.
KEEP = 900.0
# Seconds between two samples that are kept by view, which take more memory.
VIEWS_EVERY = 60.0
# Seconds without a sample from which on the mean over them says nothing of any moment.
GAP = 300.0
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one moment: counts since the store began."""

    time: float  # seconds since the epoch
    clock: float  # monotonic seconds
    requests: Tally
    losses: Mapping[str, float]
    views: Mapping[View, Tally] | None = None


class Growth(NamedTuple):
    """What came in so many seconds up to a time since the epoch."""

    time: float
    seconds: float
    requests: Tally


class History:
    """Samples of the last minutes."""

    def __init__(
        self,
        read: Callable[[], Page],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``read`` sums the lanes; it may raise OSError."""
        self._read = read
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque()

    def look(self) -> Page:
        """Return a reading for somebody who looks, and leave a sample of it. Raises OSError."""
        page = self._read()
        self.take(page)
        return page

    def take(self, page: Page) -> None:
        """Leave a sample of a reading, unless there is one from a moment ago."""
        with self._lock:
            clock = self._clock()
            if self._samples and clock - self._samples[-1].clock < EVERY:
                return
            while self._samples and clock - self._samples[0].clock > KEEP:
                self._samples.popleft()
            last = next((sample.clock for sample in reversed(self._samples) if sample.views is not None), None)
            views = tally.by_view(page) if last is None or clock - last >= VIEWS_EVERY else None
            self._samples.append(Sample(self._now(), clock, tally.total(page), pipelines.losses(page), views))

    @property
    def samples(self) -> list[Sample]:
        """The samples, oldest first."""
        with self._lock:
            return list(self._samples)

    def growths(self) -> list[Growth]:
        """Return what came between each two samples, oldest first."""
        return [
            Growth(later.time, later.clock - earlier.clock, later.requests.since(earlier.requests))
            for earlier, later in pairwise(self.samples)
            if 0 < later.clock - earlier.clock <= GAP
        ]

    def latest(self, seconds: float) -> Growth | None:
        """Return what came in about the last `seconds`, as far as there are samples."""
        samples = self.samples
        if len(samples) < 2:
            return None
        newest = samples[-1]
        earlier = next((sample for sample in reversed(samples) if newest.clock - sample.clock >= seconds), samples[0])
        return Growth(newest.time, newest.clock - earlier.clock, newest.requests.since(earlier.requests))

    def base(self) -> Sample | None:
        """Return the oldest sample that knows the views, to compare the present with."""
        return next((sample for sample in self.samples if sample.views is not None), None)

    def series(self) -> dict[str, list[Any]]:
        """Return the curves, for a chart: by time, requests a second, share of errors and quantiles of the latency."""
        growths = self.growths()
        curves: dict[str, list[Any]] = {
            "time": [round(growth.time, 3) for growth in growths],
            "rate": [_rounded(growth.requests.count / growth.seconds) for growth in growths],
            "errors": [_rounded(growth.requests.error_share) for growth in growths],
        }
        for name, q in QUANTILES.items():
            curves[name] = [_rounded(growth.requests.quantile(q)) for growth in growths]
        return curves


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")

"""How the process itself fares: pauses of its garbage collector, and what its pipelines of logs and spans lose."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from django_obs.metrics import catalogue as declared

if TYPE_CHECKING:
    from django_obs.metrics.catalogue import Catalogue, Declaration


class Counted(Protocol):
    """A pipeline, as far as it counts."""

    @property
    def name(self) -> str: ...
    def stats(self) -> Mapping[str, int]: ...


# Pipeline and key of its stats() -> the metric of it. What goes on from "dropped_" is the level of a log record.
COUNTERS: dict[tuple[str, str], Declaration] = {
    ("logs", "written"): declared.LOG_RECORDS_WRITTEN,
    ("logs", "failed"): declared.LOG_RECORDS_FAILED,
    ("traces", "exported"): declared.SPANS_EXPORTED,
    ("traces", "dropped"): declared.SPANS_DROPPED,
    ("traces", "failed"): declared.SPANS_FAILED,
    ("traces", "sampled_out"): declared.SPANS_SAMPLED_OUT,
}
GAUGES: dict[tuple[str, str], Declaration] = {
    ("logs", "queued"): declared.LOG_RECORDS_QUEUED,
    ("traces", "queued"): declared.SPANS_QUEUED,
}
DROPPED_LEVEL = "dropped_"


class PipelineHealth:
    """Turns the totals of the pipelines into metrics, by what they have grown since the last look."""

    def __init__(self, catalogue: Catalogue, pipelines: Iterable[Counted]) -> None:
        """``pipelines``: a list that may grow."""
        self.catalogue = catalogue
        self.pipelines = pipelines
        self._last: dict[tuple[str, str], int] = {}

    def sample(self) -> None:
        """Look at all pipelines once. Called by the clock and at the end of the process."""
        for pipeline in list(self.pipelines):
            for key, value in pipeline.stats().items():
                self._take(pipeline.name, key, value)

    def _take(self, pipeline: str, key: str, value: int) -> None:
        if (gauge := GAUGES.get((pipeline, key))) is not None:
            self.catalogue.collector(gauge).set(value)
            return
        counter = self._counter(pipeline, key)
        if counter is None:
            return
        last = self._last.get((pipeline, key), 0)
        # Less than before: the pipeline has begun again from nothing, in a forked child.
        grown = value - last if value >= last else value
        self._last[pipeline, key] = value
        # With nothing to add, the series is made all the same: a rate over it shows the first loss.
        counter.inc(grown)

    def _counter(self, pipeline: str, key: str) -> Any | None:
        if pipeline == "logs" and key.startswith(DROPPED_LEVEL):
            return self.catalogue.collector(declared.LOG_RECORDS_DROPPED).labels(key.removeprefix(DROPPED_LEVEL))
        declaration = COUNTERS.get((pipeline, key))
        return None if declaration is None else self.catalogue.collector(declaration)


class GarbagePauses:
    """Times the collections of the older generations; the youngest one's are too many and too short to matter."""

    def __init__(self, catalogue: Catalogue) -> None:
        pause = catalogue.collector(declared.GC_PAUSE)
        self._observe = [None, *(pause.labels(str(generation)).observe for generation in (1, 2))]
        self._started = 0.0

    def install(self) -> None:
        """Hear of every collection of this process, once."""
        if self not in gc.callbacks:
            gc.callbacks.append(self)

    def remove(self) -> None:
        """Hear no more."""
        if self in gc.callbacks:
            gc.callbacks.remove(self)

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Take the time. Called by the interpreter, which would print what is raised here."""
        observe = self._observe[info["generation"]] if info["generation"] < 3 else None
        if observe is None:
            return
        if phase == "start":
            self._started = perf_counter()
        elif self._started:
            observe(perf_counter() - self._started)
            self._started = 0.0

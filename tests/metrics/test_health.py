from __future__ import annotations

import gc

from prometheus_client import CollectorRegistry

from django_obs.metrics.catalogue import Catalogue
from django_obs.metrics.health import GarbagePauses, PipelineHealth


class Counted:
    """Something that counts, as a pipeline does."""

    def __init__(self, name: str, **counts: int) -> None:
        self.name = name
        self.counts = counts

    def stats(self) -> dict[str, int]:
        return dict(self.counts)


def test_growth_of_the_pipelines_is_recorded() -> None:
    registry = CollectorRegistry()
    logs = Counted("logs", written=5, queued=3, dropped=2, dropped_info=2, failed=0)
    traces = Counted("traces", exported=7, queued=1, dropped=0, failed=4, sampled_out=9)
    health = PipelineHealth(Catalogue(latency_buckets=(), registry=registry), [logs, traces])
    value = registry.get_sample_value
    health.sample()
    assert value("django_obs_log_records_written_total") == 5
    assert value("django_obs_log_records_dropped_total", {"level": "info"}) == 2
    assert value("django_obs_log_records_failed_total") == 0
    assert value("django_obs_log_records_queued") == 3
    assert value("django_obs_spans_exported_total") == 7
    assert value("django_obs_spans_failed_total") == 4
    assert value("django_obs_spans_sampled_out_total") == 9
    logs.counts.update(written=6, queued=0)
    health.sample()
    assert value("django_obs_log_records_written_total") == 6
    assert value("django_obs_log_records_queued") == 0
    assert value("django_obs_log_records_dropped_total", {"level": "info"}) == 2


def test_pipeline_that_began_again_counts_from_nothing() -> None:
    registry = CollectorRegistry()
    logs = Counted("logs", written=5)
    health = PipelineHealth(Catalogue(latency_buckets=(), registry=registry), [logs])
    health.sample()
    logs.counts.update(written=2)
    health.sample()
    assert registry.get_sample_value("django_obs_log_records_written_total") == 7


def test_pauses_of_older_generations_are_timed_once() -> None:
    registry = CollectorRegistry()
    pauses = GarbagePauses(Catalogue(latency_buckets=(), registry=registry))

    def counted(generation: int) -> float:
        return registry.get_sample_value("python_gc_pause_seconds_count", {"generation": str(generation)}) or 0.0

    # Another test may have left the one of its process, and a series of one name is one in all registries.
    others = [callback for callback in gc.callbacks if isinstance(callback, GarbagePauses)]
    gc.disable()
    try:
        for other in others:
            other.remove()
        before = [counted(generation) for generation in (0, 1, 2)]
        pauses.install()
        pauses.install()
        assert gc.callbacks.count(pauses) == 1
        for generation in (0, 1, 2):
            gc.collect(generation)
        pauses.remove()
        gc.collect()
        assert [counted(generation) - before[generation] for generation in (0, 1, 2)] == [0, 1, 1]
    finally:
        pauses.remove()
        for other in others:
            other.install()
        gc.enable()

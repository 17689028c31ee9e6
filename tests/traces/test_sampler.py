from __future__ import annotations

import random

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from django_obs.traces.sampler import KeepRule, RatioSampler


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_ratio_chooses_the_same_traces_as_the_sdk(ratio: float) -> None:
    ours, official = RatioSampler(ratio), TraceIdRatioBased(ratio)
    generator = random.Random(1)
    for _ in range(2000):
        trace_id = generator.getrandbits(128)
        expected = official.should_sample(None, trace_id, "s").decision.is_sampled()
        assert ours.sampled(None, trace_id, "s", {}) is expected


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        RatioSampler(ratio)


@pytest.mark.parametrize(
    ("errors", "slower_than", "any_rule"), [(False, None, False), (True, None, True), (False, 1.0, True)]
)
def test_rule_knows_whether_it_keeps_anything(errors: bool, slower_than: float | None, any_rule: bool) -> None:
    assert bool(KeepRule(errors, slower_than)) is any_rule


def test_zero_seconds_keep_everything() -> None:
    assert KeepRule(False, 0.0).slower_than_ns == 0

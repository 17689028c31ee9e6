from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_obs.server.console.quantile import INFINITY, quantile

BOUNDS = (0.1, 0.5, 1.0, INFINITY)


@pytest.mark.parametrize(
    ("q", "cells", "expected"),
    [
        # All in the first bucket: it begins at zero.
        (0.5, [10, 0, 0, 0], 0.05),
        (0.5, [0, 10, 0, 0], 0.3),
        (0.5, [5, 5, 0, 0], 0.1),
        (0.75, [5, 5, 0, 0], 0.3),
        (0.95, [90, 0, 10, 0], 0.75),
        # Beyond the last bound nothing is known but that.
        (0.99, [1, 0, 0, 9], 1.0),
        (0.0, [0, 4, 0, 0], 0.1),
        (1.0, [0, 4, 0, 0], 0.5),
        # Empty buckets in between are passed over.
        (0.5, [1, 0, 1, 0], 0.1),
    ],
)
def test_quantile_is_interpolated_within_its_bucket(q: float, cells: list[float], expected: float) -> None:
    assert quantile(q, BOUNDS, cells) == pytest.approx(expected)


def test_nothing_observed_has_no_quantile() -> None:
    assert quantile(0.5, BOUNDS, [0, 0, 0, 0]) is None
    assert quantile(0.5, (INFINITY,), [3]) is None


def test_bucket_below_zero_begins_nowhere_else() -> None:
    assert quantile(0.5, (-1.0, 1.0, INFINITY), [2, 0, 0]) == -1.0


@given(st.floats(0, 1), st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_quantile_lies_in_the_bucket_of_its_rank(q: float, cells: list[float]) -> None:
    value = quantile(q, BOUNDS, cells)

    if not sum(cells):
        assert value is None
        return
    assert value is not None
    below = sum(cell for cell, bound in zip(cells, BOUNDS, strict=True) if bound < value)
    assert below <= q * sum(cells) + 1e-9


def test_quantiles_are_those_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("service promtool: not installed")
    cells = [3.0, 40.0, 7.0, 2.0]
    series = []
    for i, bound in enumerate(("0.1", "0.5", "1", "+Inf")):
        series.append(f'  - series: \'d_bucket{{le="{bound}"}}\'\n    values: "{sum(cells[: i + 1])}"')
    cases = [
        # But for the last bits of a float.
        f"  - expr: abs(histogram_quantile({q}, d_bucket) - {quantile(q, BOUNDS, cells)}) < bool 1e-12\n"
        "    eval_time: 0\n    exp_samples:\n    - labels: '{}'\n      value: 1"
        for q in (0.01, 0.05, 0.25, 0.5, 0.9, 0.95, 0.97)
    ]
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "tests:\n- interval: 1m\n  input_series:\n" + "\n".join(series) + "\n  promql_expr_test:\n" + "\n".join(cases)
    )

    done = subprocess.run([promtool, "test", "rules", rules], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("DJANGO_PROMETHEUS_CHECKOUT")

# Argued in docs/metrics.md.
EXCEPTIONS = (
    # A failing request is observed once, not twice.
    "test_middleware.py::TestMiddlewareMetrics::test_exception_latency_histograms",
    # A stream is counted when it is over, and this one is never read.
    "test_middleware.py::TestMiddlewareMetrics::test_streaming_responses",
)
# They test how its classes are subclassed, and a function of its own.
INTERNALS = ("test_middleware_custom_labels.py", "test_migrations.py")


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="DJANGO_PROMETHEUS_CHECKOUT names no checkout of django-prometheus")
@pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="its tests import redis")
@pytest.mark.parametrize("mode", ["beside", "alone"])
def test_tests_of_django_prometheus_pass(tmp_path: Path, mode: str) -> None:
    """Beside its own middleware and backends, on our store; and alone, on our middleware and Django's backends."""
    if mode == "beside" and importlib.util.find_spec("django_prometheus") is None:
        pytest.skip("django-prometheus is not installed")
    project = tmp_path / "project"
    shutil.copytree(Path(str(CHECKOUT)) / "django_prometheus" / "tests" / "end2end", project)
    left_out = []
    if mode == "alone":
        left_out = [f"--deselect=testapp/{test}" for test in EXCEPTIONS]
        left_out += [f"--ignore=testapp/{file}" for file in INTERNALS]
    run = subprocess.run(
        [
            sys.executable,
            # Caches that need a server are not among the settings.
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", "-k"),
            "not redis and not memcached",
            *left_out,
            "testapp",
        ],
        cwd=project,
        env={
            **os.environ,
            "CONFORMANCE": mode,
            "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "runtime"),
            "DJANGO_SETTINGS_MODULE": "tests.conformance.django_prometheus_settings",
            "PYTHONPATH": os.pathsep.join([str(project), str(Path(__file__).parents[2])]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

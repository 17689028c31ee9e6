from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("OPENTELEMETRY_PYTHON_CONTRIB_CHECKOUT")
TESTS = "instrumentation/opentelemetry-instrumentation-django/tests"


@pytest.mark.skipif(
    CHECKOUT is None, reason="OPENTELEMETRY_PYTHON_CONTRIB_CHECKOUT names no checkout of opentelemetry-python-contrib"
)
@pytest.mark.parametrize("provider", ["ours", "another"])
def test_the_official_suite_passes_against_our_instrumentor(tmp_path: Path, provider: str) -> None:
    # Under another name than that of our own tests.
    copy = tmp_path / "official"
    shutil.copytree(Path(str(CHECKOUT)) / TESTS, copy)
    environ = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    if provider == "another":
        environ["FOREIGN_PROVIDER"] = "1"
    run = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "tests.conformance.django_plugin", "-p", "no:cacheprovider"),
            *("-p", "no:django", "-c", os.devnull, "--rootdir", str(tmp_path), str(copy)),
        ],
        cwd=Path(__file__).parents[2],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

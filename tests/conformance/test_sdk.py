from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("OPENTELEMETRY_PYTHON_CHECKOUT")
FILES = ("test_trace.py", "test_span_processor.py", "test_globals.py", "export", "propagation")


@pytest.mark.skipif(CHECKOUT is None, reason="OPENTELEMETRY_PYTHON_CHECKOUT names no checkout of opentelemetry-python")
def test_the_sdks_own_span_tests_pass_against_our_spans(tmp_path: Path) -> None:
    tests = Path(str(CHECKOUT)) / "opentelemetry-sdk" / "tests" / "trace"
    # A copy, so that neither its conftest nor its package name gets in the way of ours.
    copy = tmp_path / "trace"
    subprocess.run(["cp", "-r", str(tests), str(copy)], check=True)
    run = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "tests.conformance.sdk_plugin", "-p", "no:cacheprovider", "-p", "no:django"),
            *("-c", os.devnull, "--rootdir", str(tmp_path)),
            # Some of them measure time, which a machine that is busy has not.
            *("--reruns", "3"),
            *(str(copy / name) for name in FILES),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

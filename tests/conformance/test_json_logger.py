from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("PYTHON_JSON_LOGGER_CHECKOUT")


@pytest.mark.skipif(CHECKOUT is None, reason="PYTHON_JSON_LOGGER_CHECKOUT names no checkout of python-json-logger")
@pytest.mark.skipif(importlib.util.find_spec("freezegun") is None, reason="their tests need freezegun")
def test_the_tests_of_python_json_logger_pass_against_our_formatter(tmp_path: Path) -> None:
    # A copy, as their package of tests is called like ours.
    shutil.copy(Path(str(CHECKOUT)) / "tests" / "test_formatters.py", tmp_path)
    run = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "tests.conformance.json_logger_plugin"),
            *("-p", "no:cacheprovider", "-p", "no:django", "-c", os.devnull, "--rootdir", str(tmp_path)),
            str(tmp_path / "test_formatters.py"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

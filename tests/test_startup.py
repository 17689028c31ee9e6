"""What every process has to wait for, a one-off command above all, counted rather than timed.

``python -m tests.test_startup`` records the calls anew in test_startup.json, for the interpreter that runs it. Do so
when what they do is worth it, and say in the commit what that is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.test_budget import growth

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(__file__).with_suffix(".json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Versions of Django differ a little in what they call, and each module that is imported early is one less later.
TOLERANCE = 1.1

# The encoder of lines, and the class that the formatter is a subclass of.
THIRD_PARTY = {"orjson", "pythonjsonlogger"}
# The check looks into this namespace: is there an exporter? Its portions have no code.
NAMESPACE = "opentelemetry.exporter"


@cache
def started(with_us: bool) -> dict:
    """Run ``manage.py check`` in a new project."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "DJANGO_", "COVERAGE_", "COV_"))
    }
    with TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-m", "django", "startproject", "shop", directory],
            env=environ,
            check=True,
            timeout=60,
        )
        if with_us:
            with open(f"{directory}/shop/settings.py", "a") as settings:
                settings.write('INSTALLED_APPS = ["django_obs", *INSTALLED_APPS]\n')
        done = subprocess.run(
            [sys.executable, "-m", "tests.startup_site"],
            cwd=directory,
            env=environ
            | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "DJANGO_SETTINGS_MODULE": "shop.settings"}
            | {"PYTHONDEVMODE": "", "DJANGO_OBS_RUNTIME_DIR": f"{directory}/run"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not os.path.exists(f"{directory}/run")
    last = done.stderr.strip().rpartition("\n")[2]
    assert last.startswith("{"), done.stderr
    return json.loads(last)


def brought() -> set[str]:
    """Return the modules that a command imports because of us."""
    return set(started(True)["modules"]) - set(started(False)["modules"])


def added() -> int:
    """Return the Python calls that a command makes because of us."""
    return sum(started(True)["calls"].values()) - sum(started(False)["calls"].values())


def by_file() -> dict[str, int]:
    """Return the calls that each file of ours makes, directly or not."""
    return {file: number for file, number in started(True)["calls"].items() if file}


def test_command_imports_no_third_party_but_what_writes_its_lines() -> None:
    standard = set(started(True)["stdlib"])
    foreign = {name for name in brought() if name.partition(".")[0] not in standard | {"django_obs", "shop"}}

    found = {name for name in foreign if name != "opentelemetry" and not name.startswith(NAMESPACE)}
    assert {name.partition(".")[0] for name in found} == THIRD_PARTY


def test_command_imports_nothing_of_ours_that_only_servers_and_workers_need() -> None:
    ours = {name for name in brought() if name.startswith("django_obs.")}

    assert not {name for name in ours if name.startswith("django_obs.traces")}
    assert {name for name in ours if name.startswith("django_obs.metrics.")} == {
        "django_obs.metrics.arrival",
        "django_obs.metrics.peers",
        "django_obs.metrics.pipeline",
    }
    assert not {name for name in ours if name.startswith(("django_obs.server", "django_obs.log_export"))}


@pytest.mark.skipif(sys.gettrace() is not None or "coverage" in sys.modules, reason="somebody else counts here")
def test_command_makes_no_more_calls_because_of_us_than_recorded() -> None:
    figures = json.loads(RECORDED.read_text())
    if VERSION not in figures:
        pytest.skip(f"nothing is recorded for Python {VERSION}; `python -m tests.test_startup` does it")
    recorded = figures[VERSION]

    assert added() <= recorded["added"] * TOLERANCE, (
        f"{added()} Python calls, {recorded['added']} are recorded:{growth(recorded['files'], by_file())}"
    )


def record() -> None:
    figures = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    figures[VERSION] = {"added": added(), "files": by_file()}
    RECORDED.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()

"""What a request may cost, counted rather than timed: these figures are the same on every machine.

``python -m tests.test_budget`` records them anew in test_budget.json, for the interpreter that runs it. Do so when a
cost is worth what it buys, and say in the commit what that is.
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

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(__file__).with_suffix(".json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SIGNALS = ("LOGS", "TRACES", "METRICS")
STACKS = ("all", "logs", "traces", "metrics")
PAGES = ("trivial", "queries")
# Versions of Django and of the clients differ a little in what they call.
TOLERANCE = 1.04

pytestmark = pytest.mark.skipif(
    sys.gettrace() is not None or "coverage" in sys.modules, reason="somebody else counts here"
)


@cache
def measured(stack: str) -> dict:
    """Count what each request costs with all signals, or with one."""
    with TemporaryDirectory() as directory:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_OBS"))}
        variables |= {
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",
            "DJANGO_OBS_RUNTIME_DIR": directory,
            "DJANGO_OBS_TRACES_INSTRUMENT": "",
            "DJANGO_OBS_LOGS_FORMAT": "json",
        }
        variables |= {
            f"DJANGO_OBS_{signal}_ENABLED": str(stack in ("all", signal.lower())).lower() for signal in SIGNALS
        }
        process = subprocess.run(
            [sys.executable, "-m", "tests.budget_site"],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    last = process.stderr.strip().rpartition("\n")[2]
    assert last.startswith("{"), process.stderr
    return json.loads(last)


def recorded(stack: str, page: str) -> dict:
    figures = json.loads(RECORDED.read_text())
    if VERSION not in figures:
        pytest.skip(f"nothing is recorded for Python {VERSION}; `python -m tests.test_budget` does it")
    return figures[VERSION][stack][page]


def growth(before: dict[str, float], after: dict[str, float]) -> str:
    """Name the functions that brought more instructions, the worst first."""
    grown = {name: number - before.get(name, 0) for name, number in after.items() if number > before.get(name, 0)}
    worst = sorted(grown.items(), key=lambda item: -item[1])[:12]
    return "".join(f"\n  {more:+8.1f} {name}" for name, more in worst)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("stack", STACKS)
def test_request_costs_no_more_than_recorded(stack: str, page: str) -> None:
    allowed, found = recorded(stack, page), measured(stack)[page]
    brought = growth(allowed["functions"], found["functions"])
    assert found["instructions"] <= allowed["instructions"] * TOLERANCE, f"bytecode instructions per request:{brought}"
    assert found["calls"] <= allowed["calls"] * TOLERANCE, f"Python calls per request:{brought}"
    # What the worker does for many requests in a row takes a fraction of what it would take each of them.
    own = found["own_instructions"]
    assert own <= allowed["own_instructions"] * TOLERANCE, (
        f"bytecode instructions in the request's own thread:{brought}"
    )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("stack", STACKS)
def test_request_leaves_nothing_behind(stack: str, page: str) -> None:
    # What Django and its database driver keep is theirs.
    found, without = measured(stack)[page], measured("none")[page]
    assert found["kept"] < without["kept"] + 0.5, "memory blocks per request, after delivery"
    assert found["descriptors"] == 0


def test_request_makes_no_query_of_ours() -> None:
    assert measured("all")["trivial"]["queries"] == 0
    assert measured("all")["queries"]["queries"] == 3


def test_start_opens_nothing() -> None:
    assert measured("all")["opened"] == {"threads": 0, "descriptors": 0}


def record() -> None:
    found = {
        stack: {
            page: {
                key: measured(stack)[page][key] for key in ("own_instructions", "instructions", "calls", "functions")
            }
            for page in PAGES
        }
        for stack in STACKS
    }
    figures = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    figures[VERSION] = found
    RECORDED.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()

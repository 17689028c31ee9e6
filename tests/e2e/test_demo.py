from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import example_project
from example_project.demo.processes import Process, poll

ROOT = Path(example_project.__file__).parent.parent
# Seconds until the story is told, or all is put away: far more than it takes, for machines under load.
PATIENCE = 300
ANY_PORTS = ("--port=0", "--metrics-port=0", "--collector-port=0")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_", "XDG_"))}
    return {**inherited, "TMPDIR": str(temporary)}


@pytest.fixture
def running(tmp_path: Path, env: dict[str, str]) -> Iterator[Process]:
    command = [sys.executable, "-m", "example_project.demo", "--workers=2", *ANY_PORTS]
    with Process("demo", command, directory=tmp_path, env=env, cwd=ROOT) as process:
        yield process.wait_ready(lambda: "stays open" in process.said(), timeout=PATIENCE)


def tell_once(env: dict[str, str], *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "example_project.demo", "--once", "--workers=2", *ANY_PORTS, *options],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def processes_with(directory: str) -> list[str]:
    """Return the command lines of the processes that were started for a directory."""
    found = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if directory in line]


def assert_one_trace(told: str) -> None:
    match = re.search(r"All three tell of the trace ([0-9a-f]{32})\.", told)
    assert match is not None, told
    line, trace, samples = re.split(r"^\d\. ", told, flags=re.MULTILINE)[1:]
    assert f'"trace_id":"{match[1]}"' in line
    assert trace.count(" SERVER GET /") == 1
    assert trace.count("   CLIENT ") >= 3
    assert f'trace_id="{match[1]}"' in samples
    assert 'view="shop:index"' in samples


def test_demo_joins_line_trace_and_samples_by_one_trace_id(env: dict[str, str]) -> None:
    told = tell_once(env)

    if "collector does not start" in told:
        pytest.skip("service rotel: does not start here")
    assert "2. Its trace, as the collector received it" in told
    assert_one_trace(told)
    assert list(Path(env["TMPDIR"]).iterdir()) == []


def test_demo_without_collector_receives_the_spans_itself(env: dict[str, str]) -> None:
    told = tell_once(env, "--no-collector")

    assert "the demo receives the spans itself" in told
    assert "2. Its trace, as the demo received it" in told
    assert_one_trace(told)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_demo_leaves_no_process_and_no_file(
    running: Process, env: dict[str, str], signum: signal.Signals
) -> None:
    assert processes_with(env["TMPDIR"])

    running.popen.send_signal(signum)

    assert poll(lambda: not running.running, PATIENCE)
    assert running.popen.returncode == 0
    assert running.said().rstrip().endswith("Closed; nothing is left behind.")
    assert list(Path(env["TMPDIR"]).iterdir()) == []
    assert processes_with(env["TMPDIR"]) == []


def test_taken_port_is_named_and_replaced(env: dict[str, str], tmp_path: Path) -> None:
    with Process("taker", [sys.executable, "-u", "-m", "http.server", "0"], directory=tmp_path, env=env) as taker:
        taker.wait_ready(lambda: "port " in taker.said())
        port = taker.said().partition("port ")[2].partition(" ")[0]

        told = tell_once(env, f"--port={port}", "--no-collector")

    assert f"Port {port} is taken, so the shop gets " in told

"""Latency, requests per second and CPU time through gunicorn, and the memory of its workers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.collector import free_port, wait_for_port
from benchmarks.cpu import spread
from benchmarks.environments import python
from benchmarks.process import ROOT, Bench, environ
from benchmarks.report import LOAD
from benchmarks.stacks import Stack

SECONDS = 4
CONNECTIONS = 8
WORKERS = 2
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@contextmanager
def gunicorn(bench: Bench, stack: Stack):
    """Run gunicorn with two synchronous workers; yields its port and process."""
    port = free_port()
    command = [
        python(stack),
        "-m",
        "gunicorn",
        "benchmarks.project.wsgi",
        f"--workers={WORKERS}",
        f"--bind=127.0.0.1:{port}",
        "--log-level=warning",
    ]
    with open(bench.directory / f"{stack.name}.stderr", "ab") as stderr:
        process = subprocess.Popen(
            command, env=environ(bench, stack), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        wait_for_port(port, process)
        # A worker may have to compile before it answers at all.
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/trivial/")
        connection.getresponse().read()
        connection.close()
        yield port, process
    finally:
        process.terminate()
        process.wait(30)


def load(port: int, page: str, seconds: float) -> dict[str, float]:
    """Send requests with wrk; returns p50 and p99 in milliseconds, requests, and the same per second."""
    output = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}/{page}/"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures = {}
    for percentile in (50, 99):
        value, unit = re.search(rf"^ *{percentile}% +([\d.]+)(us|ms|s)$", output, re.MULTILINE).groups()
        figures[f"p{percentile}"] = float(value) * MILLISECONDS[unit]
    figures["rps"] = float(re.search(r"Requests/sec: +([\d.]+)", output)[1])
    figures["requests"] = int(re.search(r"(\d+) requests in ", output)[1])
    failures = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if failures:
        msg = f"{failures[1]} requests of {page} were not answered with 200"
        raise RuntimeError(msg)
    return figures


def latency(bench: Bench, stacks: list[Stack], pages: list[str], rounds: int) -> dict[str, dict]:
    """Measure under load: ``{stack: {page: {"p50", "p99", "rps", ...}}}``, each with median and quartiles.

    ``server`` and ``collector`` are microseconds of CPU per request, of gunicorn's workers and of the collector.
    """
    if not shutil.which("wrk"):
        sys.exit("latency is measured with wrk, which is not installed (Debian: apt-get install wrk)")
    samples: dict = {stack.name: {page: [] for page in pages} for stack in stacks}
    for _ in range(rounds):
        for stack in stacks:
            with gunicorn(bench, stack) as (port, process):
                for page in pages:
                    load(port, page, 1)
                    pids = {"server": children(process.pid), "collector": [bench.collector.pid]}
                    before = {name: cpu_time(*each) for name, each in pids.items()}
                    figures = load(port, page, SECONDS)
                    for name, each in pids.items():
                        figures[name] = (cpu_time(*each) - before[name]) * 1e6 / figures["requests"]
                    samples[stack.name][page].append(figures)
    return {
        name: {
            page: {key: spread([sample[key] for sample in taken]) for key in LOAD} for page, taken in by_page.items()
        }
        for name, by_page in samples.items()
    }


def memory(bench: Bench, stacks: list[Stack], rounds: int) -> dict[str, dict[str, float]]:
    """Measure a worker's memory after some hundred requests, in MB of PSS: shared pages count for their share."""
    samples: dict[str, list[float]] = {stack.name: [] for stack in stacks}
    # The first round fills the cache of bytecode, and does not count.
    for number in range(rounds + 1):
        for stack in stacks:
            with gunicorn(bench, stack) as (port, process):
                for page in ("trivial", "page", "api", "queries"):
                    load(port, page, 1)
                if number:
                    samples[stack.name] += [pss(child) for child in children(process.pid)]
    return {name: spread(values) for name, values in samples.items()}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_time(*pids: int) -> float:
    """Return the seconds of CPU that all threads of these processes have taken so far, kernel included."""
    # The number of a process's clock, as clock_getcpuclockid() makes it. /proc counts in hundredths of a second.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def pss(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)[1]) / 1024

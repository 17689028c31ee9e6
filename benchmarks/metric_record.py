"""Cost of one record: prometheus_client alone, its multiprocess mode, and lanes.

    python -m benchmarks.metric_record [rounds]

Each variant runs in a process of its own, since a process has one value class; the three take turns, record by record
and round by round, so that the machine's mood meets all of them. Printed is CPU time in ns: the best and, in brackets,
the median of the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

VARIANTS = ("alone", "multiprocess", "lanes")
# What each record must be faster than the multiprocess mode, at least.
TARGETS = {"Counter.inc()": 9, "labels(a, b, c).inc()": 9, "labels(x=, y=, z=).inc()": 9, "Histogram.observe(0.03)": 10}
NUMBER = 20_000


def measure(variant: str, directory: str) -> None:
    """Say which records there are, then answer each name on stdin with its cost in ns."""
    if variant == "multiprocess":
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from prometheus_client import Counter, Gauge, Histogram

    if variant == "lanes":
        from django_obs.metrics.adoption import install
        from django_obs.metrics.store import Store

        install(Store(lambda: Path(directory)))
    counter = Counter("bench_requests", "Requests")
    labelled = Counter("bench_responses", "Responses", ["x", "y", "z"])
    gauge = Gauge("bench_active", "Active", multiprocess_mode="livesum")
    buckets = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 25, 50, 75)
    histogram = Histogram("bench_seconds", "Seconds", buckets=buckets)
    by_view = Histogram("bench_view_seconds", "Seconds", ["view", "method"], buckets=buckets)
    child = labelled.labels("GET", "shop", "200")
    statements = {
        "Counter.inc()": "counter.inc()",
        "prebound child.inc()": "child.inc()",
        "labels(a, b, c).inc()": "labelled.labels('GET', 'shop', '200').inc()",
        "labels(x=, y=, z=).inc()": "labelled.labels(x='GET', y='shop', z='200').inc()",
        "Gauge.inc()": "gauge.inc()",
        "Gauge.set(4.2)": "gauge.set(4.2)",
        "Histogram.observe(0.03)": "histogram.observe(0.03)",
        "Histogram.observe(8.0)": "histogram.observe(8.0)",
        "labels(view=, method=).observe(0.03)": "by_view.labels(view='shop', method='GET').observe(0.03)",
    }
    names = {
        "counter": counter, "child": child, "labelled": labelled, "gauge": gauge,
        "histogram": histogram, "by_view": by_view,
    }  # fmt: skip
    timers = {
        name: timeit.Timer(statement, timer=time.process_time, globals=names) for name, statement in statements.items()
    }
    for timer in timers.values():
        timer.timeit(1000)
    print(json.dumps(list(timers)), flush=True)
    for line in sys.stdin:
        print(timers[line.rstrip("\n")].timeit(NUMBER) / NUMBER * 1e9, flush=True)


def ask(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline()


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        processes = {}
        for variant in VARIANTS:
            path = Path(directory, variant)
            path.mkdir()
            processes[variant] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.metric_record", "--measure", variant, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        names: list[str] = [json.loads(ask(process)) for process in processes.values()].pop()
        figures: dict[str, dict[str, list[float]]] = {variant: {name: [] for name in names} for variant in VARIANTS}
        for _ in range(rounds):
            for name in names:
                for variant, process in processes.items():
                    figures[variant][name].append(float(ask(process, name)))
        for process in processes.values():
            process.communicate()
    print(f"CPython {platform.python_version()}, {platform.machine()}, {rounds} rounds; ns, best (median)\n")
    print(f"| {'record':38} | {'alone':>11} | {'multiprocess':>12} | {'lanes':>11} | ratio, best (median) | target |")
    print(f"|{'-' * 40}|{'-' * 13}|{'-' * 14}|{'-' * 13}|{'-' * 22}|{'-' * 8}|")
    for name in figures["lanes"]:
        best = {variant: min(figures[variant][name]) for variant in VARIANTS}
        median = {variant: statistics.median(figures[variant][name]) for variant in VARIANTS}
        cells = [f"{best[variant]:.0f} ({median[variant]:.0f})" for variant in VARIANTS]
        ratio = f"{best['multiprocess'] / best['lanes']:.1f}x ({median['multiprocess'] / median['lanes']:.1f}x)"
        target = f"{TARGETS[name]}x" if name in TARGETS else ""
        print(f"| {name:38} | {cells[0]:>11} | {cells[1]:>12} | {cells[2]:>11} | {ratio:>20} | {target:>6} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:4])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 15)

"""Whether a stack does what it is measured for: lines, spans and samples of some requests, counted where they arrive.

A stack that writes to a closed pipe, samples nothing out of caution or lost its exporter's address is fast, too.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.collector import Collector
from benchmarks.process import Bench, driver
from benchmarks.receiver import receiver
from benchmarks.stacks import Stack

COUNT = 20
QUERIES = {"trivial": 0, "page": 3, "queries": 30, "api": 1, "failing": 1, "async": 0}


def delivered(bench: Bench, stack: Stack, pages: list[str], server: str) -> dict[str, dict[str, float]]:
    """Serve each page some times; returns by page the lines, spans, samples and bytes that arrived, per request.

    Raises RuntimeError if a stack with a signal has not delivered it for every request.
    """
    found: dict[str, dict[str, float]] = {}
    for page in pages:
        output = Path(bench.directory) / "stdout"
        with receiver() as receiving:
            checked = replace(bench, collector=Collector(receiving.url, os.getpid()), sink=receiving.url)
            with driver(checked, stack, server=server, stdout=output) as process:
                status = process.serve(page, COUNT)["status"]
                samples = process.serve("?", 0)["samples"]
        lines = sum(b'"' in line and f"/{page}/".encode() in line for line in output.read_bytes().splitlines())
        kinds = receiving.kinds
        found[page] = {
            "status": status,
            "lines": lines / COUNT,
            "server spans": kinds["SERVER"] / COUNT,
            "client spans": kinds["CLIENT"] / COUNT,
            "samples": samples / COUNT,
            "bytes": receiving.bytes / COUNT,
        }
        expected = {"status": 500 if page == "failing" else 200}
        if "logs" in stack.signals:
            expected["lines"] = 1
        if "traces" in stack.signals:
            expected |= {"server spans": 1, "client spans": QUERIES[page]}
        if "metrics" in stack.signals:
            expected["samples"] = 1
        missing = {name: found[page][name] for name, wanted in expected.items() if found[page][name] < wanted}
        if missing:
            msg = f"{stack.name} did not deliver for each request of {page}: {missing}, of {expected}"
            raise RuntimeError(msg)
    return found

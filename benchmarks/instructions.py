"""Instructions per request under callgrind: user mode, all threads, encoding and delivery included.

Each page is served two numbers of times, and what each request more takes is what a request takes. So what a delivery
costs whatever is in it (a POST, a flush) is no part of a request: it comes once in some seconds and is told apart.

The count repeats for the same process, but not for one that differs in anything: CPython caches looked-up attributes in
a table of 4096 places, chosen by the versions of types and the addresses of names, and which of the hot ones are in
each other's way is chance. So each stack is counted in several layouts, by types and strings made before anything else.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.cpu import spread
from benchmarks.process import Bench, driver
from benchmarks.stacks import Stack

# Timers of background threads are put off until after the count: their jobs take millions of instructions, and would
# fall into the one window or the other by chance. A delivery at the end of each window does their work.
STRETCH = 10_000.0
# The smaller of the two numbers of requests; the greater one is five times that.
COUNTS = {"trivial": 60, "async": 30, "failing": 20, "api": 20, "page": 10, "queries": 8}
MORE = 5


def instructions(
    bench: Bench, stack: Stack, pages: list[str], server: str, layouts: int
) -> tuple[dict[str, dict[str, float]], float]:
    """Count the instructions that a request for each of the pages takes, and those of a delivery.

    Returns ``{page: {"median", "low", "high"}}``, low and high the quartiles of the layouts, and the delivery.
    """
    samples: dict[str, list[float]] = {page: [] for page in pages}
    rest: list[float] = []
    for layout in range(layouts):
        totals = iter(count(bench, stack, pages, server, layout))
        for page, few, many in zip(pages, totals, totals, strict=True):
            each = (many - few) / (COUNTS[page] * (MORE - 1))
            samples[page].append(each)
            rest.append(few - each * COUNTS[page])
    return {page: spread(values) for page, values in samples.items()}, median(rest)


def count(bench: Bench, stack: Stack, pages: list[str], server: str, layout: int) -> list[int]:
    """Run the driver in a layout and return the instructions of each window: few and many requests of each page."""
    with TemporaryDirectory(dir=bench.directory) as directory:
        out = Path(directory) / "callgrind"
        wrapper = (
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={out}",
        )
        with driver(bench, stack, server=server, wrapper=wrapper, stretch=STRETCH, layout=layout) as process:
            for page in pages:
                process.warm(page, 30)
            for page in pages:
                process.serve(page, COUNTS[page])
                process.serve(page, COUNTS[page] * MORE)
        counted = sorted(Path(directory).glob("callgrind.*"), key=lambda path: int(path.suffix[1:]))
        # Not "summary", which is of the thread that asks: lines are written and spans delivered by others.
        return [int(re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)[1]) for path in counted]

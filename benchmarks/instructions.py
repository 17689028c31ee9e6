"""Instructions per request under callgrind: user mode, all threads, encoding and delivery included.

Each page is served two numbers of times, and what each request more takes is what a request takes. So what a delivery
costs whatever is in it (a POST, a flush) is no part of a request: it comes once in some seconds and is told apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.process import Bench, driver
from benchmarks.stacks import Stack

# How much slower callgrind makes a program, and so by how much timers of background threads have to be stretched.
STRETCH = 50.0
# The smaller of the two numbers of requests, and how many times that the greater one is. Jobs of background threads
# fall into the one or the other by chance: the difference has to be large against ten million instructions a job.
COUNTS = {"trivial": 150, "async": 60, "failing": 60, "api": 50, "page": 30, "queries": 20}
MORE = 7


def instructions(bench: Bench, stack: Stack, pages: list[str], server: str) -> tuple[dict[str, float], float]:
    """Count the instructions that a request for each of the pages takes, and those of a delivery."""
    with TemporaryDirectory(dir=bench.directory) as directory:
        out = Path(directory) / "callgrind"
        wrapper = (
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={out}",
        )
        with driver(bench, stack, server=server, wrapper=wrapper, stretch=STRETCH) as process:
            for page in pages:
                process.warm(page, 30)
            for page in pages:
                process.serve(page, COUNTS[page])
                process.serve(page, COUNTS[page] * MORE)
        counted = sorted(Path(directory).glob("callgrind.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)[1]) for path in counted]
    each: dict[str, float] = {}
    rest: list[float] = []
    for page, few, many in zip(pages, totals[::2], totals[1::2], strict=True):
        each[page] = (many - few) / (COUNTS[page] * (MORE - 1))
        rest.append(few - each[page] * COUNTS[page])
    return each, rest[0]

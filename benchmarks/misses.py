"""Misses of the second-level cache per request: what code that runs once in a while costs beside its instructions.

Run: ``python -m benchmarks.misses [--pages page] [--stacks bare,django_obs] [--cache 2097152,16,64]``. Callgrind
simulates first-level caches of 32 and 48 KiB and the given one behind them (bytes, ways, bytes a line). Prints, for
each page and stack, misses of instructions, of reads and of writes, all threads and delivery included.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.instructions import COUNTS, STRETCH
from benchmarks.process import Bench, driver, sqlite_bench
from benchmarks.stacks import STACKS, Stack

# The smaller number of requests, and by what it is multiplied for the greater one: as in benchmarks.instructions, what
# is not of a request falls out of the difference.
MORE = 4


def misses(bench: Bench, stack: Stack, page: str, cache: str) -> list[float]:
    """Return the misses that a request more brings: of instructions, reads and writes."""
    with TemporaryDirectory(dir=bench.directory) as directory:
        out = Path(directory) / "callgrind"
        wrapper = (
            *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"),
            *("--cache-sim=yes", "--I1=32768,8,64", "--D1=49152,12,64", f"--LL={cache}"),
        )
        with driver(bench, stack, wrapper=wrapper, stretch=STRETCH) as process:
            process.warm(page, 20)
            process.serve(page, COUNTS[page])
            process.serve(page, COUNTS[page] * MORE)
        few, many = (
            [int(each) for each in re.search(r"^totals: (.*)", path.read_text(), re.MULTILINE)[1].split()[-3:]]
            for path in (Path(f"{out}.1"), Path(f"{out}.2"))
        )
    return [(more - less) / (COUNTS[page] * (MORE - 1)) for less, more in zip(few, many, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.misses")
    parser.add_argument("--pages", default="page", help="comma-separated")
    parser.add_argument("--stacks", default="bare,stock,django_obs", help="comma-separated")
    parser.add_argument("--cache", default="2097152,16,64", help="second-level cache: bytes, ways, bytes a line")
    options = parser.parse_args()
    with sqlite_bench() as bench:
        for page in options.pages.split(","):
            for stack in options.stacks.split(","):
                found = misses(bench, STACKS[stack], page, options.cache)
                print(f"{page:8} {stack:12} {sum(found):7.0f} =", " + ".join(f"{each:.0f}" for each in found))


if __name__ == "__main__":
    main()

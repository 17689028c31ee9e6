"""CPU time of one page over many lives of each process: what `benchmarks.cpu` says, to a quarter of a percent.

Run: ``python -m benchmarks.lives [--page page] [--stacks bare,django_obs] [--lives 32]``. Where a process happens to
have its memory makes it some percent slower or faster as long as it lives, and what else the machine does makes each
moment so. In each life short stretches of requests go from stack to stack, in a random order, and the fastest third of
them counts. Deliveries happen when they are due. Prints what each stack adds to the first one: the mean over the lives,
and its standard error.
"""

from __future__ import annotations

import argparse
import random
from contextlib import ExitStack
from math import sqrt
from statistics import mean, stdev

from benchmarks.process import Bench, driver, sqlite_bench
from benchmarks.stacks import STACKS

STRETCHES = 24
REQUESTS = {"trivial": 200, "failing": 60, "api": 100, "page": 20, "queries": 10}


def live(bench: Bench, stacks: list[str], page: str, number: int) -> dict[str, float]:
    """Start each stack once; returns microseconds per request."""
    samples: dict[str, list[float]] = {name: [] for name in stacks}
    order = random.Random(number)
    with ExitStack() as exits:
        drivers = {name: exits.enter_context(driver(bench, STACKS[name], layout=number)) for name in stacks}
        for process in drivers.values():
            process.warm(page, 100)
        for _ in range(STRETCHES):
            for name in order.sample(stacks, len(stacks)):
                samples[name].append(drivers[name].serve(f"+{page}", REQUESTS[page])["cpu"] * 1e6)
    return {name: mean(sorted(taken)[: STRETCHES // 3]) for name, taken in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lives")
    parser.add_argument("--page", default="page", choices=REQUESTS)
    parser.add_argument(
        "--stacks", default="bare,django_obs", help="comma-separated; the first is what the others add to"
    )
    parser.add_argument("--lives", type=int, default=32)
    options = parser.parse_args()
    stacks = options.stacks.split(",")
    with sqlite_bench() as bench:
        lives = [live(bench, stacks, options.page, number) for number in range(options.lives)]
    for stack in stacks:
        added = [(each[stack] / each[stacks[0]] - 1) * 100 for each in lives]
        error = stdev(added) / sqrt(len(added))
        taken = mean(each[stack] for each in lives)
        print(f"{options.page} {stack:16} {taken:8.1f} us {mean(added):+7.2f} % +- {error:.2f}")


if __name__ == "__main__":
    main()

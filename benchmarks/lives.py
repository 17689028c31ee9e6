"""CPU time of one page over many lives of each process: what `benchmarks.cpu` says, to half a percent.

Run: ``python -m benchmarks.lives [--page page] [--stacks bare,django_obs] [--lives 32]``. Where a process happens to
have its memory makes it some percent slower or faster as long as it lives, and what else the machine does makes each
moment so. In each life stretches of requests go from stack to stack, in a random order. They take half a second, so
that each has its share of what threads do by the clock. Of the serving thread the fastest third of them counts, of
other threads the mean, since a delivery is due every five seconds only; one that falls due while another stack is
served is missed, a millisecond or two. Prints what each stack adds to the first one: the mean over the lives, and its
standard error; and what the project itself, other threads and collecting garbage take of the whole.
"""

from __future__ import annotations

import argparse
import random
from contextlib import ExitStack
from math import sqrt
from operator import attrgetter
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.process import Bench, driver, sqlite_bench
from benchmarks.stacks import STACKS

STRETCHES = 12
# In one stretch.
REQUESTS = {"trivial": 3000, "failing": 1000, "api": 600, "page": 100, "queries": 60}


class Taken(NamedTuple):
    """Microseconds per request."""

    own: float
    """Of the thread that serves."""
    inside: float
    """Of these, what passes behind the first middleware of the project, what telemetry does in there included."""
    others: float
    garbage: float
    """Of both, collecting garbage."""

    @property
    def together(self) -> float:
        """Of the process."""
        return self.own + self.others


def live(bench: Bench, stacks: list[str], page: str, number: int) -> dict[str, Taken]:
    """Start each stack once."""
    samples: dict[str, list[Taken]] = {name: [] for name in stacks}
    order = random.Random(number)
    with ExitStack() as exits:
        drivers = {
            name: exits.enter_context(driver(bench, STACKS[name], layout=number, stopwatch=True)) for name in stacks
        }
        for process in drivers.values():
            process.warm(page, 100)
        for _ in range(STRETCHES):
            for name in order.sample(stacks, len(stacks)):
                answer = drivers[name].serve(f"+{page}", REQUESTS[page])
                us = {what: seconds * 1e6 for what, seconds in answer.items()}
                samples[name].append(Taken(us["own"], us["inside"], us["cpu"] - us["own"], us["gc"]))
    return {name: summed_up(taken) for name, taken in samples.items()}


def summed_up(taken: list[Taken]) -> Taken:
    """Return the mean: of the fastest third of the stretches for the thread that serves, of all for the rest."""
    fastest = sorted(taken, key=attrgetter("own"))[: STRETCHES // 3]
    return Taken(
        mean(each.own for each in fastest),
        mean(each.inside for each in fastest),
        mean(each.others for each in taken),
        mean(each.garbage for each in taken),
    )


def standard_error(values: list[float]) -> float:
    """Return that of the mean; 0 of a single value, which tells of none."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


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
        added = [(each[stack].together / each[stacks[0]].together - 1) * 100 for each in lives]
        taken = mean(each[stack].together for each in lives)
        inside = mean(each[stack].inside for each in lives)
        others = mean(each[stack].others for each in lives)
        garbage = mean(each[stack].garbage for each in lives)
        print(
            f"{options.page} {stack:16} {taken:8.1f} us {mean(added):+7.2f} % +- {standard_error(added):.2f}"
            f"  (in the project {inside:.1f} us, other threads {others:.1f} us, garbage {garbage:.1f} us)"
        )


if __name__ == "__main__":
    main()

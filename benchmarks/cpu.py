"""CPU time per request: all threads of one process, delivery included, in interleaved rounds."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median, quantiles

from benchmarks.process import Bench, driver
from benchmarks.stacks import Stack

# Requests in one round, about what a worker can serve in half a second: short enough that a round of each stack meets
# the same weather. At the end of each is a delivery, which in production comes once in five seconds.
COUNTS = {"trivial": 2000, "async": 150, "failing": 600, "api": 500, "page": 100, "queries": 60}


# Where a process happens to have its memory makes it some percent slower or faster as long as it lives, which is more
# than what is to be measured: each stack is started so many times.
LAUNCHES = 8


def cpu(bench: Bench, stacks: list[Stack], pages: list[str], server: str, rounds: int) -> dict[str, dict[str, dict]]:
    """Measure microseconds per request: ``{stack: {page: {"median", "low", "high"}}}``, low and high the quartiles.

    A machine is faster now and slower then, and in one round all stacks meet it alike: ``added``, ``added_low`` and
    ``added_high`` are of the differences from the first stack within the rounds, whose own median is ``first``.
    """
    samples: dict[str, dict[str, list[float]]] = {stack.name: {page: [] for page in pages} for stack in stacks}
    launches = min(LAUNCHES, rounds)
    for launch in range(launches):
        with ExitStack() as exits:
            drivers = {
                stack.name: exits.enter_context(driver(bench, stack, server=server, layout=launch)) for stack in stacks
            }
            for page in pages:
                for process in drivers.values():
                    process.warm(page, 30)
                for _ in range(rounds * (launch + 1) // launches - rounds * launch // launches):
                    for name, process in drivers.items():
                        samples[name][page].append(process.serve(page, COUNTS[page])["cpu"] * 1e6)
    first = samples[stacks[0].name]
    return {
        name: {page: spread(values) | paired(values, first[page]) for page, values in by_page.items()}
        for name, by_page in samples.items()
    }


def paired(values: list[float], first: list[float]) -> dict[str, float]:
    """Summarise the differences of samples that were taken side by side."""
    found = spread([own - other for own, other in zip(values, first, strict=True)])
    return {"added": found["median"], "added_low": found["low"], "added_high": found["high"], "first": median(first)}


def spread(values: list[float]) -> dict[str, float]:
    """Summarise samples by their median and quartiles."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high}

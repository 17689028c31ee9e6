"""Where the time of a request goes: what each step of django_obs takes on the thread that serves it, in its place.

Run: ``python -m benchmarks.steps [--page page] [--lives 6]``. The steps are timed where they happen, so with caches as
the page leaves them; a step is timed in other processes than those that it is a part of. Prints microseconds per
request: the median of each step, times how often it happens, averaged over the lives, and its standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import wraps
from statistics import mean, median
from time import perf_counter_ns
from typing import Any

from benchmarks.lives import REQUESTS, standard_error
from benchmarks.process import driver, sqlite_bench
from benchmarks.stacks import STACKS

STRETCHES = 12
# What is timed together: no step is inside of another one, but for the whole.
RUNS = ("whole", "steps", "queries")
STEPS = {
    "open_request": "span of the request: opened, current",
    "request_started": "metrics: a request comes in",
    "request_finished": "metrics: it is over",
    "emit": "access line: queued",
    "close_request": "span of the request: ended, handed over",
    "leave": "span of the request: no longer current",
}


def watch(run: str) -> dict[str, list[int]]:
    """Time steps of this process from now on; returns where the nanoseconds of each call will be found."""
    from django_obs.instrumentation.database import MeasuredConnection
    from django_obs.logs.access import AccessLog
    from django_obs.metrics.instruments import RequestInstruments
    from django_obs.middleware import ObservabilityMiddleware
    from django_obs.traces.requests import RequestTracing

    taken: dict[str, list[int]] = {}

    # Not by way of the other one: what it does besides costs memory as cold as the step's, a quarter on top.
    def time(owner: type, name: str) -> None:
        step, times = getattr(owner, name), taken.setdefault(name, [])

        @wraps(step)
        def timed(*args: Any) -> Any:
            started = perf_counter_ns()
            try:
                return step(*args)
            finally:
                times.append(perf_counter_ns() - started)

        setattr(owner, name, timed)

    def time_around(owner: type, name: str, inside: Callable[[Any, Any], Any]) -> None:
        """Time a step less what it calls: ``inside(timer, arguments)`` puts the timer around that."""
        step, times = getattr(owner, name), taken.setdefault(name, [])

        @wraps(step)
        def timed(*args: Any) -> Any:
            within = 0

            def timer(called: Callable[..., Any]) -> Callable[..., Any]:
                def timed_call(*arguments: Any) -> Any:
                    nonlocal within
                    started = perf_counter_ns()
                    try:
                        return called(*arguments)
                    finally:
                        within = perf_counter_ns() - started

                return timed_call

            args = inside(timer, args)
            started = perf_counter_ns()
            try:
                return step(*args)
            finally:
                times.append(perf_counter_ns() - started - within)

        setattr(owner, name, timed)

    def around_view(timer: Any, args: Any) -> Any:
        middleware, _ = args
        view = vars(middleware).setdefault("view", middleware.get_response)
        middleware.get_response = timer(view)
        return args

    if run == "whole":
        time_around(ObservabilityMiddleware, "__call__", around_view)
    elif run == "queries":
        time_around(MeasuredConnection, "execute", lambda timer, args: (args[0], timer(args[1]), *args[2:]))
    else:
        for name in STEPS:
            time(next(owner for owner in (RequestTracing, RequestInstruments, AccessLog) if name in vars(owner)), name)
    return taken


def told(taken: dict[str, list[int]], requests: int) -> dict[str, float]:
    """Return the microseconds per request of each step since the last time."""
    found = {name: median(times) * len(times) / requests / 1000 for name, times in taken.items() if times}
    for times in taken.values():
        times.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("--page", default="page", choices=REQUESTS)
    parser.add_argument("--lives", type=int, default=6)
    options = parser.parse_args()
    lives: dict[str, list[float]] = {}
    with sqlite_bench() as bench:
        for number in range(options.lives):
            for run in RUNS:
                with driver(bench, STACKS["django_obs"], layout=number, steps=run) as process:
                    process.warm(options.page, 100)
                    stretches = [process.serve(f"+{options.page}", 50)["steps"] for _ in range(STRETCHES)]
                for name in stretches[0]:
                    lives.setdefault(name, []).append(median(stretch[name] for stretch in stretches))
    # A page without a query has none of this step.
    queries = lives.get("execute", [0.0] * options.lives)
    parts = [lives[name] for name in STEPS]
    around = [whole - sum(each) for whole, *each in zip(lives["__call__"], *parts, strict=True)]
    rows = {
        **{what: lives[name] for name, what in STEPS.items()},
        "queries: spans, metrics, counts": queries,
        "middleware around the steps": around,
        "together": [whole + query for whole, query in zip(lives["__call__"], queries, strict=True)],
    }
    for what, values in rows.items():
        print(f"{options.page:8} {what:42} {mean(values):6.1f} us +- {standard_error(values):.1f}")


if __name__ == "__main__":
    main()

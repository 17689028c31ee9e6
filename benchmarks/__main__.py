"""Run the benchmark and write its results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import plot, report
from benchmarks.collector import collector
from benchmarks.cpu import cpu
from benchmarks.database import database
from benchmarks.delivered import delivered
from benchmarks.instructions import instructions
from benchmarks.latency import latency, memory
from benchmarks.machine import machine
from benchmarks.process import Bench
from benchmarks.receiver import receiver
from benchmarks.stacks import OWN, STACKS
from benchmarks.startup import startup

RESULTS = Path(__file__).resolve().parent / "results"
WSGI_PAGES = ("trivial", "page", "queries", "api", "failing")
MEASURES = ("delivered", "instructions", "cpu", "latency", "memory", "startup")


def choices(allowed):
    def read(text: str) -> list[str]:
        chosen = list(allowed) if text == "all" else text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} should be one of {', '.join(allowed)}")
        return chosen

    return read


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what telemetry costs.")
    parser.add_argument("--stacks", type=choices(STACKS), default=list(OWN), help="comma-separated, or all")
    parser.add_argument("--pages", type=choices(report.TITLES), default=list(report.TITLES), help="or all")
    parser.add_argument("--measures", type=choices(MEASURES), default=list(MEASURES), help="or all")
    parser.add_argument("--databases", type=choices(("sqlite", "postgresql")), default=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the measures that vary")
    parser.add_argument("--layouts", type=int, default=5, help="memory layouts to count instructions in")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory; what was measured there before stays")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    options = arguments()
    stacks = [STACKS[name] for name in options.stacks]
    if STACKS["bare"] not in stacks:
        stacks.insert(0, STACKS["bare"])
    wsgi = [page for page in options.pages if page in WSGI_PAGES]
    asgi = [page for page in options.pages if page not in WSGI_PAGES]
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {"databases": {}}
    results["machine"] = machine()
    with TemporaryDirectory(prefix="benchmark-") as name:
        directory = Path(name)
        with collector(directory) as agent, receiver() as sink:
            for kind in options.databases:
                with database(kind, directory) as url:
                    bench = Bench(directory, url, agent, sink.url)
                    measures = results["databases"].setdefault(kind, {})
                    for measure, value in measured(bench, stacks, wsgi, asgi, options, kind):
                        merge(results if measure in ("memory", "startup") else measures, measure, value)
                        write(options.output, results)
    say((options.output / "results.md").read_text())


def measured(bench, stacks, wsgi, asgi, options, kind):
    for measure in options.measures:
        say(f"{kind}: {measure}")
        if measure == "delivered":
            for stack in stacks:
                counted = delivered(bench, stack, wsgi, "wsgi")
                if asgi and kind == "sqlite":
                    counted |= delivered(bench, stack, asgi, "asgi")
                yield measure, {stack.name: counted}
        elif measure == "instructions":
            for stack in stacks:
                say(f"  {stack.name}")
                counted: dict[str, dict[str, float]] = {}
                if wsgi:
                    counted, delivery = instructions(bench, stack, wsgi, "wsgi", options.layouts)
                    yield "delivery", {stack.name: {wsgi[0]: delivery}}
                if asgi and kind == "sqlite":
                    counted |= instructions(bench, stack, asgi, "asgi", options.layouts)[0]
                yield measure, {stack.name: counted}
        elif measure == "cpu":
            if wsgi:
                yield measure, cpu(bench, stacks, wsgi, "wsgi", options.rounds)
            if asgi and kind == "sqlite":
                yield measure, cpu(bench, stacks, asgi, "asgi", options.rounds)
        elif measure == "latency":
            yield measure, latency(bench, stacks, [p for p in ("trivial", "page") if p in wsgi], options.rounds)
        elif kind == options.databases[0]:
            run = memory if measure == "memory" else startup
            yield measure, run(bench, stacks, options.rounds)


def merge(results: dict, measure: str, value: dict) -> None:
    kept = results.setdefault(measure, {})
    for stack, figures in value.items():
        kept.setdefault(stack, {}).update(figures)


def write(output: Path, results: dict) -> None:
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "results.md").write_text(report.markdown(results))
    for kind, measures in results["databases"].items():
        for measure in ("instructions", "cpu"):
            if len(measures.get(measure, {})) > 1:
                figures = {
                    name: {page: value["median"] for page, value in by_page.items()}
                    for name, by_page in measures[measure].items()
                }
                heading = f"Added to a request, {report.UNITS[measure]}, {kind}"
                (output / f"{measure}-{kind}.svg").write_text(plot.svg(heading, figures))


if __name__ == "__main__":
    main()

"""Cost of one scrape: lanes against prometheus_client's multiprocess mode, with the same workers and the same samples.

    python -m benchmarks.scrape [workers] [alive]

`workers` processes in all record to 3724 series (51 views x 3 methods x 4 statuses and histograms of them), at most
`alive` of them at a time; the first ones end and make room, the last ones live while the scrape is measured. Then
another process scrapes both stores. Printed are files, bytes, CPU time and peak memory of the scrape, and whether the
samples are the same to the last one.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VIEWS, METHODS, STATUSES = 51, ("GET", "POST", "PUT"), ("200", "302", "404", "500")


def record(variant: str, directory: str, workers: int, alive: int) -> None:
    """Run the workers; print a line when `alive` of them are left, and end with stdin."""
    if variant == "multiprocess":
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from prometheus_client import Counter, Gauge, Histogram

    if variant == "lanes":
        from django_obs.metrics.adoption import install
        from django_obs.metrics.store import Store

        install(Store(lambda: Path(directory)))
    responses = Counter("bench_responses", "Responses", ["view", "method", "status"])
    seconds = Histogram("bench_seconds", "Seconds", ["view", "method"])
    active = Gauge("bench_active", "Active", multiprocess_mode="livesum")
    # 3724 sample lines: 612 counters, one gauge, and 183 histograms of 17 lines each.
    pairs = [(f"view{v}", method) for v in range(VIEWS) for method in METHODS]
    observed = pairs + [(f"task{n}", "RUN") for n in range(183 - len(pairs))]

    # Values that are exact in binary: so are their sums, in whatever order they are added.
    def work(seed: int) -> None:
        chance = random.Random(seed)
        for view, method in pairs:
            for status in STATUSES:
                responses.labels(view, method, status).inc(chance.randrange(10))
        for view, method in observed:
            seconds.labels(view, method).observe(chance.choice((0.0078125, 0.25, 8.0)))
        active.set(chance.randrange(4))

    living: list[tuple[int, int]] = []
    for n in range(workers):
        told, tell = os.pipe()
        wait, done = os.pipe()
        pid = os.fork()
        if not pid:
            work(n)
            os.write(done, b".")
            os.close(tell)
            for _, other in living:
                os.close(other)
            os.read(told, 1)
            os._exit(0)
        os.read(wait, 1)
        for fd in (told, wait, done):
            os.close(fd)
        living.append((pid, tell))
        if len(living) > alive or (n < workers - 1 and len(living) == alive):
            end(*living.pop(0), directory if variant == "multiprocess" else "")
    print(len(living), flush=True)
    sys.stdin.read()
    for pid, tell in living:
        end(pid, tell, "")


def end(pid: int, tell: int, directory: str) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(tell)
    if directory:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid, directory)


def scrape(variant: str, directory: str, rounds: int) -> None:
    """Print CPU times of scrapes, of their sums alone, peak memory, and the samples."""
    import resource

    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    if variant == "multiprocess":
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        collector = MultiProcessCollector(registry, directory)

        def page() -> str:
            return generate_latest(registry).decode()

        def total() -> object:
            return collector.collect()
    else:
        from django_obs.metrics.scraper import Scraper

        scraper = Scraper(lambda: Path(directory))
        page, total = scraper.text, scraper.read

    wholes, sums = [], []
    for _ in range(rounds):
        began = time.process_time()
        text = page()
        wholes.append(time.process_time() - began)
        began = time.process_time()
        total()
        sums.append(time.process_time() - began)
    samples = sorted(
        (s.name, sorted(s.labels.items()), s.value) for f in text_string_to_metric_families(text) for s in f.samples
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([wholes, sums, peak, samples]))


def main(workers: int, alive: int) -> None:
    results = {}
    print(f"CPython {platform.python_version()}, {platform.machine()}; {workers} workers, {alive} of them alive\n")
    print("| store        | files |       MB |   scrape, ms | of it the sum, ms | peak MB |")
    print("|--------------|-------|----------|--------------|-------------------|---------|")
    for variant, rounds in (("multiprocess", 1 if workers > 500 else 3), ("lanes", 30)):
        with tempfile.TemporaryDirectory() as directory:
            arguments = [sys.executable, "-m", "benchmarks.scrape"]
            recorder = subprocess.Popen(
                [*arguments, "--record", variant, directory, str(workers), str(alive)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert recorder.stdout is not None
            assert int(recorder.stdout.readline()) == min(alive, workers)
            files = list(Path(directory).iterdir())
            size = sum(path.stat().st_blocks for path in files) * 512 / 1e6
            done = subprocess.run(
                [*arguments, "--scrape", variant, directory, str(rounds)], stdout=subprocess.PIPE, text=True, check=True
            )
            recorder.communicate()
        wholes, sums, peak, samples = json.loads(done.stdout)
        results[variant] = min(wholes), samples
        print(
            f"| {variant:12} | {len(files):5} | {size:8.1f} | {min(wholes) * 1e3:12.1f} | {min(sums) * 1e3:17.1f} "
            f"| {peak / 1e3:7.0f} |"
        )
    (slow, expected), (fast, samples) = results["multiprocess"], results["lanes"]
    equal = sum(1 for pair in zip(expected, samples, strict=False) if pair[0] == pair[1])
    print(f"\nratio {slow / fast:.0f}x; {equal} of {len(expected)} samples equal, {len(samples)} in lanes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--record", variant, directory, workers, alive]:
            record(variant, directory, int(workers), int(alive))
        case ["--scrape", variant, directory, rounds]:
            scrape(variant, directory, int(rounds))
        case [*numbers]:
            main(*(int(number) for number in [*numbers, "2000", "48"][:2]))

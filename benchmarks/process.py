"""A driver process as the benchmark holds it: one stack, one database, asked for pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from benchmarks.collector import Collector, collector
from benchmarks.database import database
from benchmarks.environments import python
from benchmarks.receiver import receiver
from benchmarks.stacks import Stack

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bench:
    """What all stacks of a run share."""

    directory: Path
    database_url: str
    collector: Collector
    """What OTLP goes to."""
    sink: str
    """Where everything else goes to."""


def environ(bench: Bench, stack: Stack, **more: str) -> dict[str, str]:
    """The environment variables that a process of this stack runs with."""
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "DJANGO_SETTINGS_MODULE": stack.settings,
        "BENCH_DATABASE_URL": bench.database_url,
        "OTEL_SERVICE_NAME": "benchmark",
        "OTEL_EXPORTER_OTLP_ENDPOINT": bench.collector.endpoint,
        "BENCH_SINK_URL": bench.sink,
        # The names of the stable conventions, which ours always has.
        "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
        "DJANGO_OBS_RUNTIME_DIR": mkdtemp(prefix="runtime-", dir=bench.directory),
        # Cached as wherever pip has installed a package: whoever has to compile takes more time, and more memory.
        "PYTHONPYCACHEPREFIX": str(bench.directory / "bytecode"),
    }
    for name in ("PYTHONDEVMODE", "PYTHONDONTWRITEBYTECODE"):
        variables.pop(name, None)
    if stack.multiprocess:
        variables["PROMETHEUS_MULTIPROC_DIR"] = mkdtemp(prefix="metrics-", dir=bench.directory)
    return variables | more


class Driver:
    """A running driver."""

    def __init__(self, process: subprocess.Popen, answers) -> None:
        self.process = process
        self.answers = answers
        self._answer()

    def _answer(self) -> dict[str, float]:
        line = self.answers.readline()
        if not line:
            msg = f"the driver ended: {self.process.args}"
            raise RuntimeError(msg)
        return json.loads(line)

    def serve(self, page: str, count: int) -> dict[str, float]:
        """Serve a page so many times; returns the status, and seconds per request.

        These are wall, cpu, own (CPU of the serving thread), inside (what it takes in the project, if a stopwatch was
        asked for) and gc (collecting garbage).
        """
        self.process.stdin.write(f"{page} {count}\n".encode())
        self.process.stdin.flush()
        return self._answer()

    def warm(self, page: str, count: int) -> None:
        """Serve a page so many times without counting."""
        self.serve(f"!{page}", count)


@contextmanager
def sqlite_bench():
    """Yield what processes share that are measured on SQLite alone."""
    with TemporaryDirectory(prefix="benchmark-") as name, collector(Path(name)) as agent, receiver() as sink:
        directory = Path(name)
        with database("sqlite", directory) as url:
            yield Bench(directory, url, agent, sink.url)


@contextmanager
def driver(
    bench: Bench,
    stack: Stack,
    *,
    server: str = "wsgi",
    wrapper: tuple[str, ...] = (),
    stretch: float = 0,
    layout: int = 0,
    steps: str = "",
    stopwatch: bool = False,
    stdout: Path = Path(os.devnull),
):
    """Start a driver and end it at the end; ``wrapper`` is a command to run it under, lines go to ``stdout``."""
    read, write = os.pipe()
    variables = environ(bench, stack, BENCH_SERVER=server, BENCH_ANSWERS=str(write), BENCH_LAYOUT=str(layout))
    if stopwatch:
        variables["BENCH_STOPWATCH"] = "1"
    if steps:
        variables["BENCH_STEPS"] = steps
    if stretch:
        variables["BENCH_STRETCH"] = str(stretch)
        variables["OTEL_BSP_SCHEDULE_DELAY"] = str(int(5000 * stretch))
    with open(bench.directory / f"{stack.name}.stderr", "ab") as stderr, open(stdout, "wb") as lines:
        process = subprocess.Popen(
            [*wrapper, python(stack), "-m", "benchmarks.driver"],
            stdin=subprocess.PIPE,
            stdout=lines,
            stderr=stderr,
            pass_fds=[write],
            env=variables,
            cwd=ROOT,
        )
    os.close(write)
    try:
        with os.fdopen(read) as answers:
            yield Driver(process, answers)
    except BaseException:
        sys.stderr.write((bench.directory / f"{stack.name}.stderr").read_text()[-4000:])
        raise
    finally:
        process.stdin.close()
        process.wait(300)

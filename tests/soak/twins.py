"""Two servers of the same shop, one with the app and one without, and what they take of the machine."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from example_project.demo.processes import answers, free_port, poll
from tests.e2e.exits import alive, children

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
WORKERS = 2
GUNICORN = (
    *("-m", "gunicorn", "example_project.wsgi", "--config=tests/soak/gunicorn_conf.py", "--worker-class=gthread"),
    # One import for all workers, which half of a short round would go into.
    "--preload",
    *("--bind=127.0.0.1:{port}", f"--workers={WORKERS}", "--threads=4", "--keep-alive=5", "--backlog=512"),
    *("--control-socket={dir}/{name}.ctl", "--graceful-timeout=20"),
)
UVICORN = (
    *("-m", "uvicorn", "example_project.asgi:application", "--port={port}", "--log-level=warning"),
    "--timeout-graceful-shutdown=5",
)


class Pipe:
    """The reader of a server's stdout, who may stop reading and go away."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.data = bytearray()
        self.reading = threading.Event()
        self.reading.set()
        self.closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self.reading.wait()
            if self.closed:
                break
            chunk = os.read(self.read_end, 65536)
            if not chunk:
                break
            self.data += chunk
        os.close(self.read_end)

    def close_reader(self) -> None:
        """Go away, in the middle of a line perhaps."""
        self.closed = True
        # It waits in read() until the next line comes.
        self._thread.join(PATIENCE)

    def join(self) -> None:
        """Read what there is to its end."""
        self.reading.set()
        self._thread.join(PATIENCE)


@dataclass
class Use:
    """What the workers of one server take, at one moment: sums for memory, the greatest worker's for the others."""

    at: float
    rss: float  # MiB
    threads: int
    descriptors: int


class Server:
    """One of the twins."""

    def __init__(self, name: str, command: tuple[str, ...], work: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.port = free_port()
        self.pipe = Pipe()
        self.err = work / f"{name}.err"
        words = [word.format(port=self.port, dir=work, name=name) for word in command]
        with self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=self.pipe.write_end,
                stderr=err,
                env=dict(env),
                cwd=ROOT,
                start_new_session=True,
            )
        os.close(self.pipe.write_end)
        self.uses: list[Use] = []
        self.seconds_to_exit = 0.0

    def wait_ready(self) -> None:
        ready = poll(lambda: answers(self.port) or self.popen.poll() is not None, PATIENCE)
        if not ready or self.popen.poll() is not None:
            raise RuntimeError(f"{self.name} did not come up: {self.said()}")

    @property
    def workers(self) -> list[int]:
        return sorted(children(self.popen.pid)) or [self.popen.pid]

    def measure(self) -> None:
        """Note what the workers take now."""
        found = [use for pid in self.workers if (use := use_of(pid)) is not None]
        if found:
            self.uses.append(
                Use(
                    time.monotonic(),
                    sum(use.rss for use in found),
                    max(use.threads for use in found),
                    max(use.descriptors for use in found),
                )
            )

    def kill_worker(self, number: int) -> None:
        """Kill one of the workers, as the kernel does when memory runs out."""
        workers = self.workers
        with suppress(OSError):
            os.kill(workers[number % len(workers)], signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator does, and read its last lines."""
        family = {self.popen.pid} | children(self.popen.pid)
        started = time.monotonic()
        with suppress(OSError):
            self.popen.send_signal(signal.SIGTERM)
        poll(lambda: self.popen.poll() is not None and not any(map(alive, family)), PATIENCE)
        self.seconds_to_exit = time.monotonic() - started
        with suppress(OSError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.pipe.join()

    def said(self) -> str:
        return self.err.read_text(errors="replace")


def use_of(pid: int) -> Use | None:
    """Return what a process takes, as Linux tells; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))
        return Use(0.0, rss / 1024, threads, len(os.listdir(f"/proc/{pid}/fd")))
    except (OSError, StopIteration):
        return None


@dataclass
class Twins:
    """Ours and the bare one, each with a database of its own."""

    ours: Server
    bare: Server
    both: tuple[Server, Server] = field(init=False)

    def __post_init__(self) -> None:
        self.both = (self.ours, self.bare)

    def stop(self) -> None:
        for server in self.both:
            server.stop()


def base_env() -> dict[str, str]:
    """Return an environment without what would configure us or OpenTelemetry."""
    hidden = ("OTEL_", "DJANGO_", "SOAK_", "PYTHONDEVMODE", "PYTHONWARNINGS")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(hidden)},
        "DJANGO_SETTINGS_MODULE": "tests.soak.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "soak" / "clock"), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def make_database(directory: Path) -> Path:
    """Migrate a database that all phases copy."""
    path = directory / "shop.sqlite3"
    env = base_env() | {"SOAK_BARE": "1", "DATABASE_URL": f"sqlite:///{path}"}
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--verbosity=0"], cwd=ROOT, env=env, check=True, timeout=PATIENCE
    )
    with sqlite3.connect(path) as connection:
        # Enough for the longest round: what is sold out is another response.
        connection.execute("UPDATE shop_product SET in_stock = 1000000000")
    connection.close()
    return path


def start_twins(command: tuple[str, ...], work: Path, database: Path, env: Mapping[str, str]) -> Twins:
    """Start both; `env` comes to what both have, with what concerns the app alone for ours."""
    servers = []
    for name in ("ours", "bare"):
        own = work / f"{name}.sqlite3"
        shutil.copy(database, own)
        given = base_env() | {"DATABASE_URL": f"sqlite:///{own}"} | dict(env)
        if name == "bare":
            given["SOAK_BARE"] = "1"
        servers.append(Server(name, command, work, given))
    twins = Twins(*servers)
    try:
        for server in twins.both:
            server.wait_ready()
    except BaseException:
        twins.stop()
        raise
    return twins


def growth(uses: list[Use]) -> Iterator[tuple[str, float, float]]:
    """Yield (what, before, after): the median of the second eighth, before the fault, and the last, after the load."""
    eighth = max(1, len(uses) // 8)
    before = uses[eighth : 2 * eighth] or uses[:1]
    for what in ("rss", "threads", "descriptors"):
        yield what, median(before, what), median(uses[-1:], what)


def median(uses: list[Use], what: str) -> float:
    values = sorted(float(getattr(use, what)) for use in uses)
    return values[len(values) // 2] if values else 0.0

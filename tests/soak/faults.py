"""The faults, each of which strikes in the middle of a phase and is mended before its end, unless its text says so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .load import Kind, fetch, hostile_requests, send_raw
from .twins import GUNICORN, UVICORN

if TYPE_CHECKING:
    from .phase import Phase

During = Callable[["Phase"], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and what may come of it."""

    name: str
    during: During
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = GUNICORN
    around: During | None = None  # from before the servers start to after they have ended
    loses: frozenset[str] = frozenset()  # "lines", "spans": what may be lost, and is counted then
    killed: bool = False  # who is killed counts no more: what he had queued is lost uncounted
    unanswered: bool = False  # requests to both twins may go unanswered
    samples: bool = True  # whether the metrics have each request
    differs: bool = True  # whether its requests make other lines and spans than elsewhere
    rate: float = 1.0  # of the usual one
    needs_root: bool = False


@contextmanager
def nothing(phase: Phase) -> Iterator[None]:
    yield


@contextmanager
def collector_killed(phase: Phase) -> Iterator[None]:
    phase.receiver.stop()
    yield
    phase.receiver.start()


def collector_becomes(mode: str) -> During:
    @contextmanager
    def become(phase: Phase) -> Iterator[None]:
        phase.receiver.become(mode)
        yield
        phase.receiver.become("takes")

    return become


@contextmanager
def collector_hangs_for_good(phase: Phase) -> Iterator[None]:
    phase.receiver.become("hangs")
    yield


@contextmanager
def collector_restarted(phase: Phase) -> Iterator[None]:
    def restart() -> None:
        phase.receiver.stop()
        time.sleep(0.2)
        phase.receiver.start()

    with phase.repeating(restart, 0.5):
        yield


@contextmanager
def stdout_blocked(phase: Phase) -> Iterator[None]:
    phase.twins.ours.pipe.reading.clear()
    yield
    phase.twins.ours.pipe.reading.set()


@contextmanager
def stdout_closed(phase: Phase) -> Iterator[None]:
    phase.twins.ours.pipe.close_reader()
    yield


@contextmanager
def nothing_taken(phase: Phase) -> Iterator[None]:
    with collector_becomes("hangs")(phase), stdout_blocked(phase):
        yield


@contextmanager
def runtime_dir_deleted(phase: Phase) -> Iterator[None]:
    shutil.rmtree(phase.runtime, ignore_errors=True)
    yield


@contextmanager
def small_file_system(phase: Phase) -> Iterator[None]:
    """Mount a file system of 8 MiB where the runtime directory lies."""
    place = phase.runtime.parent
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        # Lazily: a worker that was killed may not be gone yet.
        subprocess.run(["umount", "--lazy", str(place)], check=False)


@contextmanager
def full_file_system(phase: Phase) -> Iterator[None]:
    with small_file_system(phase):
        filler = phase.runtime.parent / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 65536)
        yield


@contextmanager
def no_space(phase: Phase) -> Iterator[None]:
    yield
    (phase.runtime.parent / "filler").unlink()


@contextmanager
def read_only_file_system(phase: Phase) -> Iterator[None]:
    with small_file_system(phase):
        subprocess.run(["mount", "-o", "remount,ro", str(phase.runtime.parent)], check=True)
        yield


@contextmanager
def read_only(phase: Phase) -> Iterator[None]:
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(phase.runtime.parent)], check=True)


@contextmanager
def clock_set_back(phase: Phase) -> Iterator[None]:
    phase.set_clock(-3600.0)
    yield
    phase.set_clock(0.0)


@contextmanager
def workers_killed(phase: Phase) -> Iterator[None]:
    dice = random.Random(7)
    with phase.repeating(lambda: phase.twins.ours.kill_worker(dice.randrange(100)), 0.7):
        yield


@contextmanager
def descriptors_exhausted(phase: Phase) -> Iterator[None]:
    """Hold more connections to both than they have descriptors."""
    held: list[socket.socket] = []
    phase.load.straits.set()
    for server in phase.twins.both:
        for _ in range(120):
            with suppress(OSError):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=1)
                client.sendall(b"GET /")
                held.append(client)
    yield
    for client in held:
        client.close()
    # Until the servers have noticed.
    time.sleep(1.0)
    phase.load.straits.clear()


@contextmanager
def hostile(phase: Phase) -> Iterator[None]:
    requests = itertools.cycle(list(hostile_requests()))

    def send() -> None:
        request = next(requests)
        ours, bare = (send_raw(server.port, request) for server in phase.twins.both)
        phase.count("hostile requests")
        if ours != bare:
            phase.load.differing.append(f"{request[:120]!r}: {ours[:300]!r}, bare {bare[:300]!r}")

    with phase.repeating(send, 0.0):
        yield
        # Each at least once, however short the phase.
        while phase.counted["hostile requests"] < len(list(hostile_requests())) and phase.failure is None:
            time.sleep(0.05)


@contextmanager
def many_labels(phase: Phase) -> Iterator[None]:
    step = 1000

    def send() -> None:
        start = phase.counted["label values"]
        answer = fetch(phase.twins.ours.port, Kind("label", f"/label/{start}/{step}/"), {"connection": "close"})
        if answer is None or answer.status != 200:
            raise RuntimeError(f"/label/{start}/ was answered by {answer}")
        phase.count("label values", step)

    with phase.repeating(send, 0.0, most=phase.labels // step):
        yield
        phase.finish_repeating()


@contextmanager
def asgi_cancelled(phase: Phase) -> Iterator[None]:
    """Open connections in batches and hang up before the answer."""

    async def cancel(port: int) -> None:
        request_id = uuid.uuid4().hex
        with suppress(OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 10)
            writer.write(
                b"GET /wait/?seconds=5 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"X-Request-ID: %s\r\nTraceparent: 00-%s-00f067aa0ba902b7-01\r\n\r\n"
                % (request_id.encode(), request_id.encode())
            )
            await asyncio.wait_for(writer.drain(), 10)
            await asyncio.sleep(random.random() * 0.3)
            writer.transport.abort()
            phase.cancelled.append(request_id)

    async def batch(port: int) -> None:
        await asyncio.gather(*(cancel(port) for _ in range(phase.batch)))

    def send() -> None:
        for server in phase.twins.both:
            asyncio.run(batch(server.port))
        phase.count("connections cancelled", phase.batch)

    with phase.repeating(send, 0.0, most=phase.connections // phase.batch):
        yield
        phase.finish_repeating()


@contextmanager
def one_after_the_other(phase: Phase) -> Iterator[None]:
    """Let faults of collector, stdout and clock take turns, on servers that live through all of them."""
    turns = itertools.cycle(
        (stdout_blocked, collector_killed, clock_set_back, collector_becomes("hangs"), collector_becomes("dawdles"))
    )

    def turn() -> None:
        with next(turns)(phase):
            phase.pause(phase.turn)
        phase.count("turns")
        phase.pause(phase.turn)

    with phase.repeating(turn, 0.0):
        yield


# So that queues are full before a short phase is over.
SMALL_QUEUES = {"DJANGO_OBS_TRACES_QUEUE_SIZE": "200", "DJANGO_OBS_LOGS_QUEUE_SIZE": "300"}
SPANS, LINES = frozenset({"spans"}), frozenset({"lines"})

FAULTS = (
    Fault("none", nothing),
    Fault("collector killed, started again", collector_killed, SMALL_QUEUES, loses=SPANS),
    Fault("collector hangs for a while", collector_becomes("hangs"), SMALL_QUEUES, loses=SPANS),
    Fault(
        "collector hangs, to the end",
        collector_hangs_for_good,
        {"DJANGO_OBS_FLUSH_TIMEOUT": "2"},
        loses=SPANS,
    ),
    Fault("collector slow", collector_becomes("dawdles"), SMALL_QUEUES, loses=SPANS),
    Fault("collector restarted again and again", collector_restarted),
    Fault("collector answers nonsense", collector_becomes("garbles"), SMALL_QUEUES, loses=SPANS),
    Fault("stdout blocked", stdout_blocked, SMALL_QUEUES, loses=LINES),
    Fault("stdout closed", stdout_closed, loses=LINES),
    Fault("runtime directory deleted", runtime_dir_deleted, samples=False),
    Fault("runtime directory full", no_space, around=full_file_system, needs_root=True),
    Fault("runtime directory read-only", read_only, around=read_only_file_system, needs_root=True),
    Fault("clock set back an hour", clock_set_back),
    Fault("workers killed at random", workers_killed, killed=True, unanswered=True, loses=SPANS | LINES),
    Fault(
        "memory limited, nothing is taken",
        nothing_taken,
        # Room for our two threads and for the exporter's modules, none for a queue without bounds.
        {"SOAK_LIMIT": "AS:256", "DJANGO_OBS_FLUSH_TIMEOUT": "5"},
        loses=SPANS | LINES,
        rate=2.0,
    ),
    Fault(
        "descriptors exhausted",
        descriptors_exhausted,
        {"SOAK_LIMIT": "NOFILE:60"},
        unanswered=True,
        loses=SPANS | LINES,
    ),
    Fault("a user's handler, hooks, sampler, processor and collector raise", nothing, {"SOAK_RAISES": "1"}),
    Fault("hostile headers and paths", hostile),
    Fault("many distinct labels", many_labels),
    Fault("ASGI connections cancelled", asgi_cancelled, command=UVICORN),
    Fault("one after the other", one_after_the_other, SMALL_QUEUES, loses=SPANS | LINES),
)


def can_mount() -> bool:
    """Tell whether this process may mount a file system."""
    if os.geteuid() != 0:
        return False
    place = Path(f"/tmp/soak-mount-{os.getpid()}")
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False, capture_output=True
        )
        if done.returncode == 0:
            subprocess.run(["umount", str(place)], check=False)
        return done.returncode == 0
    except FileNotFoundError:
        return False
    finally:
        place.rmdir()

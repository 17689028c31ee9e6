"""The process that is measured: serves a page some hundred times without a socket, and says what that took.

It reads commands from stdin, one a line: ``PAGE COUNT`` serves a page so many times, delivers what the stack has
queued, and answers with a line of JSON. With ``!`` before the page nothing is measured, with ``+`` nothing is
delivered; ``?`` asks how many requests the metrics have. Stdout is the log's; answers go to the descriptor that
``BENCH_ANSWERS`` names.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import random
import sys
import time

from benchmarks.project.stopwatch import StopwatchMiddleware
from benchmarks.stacks import flush, samples

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_SOFTWARE": "gunicorn/23.0",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "54321",
    "HTTP_HOST": "127.0.0.1:8000",
    "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.errors": sys.stderr,
}
HEADERS = [
    (name[5:].lower().replace("_", "-").encode(), value.encode())
    for name, value in ENVIRON.items()
    if name.startswith("HTTP_")
]


class Jitter:
    """What makes requests differ by a few objects, as those of a real site do.

    A collection comes when so many objects have been made. A row of the same requests has it at the same place each
    time: bare Django 0.37 times a page, and 0.45 times with whatever makes one object more.
    """

    def __init__(self) -> None:
        # Under callgrind nothing is collected in between.
        self.random = random.Random(0) if "BENCH_STRETCH" not in os.environ else None
        self.kept: list[list[None]] = []

    def turn(self) -> None:
        """Let go of some objects, and make some others that stay until the next time."""
        if self.random is not None:
            self.kept = [[] for _ in range(self.random.getrandbits(6))]


class Collections:
    """The seconds that collections of garbage have taken."""

    def __init__(self) -> None:
        self.seconds = self.started = 0.0
        gc.callbacks.append(self.note)

    def note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self.started = time.thread_time()
        else:
            self.seconds += time.thread_time() - self.started


class WSGI:
    """The site behind a WSGI server that does nothing of its own."""

    def __init__(self) -> None:
        from benchmarks.project.wsgi import application

        self.application = application
        self.jitter = Jitter()

    def _start_response(self, status, headers, exc_info=None):
        self.status = int(status[:3])
        return self.size.append

    def serve(self, path: str, count: int) -> int:
        application, start_response = self.application, self._start_response
        for _ in range(count):
            self.jitter.turn()
            self.size = []
            environ = ENVIRON | {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
            answer = application(environ, start_response)
            for chunk in answer:
                self.size.append(chunk)
            answer.close()
        return self.status


class ASGI:
    """The site behind an ASGI server that does nothing of its own."""

    def __init__(self) -> None:
        from benchmarks.project.asgi import application

        self.application = application
        self.loop = asyncio.new_event_loop()
        self.jitter = Jitter()

    def serve(self, path: str, count: int) -> int:
        return self.loop.run_until_complete(self._serve(path, count))

    async def _serve(self, path: str, count: int) -> int:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": HEADERS,
            "client": ("127.0.0.1", 54321),
            "server": ("127.0.0.1", 8000),
        }
        status = 0
        for _ in range(count):
            self.jitter.turn()
            waiting = [{"type": "http.request", "body": b"", "more_body": False}]
            forever = self.loop.create_future()

            async def receive(waiting=waiting, forever=forever):
                return waiting.pop() if waiting else await forever

            async def send(message):
                nonlocal status
                status = message.get("status", status)

            await self.application(dict(scope), receive, send)
        return status


def stretch(factor: float) -> None:
    """Make background threads wait longer: under callgrind everything else is as much slower."""
    if "django_obs" not in os.environ["DJANGO_SETTINGS_MODULE"]:
        return
    from django_obs.lifecycle import Worker

    every = Worker.every
    Worker.every = lambda self, seconds, job: every(self, seconds * factor, job)
    from django_obs.metrics import instruments

    instruments.EXEMPLAR_INTERVAL = int(instruments.EXEMPLAR_INTERVAL * factor)


def lay_out(number: int) -> list[object]:
    """Make types and strings, so that those of all modules get other versions and addresses. Keep what is returned."""
    made: list[object] = []
    for each in range(number * 61):
        kind = type(f"Layout{each}", (), {})
        made += [kind, kind.__doc__, f"layout_{each}" * 3]  # looking up an attribute gives the type its version
    return made


def main() -> None:
    layout = lay_out(int(os.environ["BENCH_LAYOUT"]))  # noqa: F841
    answers = os.fdopen(int(os.environ["BENCH_ANSWERS"]), "w")
    if factor := float(os.environ.get("BENCH_STRETCH", "0")):
        from benchmarks.valgrind import Callgrind

        callgrind = Callgrind()
        stretch(factor)
    else:
        callgrind = None
    if steps := os.environ.get("BENCH_STEPS"):
        from benchmarks.steps import told, watch

        taken = watch(steps)
    server = (ASGI if os.environ.get("BENCH_SERVER") == "asgi" else WSGI)()
    collections = Collections()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        page, count = line.split()
        if page == "?":
            print(json.dumps({"samples": samples()}), file=answers, flush=True)
            continue
        measured = not page.startswith("!")
        path = f"/{page.lstrip('!+')}/"
        gc.collect()
        if callgrind and measured:
            # It is chance which window a collection falls into, and a page takes one every second or third time. So
            # each window has one, of what its requests left behind, and of nothing that start-up has made.
            gc.freeze()
            gc.disable()
            callgrind.start()
        collections.seconds = StopwatchMiddleware.seconds = 0.0
        wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
        status = server.serve(path, int(count))
        if not page.startswith("+"):
            flush()
        wall, cpu, own = time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - own
        collected, inside = collections.seconds, StopwatchMiddleware.seconds
        if callgrind and measured:
            gc.collect()
            callgrind.stop()
            gc.enable()
        served = int(count)
        seconds = {"wall": wall, "cpu": cpu, "own": own, "inside": inside, "gc": collected}
        answer = {"status": status} | {name: value / served for name, value in seconds.items()}
        if steps:
            answer["steps"] = told(taken, served)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

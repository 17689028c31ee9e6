"""The process that tests/test_budget.py looks into: a small site that counts what django_obs does for each request.

Prints one JSON object. No thread is started, so that what is counted is the same each time; what the listener would do
is done here, and counted. ``DJANGO_OBS_<SIGNAL>_ENABLED`` says which signals are on.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Self

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path

import django_obs

REQUESTS = "django_obs.traces.requests"
PACKAGE = str(Path(django_obs.__file__).parent) + os.sep
REQUESTS = 40
# The first requests fill caches.
WARMUP = 40
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "127.0.0.1:8000",
    "HTTP_USER_AGENT": "budget",
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
}


def trivial(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def queries(request: HttpRequest) -> HttpResponse:
    from django.db import connection

    with connection.cursor() as cursor:
        for _ in range(3):
            cursor.execute("SELECT 1")
    return HttpResponse("ok")


urlpatterns = [path("trivial/", trivial, name="trivial"), path("queries/", queries, name="queries")]


class Count:
    """Bytecode instructions and calls, by function of ours."""

    def __init__(self) -> None:
        self.instructions: Counter[object] = Counter()
        self.calls: Counter[object] = Counter()

    def __enter__(self) -> Self:
        if sys.version_info >= (3, 12):
            monitoring, events = sys.monitoring, sys.monitoring.events
            monitoring.use_tool_id(monitoring.PROFILER_ID, "budget")
            monitoring.register_callback(monitoring.PROFILER_ID, events.PY_START, self._start)
            monitoring.register_callback(monitoring.PROFILER_ID, events.INSTRUCTION, self._instruction)
            monitoring.set_events(monitoring.PROFILER_ID, events.PY_START | events.INSTRUCTION)
        else:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
        else:
            sys.settrace(None)

    def _start(self, code, offset):
        if code.co_filename.startswith(PACKAGE):
            self.calls[code] += 1
            return None
        return sys.monitoring.DISABLE

    def _instruction(self, code, offset):
        if code.co_filename.startswith(PACKAGE):
            self.instructions[code] += 1
            return None
        return sys.monitoring.DISABLE

    def _trace(self, frame, event, argument):
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self.calls[code] += 1
        elif event == "opcode":
            self.instructions[code] += 1
        return self._trace

    def functions(self) -> dict[str, float]:
        """Return instructions per request by file and function."""
        found: dict[str, float] = {}
        for code, number in self.instructions.items():
            name = f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_qualname}"
            found[name] = found.get(name, 0) + number / REQUESTS
        return {name: round(number, 1) for name, number in sorted(found.items(), key=lambda item: -item[1])}


def main() -> None:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django_obs"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="budget",
        USE_TZ=True,
    )
    before = threading.active_count(), descriptors()
    django.setup()
    from django.core.handlers.wsgi import WSGIHandler

    application = WSGIHandler()
    opened = {"threads": threading.active_count() - before[0], "descriptors": descriptors() - before[1]}

    from django.apps import apps

    import django_obs.instrumentation.database
    import django_obs.middleware
    from django_obs.lifecycle import guard
    from django_obs.metrics import instruments

    # One exemplar a second and bucket: a clock's matter, and rare.
    instruments.EXEMPLAR_INTERVAL = 10**18
    # A clock of our own: on a busy machine a slower request would be the first in its bucket, which costs more.
    ticks = count(step=100_000)
    for module in (django_obs.middleware, django_obs.instrumentation.database, sys.modules.get(REQUESTS)):
        if module is not None:
            module.perf_counter_ns = ticks.__next__
    config = apps.get_app_config("django_obs")
    guard.worker.running = True
    if config.traces is not None:
        config.traces.worker.running = True

    def deliver() -> None:
        if config.logs is not None:
            config.logs.listener.drain()
        if config.traces is not None:
            config.traces.exporter.prepare()
            config.traces.exporter._queue.clear()
            config.traces.exporter.waiting = 0

    def serve(page: str, times: int) -> None:
        for _ in range(times):
            response = application(ENVIRON | {"PATH_INFO": page, "wsgi.input": io.BytesIO()}, lambda *_: None)
            assert response.status_code == 200
            response.close()

    result: dict[str, object] = {"opened": opened}
    for page in ("trivial", "queries"):
        serve(f"/{page}/", WARMUP)
        deliver()
        gc.collect()
        blocks, files = sys.getallocatedblocks(), descriptors()
        serve(f"/{page}/", REQUESTS)
        deliver()
        gc.collect()
        kept, files = sys.getallocatedblocks() - blocks, descriptors() - files
        with Count() as counted:
            serve(f"/{page}/", REQUESTS)
            own = round(counted.instructions.total() / REQUESTS, 1)
            deliver()
        result[page] = {
            "own_instructions": own,
            "instructions": round(counted.instructions.total() / REQUESTS, 1),
            "calls": round(counted.calls.total() / REQUESTS, 1),
            "kept": kept / REQUESTS,
            "descriptors": files,
            "functions": counted.functions(),
        }
    result["threads"] = threading.active_count() - before[0]
    from django.db import connection, reset_queries

    connection.force_debug_cursor = True
    for page in ("trivial", "queries"):
        reset_queries()
        connection.ensure_connection()
        serve(f"/{page}/", 1)
        result[page]["queries"] = len(connection.queries_log)
    print(json.dumps(result), file=sys.__stderr__)
    sys.__stderr__.flush()
    os.kill(os.getpid(), 9)  # nothing of an exit is looked at here


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


if __name__ == "__main__":
    main()

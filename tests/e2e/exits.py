"""Every kind of process, every way out: what was delivered, lost, doubled, and how long the exit took.

Lines and spans are flushed by the clock only once a minute here, so that what arrives has been flushed by the exit; but
for SIGKILL, which nobody can answer to, where the clock is the usual one.

``python -m tests.e2e.exits docs/exits.md`` measures all of it and writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path

from django_obs.metrics.scraper import Scraper
from example_project.demo.processes import Process, answers, free_port, poll
from tests.e2e.project import PATIENCE, Project
from tests.traces.support import Collector, collector, hang, socket_server

REQUESTS = 20
BIN = Path(sys.executable).parent
# Seconds, where the collector hangs. Elsewhere it is long: the first export imports what sends it, which takes as
# many seconds as the machine is busy.
FLUSH_TIMEOUT = 2.0

VIEWS = """
import logging, os, signal, time
from django.core.management.base import BaseCommand
from django.http import HttpResponse
from django.urls import path

def goods(request):
    return HttpResponse("goods")

def hang(request):
    # gunicorn kills a worker a second after it has told it to abort. On a busy machine the first import of the
    # transport takes longer than that, and a worker that has served for a while has it behind it.
    from django_obs.traces.transport import HTTPTransport
    HTTPTransport("traces", None, {})
    time.sleep(600)

def fork(request):
    pid = os.fork()
    if pid == 0:
        logging.getLogger("shop").info("forked", extra={"child": request.headers["x-request-id"]})
        os._exit(0)
    os.waitpid(pid, 0)
    return HttpResponse("forked")

urlpatterns = [path("goods/", goods), path("hang/", hang), path("fork/", fork)]
"""

SCRIPT = """
import os, signal, sys, time
import django
django.setup()
from django.test import Client
client = Client()
for request_id, parent in zip(sys.argv[2::2], sys.argv[3::2]):
    client.get("/goods/", headers={"host": "localhost", "x-request-id": request_id, "traceparent": parent})
way = sys.argv[1]
if way == "exception":
    raise RuntimeError("at the end")
if way == "os._exit":
    os._exit(0)
if way.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, way))
    time.sleep(60)
"""

CELERY = """
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.broker_connection_retry_on_startup = True

@app.task(name="shop.touch")
def touch(path):
    open(path, "w").close()
"""

SEND = """
import sys
import django
django.setup()
from shop.tasks_app import app, touch
for request_id, parent, path in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    touch.apply_async((path,), task_id=request_id, headers={"sent-by": "exits"})
"""


@dataclass(frozen=True)
class Kind:
    """A way to serve: the words of the command, with ``{port}`` and ``{dir}`` in them."""

    name: str
    command: tuple[str, ...]
    needs: str
    exits: tuple[str, ...] = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL", "collector hangs")


# Where SIGQUIT is no way to end: supervisors that do not know it die of it, and leave their workers behind.
SUPERVISED = ("SIGTERM", "SIGINT", "SIGKILL", "collector hangs")


def gunicorn(name: str, *options: str, exits: tuple[str, ...] = ()) -> Kind:
    words = "-m gunicorn shop.wsgi --bind=127.0.0.1:{port} --workers=2 --control-socket={dir}/g.ctl"
    return Kind(f"gunicorn {name}", (*words.split(), *options), "gunicorn", (*Kind.exits, "SIGHUP", *exits))


def uwsgi(name: str, *options: str) -> Kind:
    words = "--http-socket=127.0.0.1:{port} --module=shop.wsgi --master --processes=2 --die-on-term --need-app"
    # Its SIGQUIT is a reload.
    exits = ("SIGTERM", "SIGINT", "SIGKILL", "collector hangs", "SIGHUP", "recycling")
    return Kind(f"uWSGI {name}", ("uwsgi", *words.split(), *options), "uwsgi", exits)


ABORT = ("abort after timeout", "recycling", "os._exit in a child")
KINDS = (
    gunicorn("sync", exits=ABORT),
    gunicorn("gthread", "--worker-class=gthread", "--threads=4", exits=ABORT[1:]),
    gunicorn("gevent", "--worker-class=gevent"),
    Kind(
        "gunicorn uvicorn-worker",
        (
            *("-m", "gunicorn", "shop.asgi:application", "--bind=127.0.0.1:{port}", "--workers=2"),
            *("--control-socket={dir}/g.ctl", "--worker-class=uvicorn_worker.UvicornWorker"),
        ),
        "uvicorn_worker",
        # gunicorn's quick shutdown does not reach these workers: it kills them after half a minute, also without us.
        ("SIGTERM", "SIGKILL", "collector hangs", "SIGHUP", "recycling"),
    ),
    gunicorn("sync --preload", "--preload", exits=ABORT),
    Kind("uvicorn", ("-m", "uvicorn", "shop.asgi:application", "--port={port}"), "uvicorn"),
    Kind(
        "uvicorn --workers 2",
        ("-m", "uvicorn", "shop.asgi:application", "--port={port}", "--workers=2"),
        "uvicorn",
        SUPERVISED,
    ),
    # One worker: with two it never ends when the signal meets one that is still starting, also without us.
    Kind(
        "granian wsgi",
        (
            *("-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}"),
            "shop.wsgi:application",
        ),
        "granian",
        SUPERVISED,
    ),
    Kind(
        "granian asgi",
        (
            *("-m", "granian", "--interface", "asginl", "--host", "127.0.0.1", "--port", "{port}"),
            "shop.asgi:application",
        ),
        "granian",
        SUPERVISED,
    ),
    Kind(
        "hypercorn",
        ("-m", "hypercorn", "shop.asgi:application", "--bind", "127.0.0.1:{port}", "--workers", "2"),
        "hypercorn",
        SUPERVISED,
    ),
    uwsgi("prefork", "--enable-threads"),
    uwsgi("prefork, no threads"),
    uwsgi("lazy-apps", "--lazy-apps", "--enable-threads"),
    Kind("runserver", ("manage.py", "runserver", "127.0.0.1:{port}"), "django", SUPERVISED),
    Kind("runserver --noreload", ("manage.py", "runserver", "127.0.0.1:{port}", "--noreload"), "django"),
    Kind("script", (), "django", ("end", "exception", "os._exit", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGABRT")),
    *(
        Kind(f"celery {pool}", ("-m", "celery", "-A", "shop.tasks_app", "worker", f"--pool={pool}"), "celery")
        for pool in ("prefork", "threads", "solo")
    ),
)


@dataclass
class Result:
    """What came of a case: counts of pieces of work, seconds from the signal to the end of the last process."""

    kind: str
    exit: str
    done: int  # requests that were answered, tasks that ran
    lines: Counter[str] = field(default_factory=Counter)
    spans: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    samples: float = 0.0
    seconds: float = 0.0
    status: int = 0
    said: str = ""  # by all its processes

    def lost_lines(self) -> int:
        return sum(1 for each in self.ids if not self.lines[each])

    def lost_spans(self) -> int:
        return sum(1 for each in self.traces if not self.spans[each])

    def doubled(self) -> int:
        return sum(count - 1 for count in (*self.lines.values(), *self.spans.values()) if count > 1)


class Bench:
    """A project for all cases, and what each case starts and stops."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.project = Project(directory, stack, otlp_endpoint="http://127.0.0.1:1")
        package = directory / "shop"
        (package / "urls.py").write_text(VIEWS)
        (package / "tasks_app.py").write_text(CELERY)
        self.base_env = dict(self.project.env)

    def measure(self, kind: Kind, way: str) -> Result:
        """Serve, send, end; count what has arrived."""
        work = Path(tempfile.mkdtemp(prefix="case-", dir=self.directory))
        with ExitStack() as stack:
            hangs = way == "collector hangs"
            receiver: Collector | None = None
            if hangs:
                port = stack.enter_context(socket_server(hang))
            else:
                receiver = stack.enter_context(collector())
                port = receiver.port
            self.project.env = {
                **self.base_env,
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
                "DJANGO_OBS_RUNTIME_DIR": str(work / "runtime"),
                "DJANGO_OBS_FLUSH_TIMEOUT": str(FLUSH_TIMEOUT if hangs else PATIENCE),
                "BROKER": os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0"),
                "QUEUE": work.name,
            }
            if not is_kill(kind, way):
                self.project.env |= {"DJANGO_OBS_LOGS_FLUSH_INTERVAL": "60", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
            else:
                self.project.env |= {"OTEL_BSP_SCHEDULE_DELAY": "1000"}
            result = Result(kind.name, way, 0)
            if kind.name == "script":
                process = self._script(result, way, work)
            elif kind.needs == "celery":
                process = self._celery(kind, result, way, work)
            else:
                process = self._serve(kind, result, way, work)
            self._count(result, process, receiver, work)
        shutil.rmtree(work, ignore_errors=True)
        return result

    # -- Kinds ---------------------------------------------------------------------------------------------------------

    def _serve(self, kind: Kind, result: Result, way: str, work: Path) -> Process:
        port = free_port()
        words = [word.format(port=port, dir=work) for word in kind.command]
        if way == "abort after timeout":
            words.append("--timeout=2")
        if way == "recycling":
            words.append("--max-requests=5")
        path = "/fork/" if way == "os._exit in a child" else "/goods/"
        with self._process("server", words, work) as process:
            process.wait_port(port, PATIENCE)
            send(result, port, path)
            if way == "abort after timeout":
                with suppress(OSError, HTTPException):
                    get(port, "/hang/", {"x-request-id": "hang"})
            if way == "SIGHUP":
                before = children(process.pid)
                process.popen.send_signal(signal.SIGHUP)

                def renewed() -> bool:
                    found = children(process.pid)
                    return bool(found) and not before & found and answers(port)

                # One that dies of it is not waited for.
                poll(lambda: not process.running or renewed(), PATIENCE)
                send(result, port, path)
            self._end(result, process, way)
        return process

    def _script(self, result: Result, way: str, work: Path) -> Process:
        arguments = []
        for _ in range(REQUESTS):
            request_id, trace_id = new_ids()
            arguments += [request_id, f"00-{trace_id}-00f067aa0ba902b7-01"]
            result.ids.append(request_id)
            result.traces.append(trace_id)
            result.done += 1
        with self._process("script", ["-c", SCRIPT, way, *arguments], work) as process:
            # The work itself takes time as well: what is told is the whole life of the process.
            started = time.monotonic()
            result.status = process.popen.wait(PATIENCE + 60)
            result.seconds = time.monotonic() - started
        return process

    def _celery(self, kind: Kind, result: Result, way: str, work: Path) -> Process:
        words = [*kind.command, "--concurrency=2", "--without-mingle", "--without-gossip"]
        with self._process("worker", words, work) as process:
            process.wait_ready(lambda: "celery@" in process.said(), PATIENCE)
            arguments, paths = [], []
            for _ in range(REQUESTS):
                task_id, _trace = new_ids()
                paths.append(work / task_id)
                arguments += [task_id, "-", str(paths[-1])]
                result.ids.append(task_id)
            env = dict(self.project.env)
            self.project.run("-c", SEND, *arguments)
            self.project.env = env
            assert poll(lambda: all(path.exists() for path in paths), PATIENCE), process.said()
            # The file is there before the task has come to its end.
            time.sleep(0.3)
            result.done = len(paths)
            self._end(result, process, way)
        with suppress(Exception):
            from kombu import Connection

            with Connection(env["BROKER"]) as connection:
                connection.default_channel.queue_delete(work.name)
        return process

    def _process(self, name: str, words: list[str], work: Path) -> Process:
        command = [str(BIN / "uwsgi"), *words[1:]] if words[0] == "uwsgi" else [sys.executable, *words]
        return Process(name, command, directory=work, env=self.project.env, cwd=self.directory)

    def _end(self, result: Result, process: Process, way: str) -> None:
        signum = getattr(signal, way, signal.SIGTERM) if way.startswith("SIG") else signal.SIGTERM
        if "uWSGI" in result.kind and way != "SIGKILL":
            # It runs no function at the exit of a worker that still closes a request.
            time.sleep(0.5)
        family = {process.pid} | children(process.pid)
        started = time.monotonic()
        if signum == signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL)
        elif way == "SIGHUP":
            process.popen.send_signal(signal.SIGTERM)
        else:
            process.popen.send_signal(signum)
        gone = poll(lambda: process.popen.poll() is not None and not any(map(alive, family)), 30)
        result.seconds = time.monotonic() - started if gone else float("inf")
        result.status = process.stop()

    # -- Counting ------------------------------------------------------------------------------------------------------

    def _count(self, result: Result, process: Process, receiver: Collector | None, work: Path) -> None:
        # uWSGI makes one of both streams.
        for line in (*read_lines(process.out), *read_lines(process.err)):
            if line.get("logger") == "django_obs.access":
                result.lines[line.get("task_id") or line.get("request_id", "")] += 1
            elif "child" in line:
                result.lines[f"child-{line['child']}"] += 1
        if result.exit == "os._exit in a child":
            result.ids += [f"child-{each}" for each in list(result.ids)]
        if receiver is not None:
            for span in receiver.spans():
                if span.kind == 2:
                    result.spans[span.trace_id.hex()] += 1
                elif span.kind == 5:
                    identifier = next(a.value.string_value for a in span.attributes if a.key == "messaging.message.id")
                    result.spans[identifier] += 1
            if result.kind.startswith("celery"):
                result.traces = list(result.ids)
        else:
            result.traces = []
        name = (
            "celery_task_succeeded_total"
            if result.kind.startswith("celery")
            else "django_http_requests_before_middlewares_total"
        )
        result.samples = total(work / "runtime" / "metrics", name)
        result.said = process.said()


def is_kill(kind: Kind, way: str) -> bool:
    """Tell whether the process that serves is killed: Django's reloader kills its child whatever ends itself."""
    return way == "SIGKILL" or kind.name == "runserver"


def new_ids() -> tuple[str, str]:
    return uuid.uuid4().hex, uuid.uuid4().hex


def send(result: Result, port: int, path: str) -> None:
    for _ in range(REQUESTS):
        request_id, trace_id = new_ids()
        headers = {"x-request-id": request_id, "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        try:
            status = get(port, path, headers)
        except (OSError, HTTPException):
            continue  # A worker that is recycled may hang up on us; what was not answered is not counted.
        assert status == 200
        result.done += 1
        result.ids.append(request_id)
        result.traces.append(trace_id)


def get(port: int, path: str, headers: dict[str, str]) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={"host": "localhost", "connection": "close", **headers})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def total(directory: Path, name: str) -> float:
    """Return the sum of a counter over all processes and labels."""
    page = Scraper(lambda: directory).read()
    return sum(
        page.totals[row.slot]
        for family in page.families
        if family.name == name.removesuffix("_total")
        for row in family.rows()
    )


def children(pid: int) -> set[int]:
    """Return the processes below one, as Linux tells."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child)} | children(int(child))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="django_obs-exits-") as directory, ExitStack() as stack:
        yield Bench(Path(directory), stack)


def cases(only: str = "") -> Iterator[tuple[Kind, str]]:
    for kind in KINDS:
        if find_spec(kind.needs) is not None or (BIN / kind.needs).exists():
            for way in kind.exits:
                if only in f"{kind.name}: {way}":
                    yield kind, way


# Between this and the next empty line stand the rows.
RULE = "|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, help="the page whose table is brought up to date")
    parser.add_argument("--only", default="", help="part of a `kind: exit`")
    parser.add_argument("--verbose", action="store_true", help="print all that the processes said")
    arguments = parser.parse_args()
    # A shell lets what it runs in the background ignore both, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    with bench() as each:
        for kind, way in cases(arguments.only):
            try:
                result = each.measure(kind, way)
            except Exception as error:
                print(f"{kind.name}: {way}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                continue
            print(row(result), flush=True)
            if arguments.verbose:
                print(result.said, flush=True)
            if arguments.output:
                write_page(arguments.output, row(result))


def write_page(path: Path, new: str) -> None:
    """Put a row into the table of the page, in the order of the cases."""
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(RULE)) + 1
    end = lines.index("", start)
    found = {name_of(line): line for line in [*lines[start:end], new]}
    lines[start:end] = [found[key] for key in (f"{kind.name}: {way}" for kind, way in cases()) if key in found]
    path.write_text("\n".join(lines) + "\n")


def name_of(line: str) -> str:
    kind, way = (cell.strip() for cell in line.split("|")[1:3])
    return f"{kind}: {way}"


def row(result: Result) -> str:
    lost = "all" if result.exit == "collector hangs" else str(result.lost_spans())
    # A request that hung is counted as well, though it was never answered.
    samples = max(0.0, result.done - result.samples)
    return (
        f"| {result.kind} | {result.exit} | {result.done} | {result.lost_lines()} | {lost} "
        f"| {samples:.0f} | {result.doubled()} | {result.seconds:.1f} | {result.status} |"
    )


if __name__ == "__main__":
    main()

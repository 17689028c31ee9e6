"""Watch and tail over real servers: gunicorn's workers, an ASGI server and a Celery child at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest

from example_project.demo.processes import Process, free_port, poll
from example_project.demo.receiver import Receiver
from example_project.demo.story import read_lines
from tests.e2e.project import PATIENCE, REDIS, Project, Site, celery_sender
from tests.management.test_tail import LAUNCH

pytestmark = pytest.mark.slow

WORKERS = 4

VIEW = """
import os, threading
from django.apps import apps
from django.http import JsonResponse
from django.urls import path

def state(request):
    watch = apps.get_app_config("django_obs").watch
    threads = [thread.name for thread in threading.enumerate()]
    return JsonResponse({"pid": os.getpid(), "watched": watch.copier is not None, "threads": threads})

def fail(request):
    raise RuntimeError("It broke")

urlpatterns = [path("state", state), path("fail", fail)]
"""

CELERY = """
import os
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.broker_connection_retry_on_startup = True

@app.task(name="shop.pay", ignore_result=True)
def pay():
    pass
"""

PRODUCTION = """
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
"""


@dataclass(frozen=True)
class Shop:
    project: Project
    gunicorn: Site
    uvicorn: Site
    send_task: Callable[[], object]
    collector: Receiver

    def states(self) -> dict[int, dict[str, Any]]:
        """Ask until each worker, and the ASGI server, has answered; return the last answer of each."""
        found: dict[int, dict[str, Any]] = {}

        def complete() -> bool:
            for site in (self.gunicorn, self.uvicorn):
                answer = json.loads(site.request("/state")[1])
                found[answer["pid"]] = answer
            return len(found) > WORKERS

        assert poll(complete, PATIENCE), found
        return found

    def follow(self, *, watched: bool) -> None:
        """Ask until all of them are watched, or none."""
        assert poll(lambda: all(each["watched"] is watched for each in self.states().values()), 2 * PATIENCE)


def start_worker(project: Project, stack: ExitStack) -> tuple[Process, Callable[[], object]]:
    """Start a Celery worker with one child; return it and what sends it a task. Servers started later know its app."""
    app, queue = celery_sender()
    package = project.directory / "shop"
    (package / "celery.py").write_text(CELERY)
    (package / "__init__.py").write_text("from .celery import app as celery_app\n")
    project.env |= {"BROKER": REDIS, "QUEUE": queue}
    worker = project.start(
        "celery", "-m", "celery", "-A", "shop", "worker", "--pool=prefork", "--concurrency=1", "--without-mingle"
    )
    worker.wait_ready(lambda: " ready." in worker.said(), PATIENCE)
    stack.callback(lambda: app.connection_for_write().default_channel.queue_delete(queue))
    return worker, lambda: app.send_task("shop.pay", queue=queue)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("watch")
        collector = Receiver()
        stack.callback(collector.close)
        project = Project(directory, stack, otlp_endpoint=collector.url)
        for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
            project.env.pop(name, None)
        (directory / "shop" / "urls.py").write_text(VIEW)
        with (directory / "shop" / "settings.py").open("a") as settings:
            settings.write(PRODUCTION)
        _, send_task = start_worker(project, stack)
        port = free_port()
        server = project.start(
            "gunicorn",
            *("-m", "gunicorn", "shop.wsgi", f"--bind=127.0.0.1:{port}", f"--workers={WORKERS}"),
            f"--control-socket={directory / 'gunicorn.ctl'}",
        )
        uvicorn = project.serve("uvicorn")
        yield Shop(project, Site(server.wait_port(port, PATIENCE), port), uvicorn, send_task, collector)


def watch_of(metrics: Site) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(metrics.request("/watch")[1])
    return state


@contextmanager
def serve_metrics(project: Project) -> Iterator[Site]:
    """Serve until the end of the block. Others share the workers: a test that fails leaves no order of its own."""
    metrics = project.serve_metrics()
    with metrics.process:
        try:
            yield metrics
        except BaseException:
            with suppress(AssertionError, TimeoutExpired):
                project.manage("obs", "watch", "--off")
            raise


@contextmanager
def tailing(project: Project, metrics: Site, *arguments: str) -> Iterator[Process]:
    with project.start("tail", "-c", LAUNCH, "tail", "--json", *arguments) as tail:
        assert poll(lambda: watch_of(metrics)["watched"], PATIENCE), tail.said()
        yield tail


def items(tail: Process) -> list[dict[str, Any]]:
    return list(read_lines(tail.out))


def test_tail_shows_workers_asgi_server_and_celery_child_at_once_and_ends_with_them_unwatched(shop: Shop) -> None:
    with serve_metrics(shop.project) as metrics:
        assert watch_of(metrics)["watched"] is False
        assert not any(each["watched"] for each in shop.states().values())

        with tailing(shop.project, metrics) as tail:
            shop.follow(watched=True)
            pids = set(shop.states())

            def seen() -> set[int]:
                shop.states()
                return {item["pid"] for item in items(tail) if item.get("logger") == "django_obs.access"}

            assert poll(lambda: seen() >= pids, 2 * PATIENCE), (pids, tail.said())

            def worked() -> list[dict[str, Any]]:
                shop.send_task()
                return [item for item in items(tail) if item["role"] == "task" and item["pid"]]

            assert poll(worked, 2 * PATIENCE), tail.said()
            for item in items(tail):
                assert item["role"] == "web" or item["pid"] not in pids
            # A request is shown once, though its line and its span have come.
            ends = [
                (item["trace_id"], item["span_id"])
                for item in items(tail)
                if item["span_id"] and (item["type"] == "finished" or item["logger"] == "django_obs.access")
            ]
            assert len(ends) == len(set(ends))
            newest = json.loads(metrics.request("/tail?last=1000")[1])["items"]
            spans = [item for item in newest if item["type"] == "finished" and item["name"] == "GET /state"]
            assert {item["pid"] for item in spans} >= pids
            assert {(item["trace_id"], item["span_id"]) for item in spans} & set(ends)

            os.kill(tail.pid, signal.SIGINT)
            assert poll(lambda: not tail.running, PATIENCE)
            assert tail.popen.returncode == 130
            shop.follow(watched=False)

            def threads() -> set[str]:
                return {name for each in shop.states().values() for name in each["threads"]}

            # A process is unwatched before its thread has come to its end.
            assert poll(lambda: "django_obs-watch" not in threads(), PATIENCE)


def test_watch_ends_by_itself(shop: Shop) -> None:
    with serve_metrics(shop.project) as metrics:
        assert "operator" in shop.project.manage("obs", "watch", "--for", "10m")
        shop.follow(watched=True)
        shop.gunicorn.request("/fail")
        assert poll(
            lambda: any(
                item["error"] and item["type"] == "finished"
                for item in json.loads(metrics.request("/tail?last=100&errors=1")[1])["items"]
            ),
            PATIENCE,
        )
        # Now that all of them are known to watch: nobody switches it off.
        shop.project.manage("obs", "watch", "--for", "1s")
        shop.follow(watched=False)
        assert watch_of(metrics)["watched"] is False


def test_processes_stop_when_the_port_is_gone_and_lose_nothing(shop: Shop) -> None:
    with serve_metrics(shop.project) as metrics:
        shop.project.manage("obs", "watch", "--for", "1h")
        shop.follow(watched=True)
        # It takes connections and answers nothing: the collector gets its spans all the same.
        os.kill(metrics.process.pid, signal.SIGSTOP)
        before = len(shop.collector.spans)
        shop.states()
        assert poll(lambda: len(shop.collector.spans) > before, 2 * PATIENCE)
        metrics.process.stop(signal.SIGKILL)
        shop.follow(watched=False)
        before = len(shop.collector.spans)
        shop.states()
        assert poll(lambda: len(shop.collector.spans) > before, 2 * PATIENCE)

    # The order still holds: the next port takes it over, and they follow again.
    with serve_metrics(shop.project):
        shop.follow(watched=True)
        shop.project.manage("obs", "watch", "--off")
        shop.follow(watched=False)


def test_celery_child_is_watched_in_the_trace_of_its_request(tmp_path: Path) -> None:
    with ExitStack() as stack:
        # No collector: what is watched goes nowhere else.
        project = Project(tmp_path, stack, otlp_endpoint=f"http://127.0.0.1:{free_port()}")
        project.env |= {"DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "run"), "DJANGO_OBS_FLUSH_TIMEOUT": "1"}
        worker, send_task = start_worker(project, stack)
        metrics = stack.enter_context(serve_metrics(project))
        # As startproject leaves it, DEBUG is on.
        assert watch_of(metrics)["holders"] == ["DEBUG"]
        tail = stack.enter_context(tailing(project, metrics, "off,[shop.pay]"))

        def shown() -> list[dict[str, Any]]:
            send_task()
            return [item for item in items(tail) if item["role"] == "task" and item["pid"]]

        def traced() -> list[dict[str, Any]]:
            # The line of a task that ended just before the order came may be copied without its span.
            return [task for item in shown() for task in finished(metrics, item["trace_id"])]

        assert poll(shown, PATIENCE), tail.said() + worker.said()
        assert poll(traced, PATIENCE), tail.said() + worker.said()
        assert all(task["name"].endswith("shop.pay") for task in traced())


def finished(metrics: Site, trace_id: str) -> list[dict[str, Any]]:
    """Return the finished tasks of a trace whose spans have come."""
    answer = json.loads(metrics.request(f"/tail?last=1000&trace={trace_id}")[1])
    return [item for item in answer["items"] if item["type"] == "finished"]

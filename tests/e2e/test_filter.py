from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from example_project.demo.processes import Process, free_port, poll
from example_project.demo.story import read_lines
from tests.e2e.project import PATIENCE, REDIS, Project, Site, celery_sender

WORKERS = 4
# Each process looks every half a second; the rest is for a machine under load, which may stall for many times that.
ARRIVAL = 20.0

VIEW = """
import logging, os, time
from django.http import JsonResponse
from django.urls import path

def level(request):
    debug = logging.getLogger("shop").isEnabledFor(logging.DEBUG)
    return JsonResponse({"pid": os.getpid(), "debug": debug, "time": time.time()})

urlpatterns = [path("level", level)]
"""


@dataclass(frozen=True)
class Answer:
    """What one worker says: whether the logger ``shop`` is at debug, and when it was asked."""

    pid: int
    debug: bool
    time: float


@dataclass(frozen=True)
class Shop:
    project: Project
    site: Site

    def ask(self) -> Answer:
        return Answer(**json.loads(self.site.request("/level")[1]))

    def ask_workers(self, count: int = WORKERS) -> dict[int, Answer]:
        """Ask until so many workers have answered; return the last answer of each."""
        answers: dict[int, Answer] = {}

        def complete() -> bool:
            answer = self.ask()
            answers[answer.pid] = answer
            return len(answers) >= count

        assert poll(complete, PATIENCE), answers
        return answers

    def follow(self, *, debug: bool, since: float) -> None:
        """Ask until all workers say so; those that did not may have said it no later than `ARRIVAL` seconds `since`."""
        late: list[Answer] = []

        def agreed() -> bool:
            answers = self.ask_workers().values()
            late.extend(each for each in answers if each.debug is not debug and each.time > since + ARRIVAL)
            return all(each.debug is debug for each in answers)

        assert poll(agreed, PATIENCE)
        assert late == []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("filter")
        project = Project(directory, stack, otlp_endpoint="http://127.0.0.1:4318")
        # The processes find each other through what a unit or a login gives, or through nothing: here the last.
        for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
            project.env.pop(name, None)
        project.env |= {"DJANGO_OBS_TRACES_ENABLED": "false", "TMPDIR": str(directory / "tmp")}
        (directory / "shop" / "urls.py").write_text(VIEW)
        port = free_port()
        server = project.start(
            "gunicorn",
            *("-m", "gunicorn", "shop.wsgi", f"--bind=127.0.0.1:{port}", f"--workers={WORKERS}"),
            f"--control-socket={directory / 'gunicorn.ctl'}",
        )
        yield Shop(project, Site(server.wait_port(port, PATIENCE), port))


def test_order_reaches_all_workers_and_newcomers_and_expires(shop: Shop) -> None:
    # An earlier try that failed may have left an order, to the same workers.
    shop.project.manage("obs", "filter", "--reset")
    shop.follow(debug=False, since=time.time())
    assert not any(answer.debug for answer in shop.ask_workers().values())

    shown = shop.project.manage("obs", "filter", "info,shop=debug", "--for", "1h")
    shop.follow(debug=True, since=time.time())
    assert "info,shop=debug" in shown

    os.kill(shop.site.process.pid, signal.SIGTTIN)  # One worker more.
    try:
        answers = shop.ask_workers(WORKERS + 1)
        assert all(answer.debug for answer in answers.values())
    finally:
        os.kill(shop.site.process.pid, signal.SIGTTOU)

    shop.project.manage("obs", "filter", "--reset")
    shop.follow(debug=False, since=time.time())

    # As long as it may take until all have answered while it holds; the test waits for its end.
    shop.project.manage("obs", "filter", "info,shop=debug", "--for", "20s")
    ordered = time.time()
    shop.follow(debug=True, since=ordered)
    shop.follow(debug=False, since=ordered + 20)


def test_status_counts_the_workers(shop: Shop) -> None:
    shop.ask_workers()
    shown = shop.project.manage("obs", "status")
    pids = {int(line.split()[0]) for line in shown.splitlines() if line.startswith(" ")}
    assert set(shop.ask_workers()) & pids


# -- Celery


CELERY = """
import logging, os
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.broker_connection_retry_on_startup = True

@app.task(name="shop.ask", ignore_result=True)
def ask():
    logger = logging.getLogger("shop")
    logger.error("asked", extra={"debug": logger.isEnabledFor(logging.DEBUG)})
"""


def test_order_reaches_a_celery_child(tmp_path: Path) -> None:
    app, queue = celery_sender()

    def said(worker: Process) -> list[tuple[bool, float]]:
        """Return what the child said so far: whether it is at debug, and when it was asked."""
        return [
            (line["debug"], datetime.fromisoformat(line["timestamp"]).timestamp())
            for line in read_lines(worker.out)
            if line.get("message") == "asked"
        ]

    def follow(worker: Process, *, debug: bool, since: float) -> None:
        def agreed() -> bool:
            app.send_task("shop.ask", queue=queue)
            return any(each is debug and when > since for each, when in said(worker))

        assert poll(agreed, PATIENCE), worker.said()
        assert [when for each, when in said(worker) if each is not debug and when > since + ARRIVAL] == []

    with ExitStack() as stack:
        project = Project(tmp_path, stack, otlp_endpoint="http://127.0.0.1:4318")
        package = tmp_path / "shop"
        (package / "celery.py").write_text(CELERY)
        (package / "__init__.py").write_text("from .celery import app as celery_app\n")
        project.env |= {
            "BROKER": REDIS,
            "QUEUE": queue,
            "DJANGO_OBS_TRACES_ENABLED": "false",
            "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "run"),
        }
        worker = project.start(
            "celery", "-m", "celery", "-A", "shop", "worker", "--pool=prefork", "--concurrency=1", "--without-mingle"
        )
        worker.wait_ready(lambda: " ready." in worker.said(), PATIENCE)
        stack.callback(lambda: app.connection_for_write().default_channel.queue_delete(queue))

        follow(worker, debug=False, since=0)
        project.manage("obs", "filter", "info,shop=debug", "--for", "1h")
        follow(worker, debug=True, since=time.time())
        project.manage("obs", "filter", "--reset")
        follow(worker, debug=False, since=time.time())

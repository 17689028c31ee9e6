"""Celery through real brokers: a request's task is its child, in every pool."""

from __future__ import annotations

import json
import os
import re
import uuid
from contextlib import ExitStack
from typing import Any
from urllib.request import urlopen

import pytest

from example_project.demo.processes import Process, poll
from example_project.demo.story import read_lines
from tests.e2e.project import PATIENCE, Project
from tests.traces.support import Collector, attributes, collector

BROKERS = {
    "redis": os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0"),
    "rabbitmq": os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"),
}

APP = """
import os
from celery import Celery, shared_task
from django.http import JsonResponse

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = True

@app.task(name="shop.ship")
def ship(order):
    import logging
    from django.contrib.contenttypes.models import ContentType
    logging.getLogger("shop").info("shipping %s", order)
    return ContentType.objects.count()

@app.task(name="shop.fail")
def fail():
    raise ValueError("no stock")

@app.task(name="shop.stubborn", bind=True, max_retries=1)
def stubborn(self):
    if self.request.retries < 1:
        raise self.retry(exc=RuntimeError("again"), countdown=0)
"""

URLS = """
from django.http import JsonResponse
from django.urls import path
from django_obs import bind
from shop.celery import fail, ship, stubborn

def order(request):
    bind(customer=7)
    return JsonResponse({"ids": [ship.delay(1).id, fail.delay().id, stubborn.delay().id]})

urlpatterns = [path("order/", order)]
"""

SEND = """
import django
django.setup()
from django.test import Client
print(Client(headers={"host": "localhost", "x-request-id": "order-1"}).get("/order/").content.decode())
"""


@pytest.fixture(params=sorted(BROKERS))
def broker(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("celery")
    from kombu import Connection

    url = BROKERS[request.param]
    try:
        with Connection(url, connect_timeout=20) as connection:
            connection.ensure_connection(max_retries=1)
    except Exception as error:
        pytest.skip(f"service {request.param}: {error}")
    return url


class Shop:
    """A project with a Celery app, its collector, and a queue of its own."""

    def __init__(self, project: Project, receiver: Collector, broker: str) -> None:
        self.project = project
        self.receiver = receiver
        self.queue = f"test-{uuid.uuid4().hex[:8]}"
        package = project.directory / "shop"
        (package / "celery.py").write_text(APP)
        (package / "__init__.py").write_text("from .celery import app as celery_app\n")
        (package / "urls.py").write_text(URLS)
        project.env |= {"BROKER": broker, "QUEUE": self.queue, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        project.manage("migrate", "-v0")

    def work(self, pool: str) -> Process:
        worker = self.project.start(
            f"celery-{pool}",
            "-m",
            "celery",
            "-A",
            "shop",
            "worker",
            f"--pool={pool}",
            "--concurrency=2",
            "--without-mingle",
            # Two of one name on a RabbitMQ would take the mailbox from each other.
            f"--hostname={self.queue}@%h",
        )
        # Celery prints its banner before it listens, so that ready is who says so.
        return worker.wait_ready(lambda: " ready." in worker.said(), PATIENCE)

    def send(self) -> list[str]:
        """Have a request send the three tasks; return their ids."""
        said = self.project.run("-c", SEND).splitlines()
        return next(line["ids"] for line in map(json.loads, said) if "ids" in line)

    def spans(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for span in self.receiver.spans():
            found.setdefault(span.name, []).append(span)
        return found

    def remove_queue(self) -> None:
        from kombu import Connection

        with Connection(self.project.env["BROKER"]) as connection:
            connection.default_channel.queue_delete(self.queue)


@pytest.fixture
def shop(tmp_path, broker):
    with ExitStack() as stack:
        receiver = stack.enter_context(collector())
        project = Project(tmp_path, stack, otlp_endpoint=f"http://127.0.0.1:{receiver.port}")
        project.env["DJANGO_OBS_RUNTIME_DIR"] = str(tmp_path / "runtime")
        # Whoever exports for the first time at its exit imports the exporter in that time.
        project.env["DJANGO_OBS_FLUSH_TIMEOUT"] = str(PATIENCE)
        shop = Shop(project, receiver, broker)
        stack.callback(shop.remove_queue)
        yield shop


def lines(process: Process) -> list[dict[str, Any]]:
    return list(read_lines(process.out))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_task_is_child_of_request_in_all_signals(shop, pool):
    worker = shop.work(pool)
    sent = shop.send()

    def tasks() -> list[dict[str, Any]]:
        return [line for line in lines(worker) if "task_id" in line and line["logger"] == "django_obs.access"]

    assert poll(lambda: len(tasks()) >= 4, PATIENCE), worker.said()
    # Its exit flushes, which may wait as long as the timeout of the flush.
    assert worker.stop(timeout=2 * PATIENCE) == 0, worker.said()

    # Spans
    spans = shop.spans()
    assert "GET /order/" in spans, sorted(spans)
    (server,) = spans["GET /order/"]
    for name in ("ship", "fail", "stubborn"):
        producer = next(s for s in spans[f"apply_async/shop.{name}"] if s.parent_span_id == server.span_id)
        consumer = next(s for s in spans[f"run/shop.{name}"] if s.parent_span_id == producer.span_id)
        assert (producer.kind, consumer.kind) == (4, 5)
        assert producer.trace_id == consumer.trace_id == server.trace_id
        assert attributes(consumer)["messaging.destination.name"] == shop.queue
        assert attributes(consumer)["messaging.system"] in ("redis", "rabbitmq")
    assert len(spans["run/shop.stubborn"]) == 2
    assert spans["run/shop.fail"][0].status.code == 2
    ship = spans["run/shop.ship"][0]
    assert any(s.parent_span_id == ship.span_id and s.kind == 3 for found in spans.values() for s in found)

    # Lines
    by_id = {}
    for line in tasks():
        by_id.setdefault(line["task_id"], []).append(line)
    assert [line["outcome"] for line in by_id[sent[0]]] == ["succeeded"]
    assert [line["outcome"] for line in by_id[sent[1]]] == ["failed"]
    # Two children of a pool write each on their own.
    assert sorted(line["outcome"] for line in by_id[sent[2]]) == ["retried", "succeeded"]
    for line in tasks():
        assert line["request_id"] == "order-1"
        assert line["trace_id"] == server.trace_id.hex()
        assert line["customer"] == 7
        assert line["queue_ms"] >= 0
    (shipping,) = [line for line in lines(worker) if line["message"] == "shipping 1"]
    assert (shipping["request_id"], shipping["span_id"]) == ("order-1", ship.span_id.hex())

    # Samples
    page = scrape(shop.project)

    def total(name: str, task: str) -> float:
        pattern = rf"^{name}{{([^}}]*)}} (\S+)$"
        return sum(
            float(number)
            for labels, number in re.findall(pattern, page, re.MULTILINE)
            if f'name="shop.{task}"' in labels and f'queue_name="{shop.queue}"' in labels
        )

    assert total("celery_task_sent_total", "ship") == 1
    assert total("celery_task_sent_total", "stubborn") == 2
    for task, runs in (("ship", 1), ("fail", 1), ("stubborn", 2)):
        assert total("celery_task_received_total", task) == runs
        assert total("celery_task_started_total", task) == runs
        assert total("celery_task_queue_seconds_count", task) == runs
    assert total("celery_task_succeeded_total", "ship") == 1
    assert total("celery_task_runtime_count", "ship") == 1
    assert total("celery_task_failed_total", "fail") == 1
    assert 'exception="ValueError"' in page
    assert total("celery_task_retried_total", "stubborn") == 1
    assert not re.search(r"^celery_worker_tasks_active{[^}]*} [1-9]", page, re.MULTILINE)


def scrape(project: Project) -> str:
    site = project.serve_metrics()
    with urlopen(f"http://127.0.0.1:{site.port}/metrics", timeout=PATIENCE) as response:
        return response.read().decode()

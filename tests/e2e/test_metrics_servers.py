"""Exact totals under the servers that people run, while their workers come, go and are killed."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_obs.metrics.scraper import Scraper
from example_project.demo.processes import free_port

CLIENTS = 4
REQUESTS = 1600
PATIENCE = 120

SITE = """
import os
import time
import django
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
asgi = get_asgi_application()
"""


class Server:
    """A server of the test project in a process group of its own."""

    def __init__(self, directory: Path, *command: str) -> None:
        self.directory = directory
        (directory / "served.py").write_text(SITE)
        self.port = free_port()
        self.log = directory / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [part.replace("PORT", str(self.port)) for part in command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=directory,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                    "DJANGO_OBS_RUNTIME_DIR": str(directory / "runtime"),
                    "DJANGO_OBS_TRACES_ENABLED": "false",
                    "DJANGO_OBS_LOGS_FILTER": "off",
                    "PYTHONPATH": os.pathsep.join([str(directory), os.getcwd()]),
                },
            )
        self.scraper = Scraper(lambda: directory / "runtime" / "metrics")

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def ask(self, count: int) -> None:
        for _ in range(count):
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            client.request("GET", "/")
            assert client.getresponse().read() == b"ok"
            client.close()

    def ask_by_many(self) -> None:
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                self.ask(REQUESTS // CLIENTS)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, (failures, self.log.read_text()[-3000:])

    def value(self, name: str) -> float:
        return sum(
            sample.value for family in self.scraper.collect() for sample in family.samples if sample.name == name
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*command: str) -> Server:
        started.append(Server(tmp_path, *command))
        return started[-1]

    yield start
    for server in started:
        server.stop()


GUNICORN = (sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:PORT", "--no-control-socket")
SERVERS = {
    "gunicorn-recycling": (*GUNICORN, "--workers=4", "--max-requests=40", "served:application"),
    "gunicorn-preload": (*GUNICORN, "--workers=4", "--max-requests=40", "--preload", "served:application"),
    "gunicorn-gthread": (*GUNICORN, "--workers=2", "--threads=4", "served:application"),
    "gunicorn-uvicorn": (*GUNICORN, "--workers=2", "--worker-class=uvicorn_worker.UvicornWorker", "served:asgi"),
    "uvicorn": (sys.executable, "-m", "uvicorn", "--workers=2", "--port=PORT", "--log-level=warning", "served:asgi"),
    "uwsgi-prefork": (
        shutil.which("uwsgi", path=str(Path(sys.executable).parent)) or "uwsgi",
        *("--http-socket=127.0.0.1:PORT", "--module=served:application", "--master", "--processes=3"),
        *("--max-requests=40", "--die-on-term", "--disable-logging", "--need-app"),
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_every_request_is_counted_once(serve: Callable[..., Server], name: str) -> None:
    command = SERVERS[name]
    if name.startswith("uwsgi") and not os.path.exists(command[0]):
        pytest.skip("uWSGI is not installed")
    server = serve(*command)
    server.wait()
    server.ask_by_many()
    names = (
        "django_http_requests_before_middlewares_total",
        "django_http_responses_total_by_status_view_method_total",
        "django_http_requests_latency_including_middlewares_seconds_count",
        "http_server_request_duration_seconds_count",
    )
    # The answer is out before the middleware has counted it.
    deadline = time.monotonic() + 60
    while any(server.value(one) < REQUESTS for one in names) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [server.value(one) for one in names] == [REQUESTS] * len(names)
    assert server.value("http_server_active_requests") == 0
    files = list((server.directory / "runtime" / "metrics").glob("lane-*"))
    # As many as ever lived at once, the master and the helpers of the server included, not as many as ever lived.
    assert len(files) <= 12
    server.stop()
    assert [server.value(one) for one in names] == [REQUESTS] * len(names)
    assert not any(lane.alive for lane in server.scraper.lanes())


CELERY = """
import os, signal, pathlib
import django
django.setup()
from celery import Celery
from prometheus_client import Counter, Gauge
here = pathlib.Path(__file__).parent
app = Celery("jobs", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(here / "queue"), "data_folder_out": str(here / "queue"), "store_processed": False,
}
app.conf.task_ignore_result = True
app.conf.worker_hijack_root_logger = False
run = Counter("jobs_run", "Jobs that were begun")
done = Counter("jobs_done", "Jobs that were done")
busy = Gauge("jobs_busy", "Jobs that are being worked on", multiprocess_mode="livesum")

@app.task(name="job")
def job(number):
    run.inc()
    with busy.track_inprogress():
        if number % 10 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    done.inc()
"""


def test_killed_children_of_celery_lose_no_count_and_leave_no_phantom(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    pytest.importorskip("celery")
    (tmp_path / "jobs.py").write_text(CELERY)
    (tmp_path / "queue").mkdir()
    count = 60
    send = f"from jobs import job\nfor number in range({count}): job.apply_async((number,))"
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()]),
        "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "runtime"),
        "DJANGO_OBS_TRACES_ENABLED": "false",
    }
    subprocess.run([sys.executable, "-c", send], check=True, env=env, cwd=tmp_path, timeout=PATIENCE)
    # Only now: kombu reads the files without the lock under which it writes them, so that a worker would meet halves.
    server = serve(
        *(sys.executable, "-m", "celery", "--app=jobs", "worker", "--pool=prefork", "--concurrency=2"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"),
    )
    deadline = time.monotonic() + PATIENCE
    while server.value("jobs_done_total") < count * 0.9:
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        time.sleep(0.1)
    while server.value("jobs_run_total") < count:
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.1)
    assert server.value("jobs_run_total") == count
    assert server.value("jobs_done_total") == count * 0.9
    assert server.value("jobs_busy") == 0

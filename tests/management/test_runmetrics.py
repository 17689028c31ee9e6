"""The command as an operator runs it: a process with a port."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from example_project.demo.processes import free_port
from tests.server.worker import Worker


class RunMetrics:
    """A running ``runmetrics`` on a port of its choice."""

    def __init__(self, runtime_dir: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "django", "runmetrics", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "DJANGO_OBS_RUNTIME_DIR": str(runtime_dir),
                "DJANGO_OBS_TRACES_ENABLED": "false",
                "PYTHONUNBUFFERED": "1",
            },
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        found = re.search(r"(https?)://(.+):(\d+)/metrics", self.greeting)
        assert found, self.greeting + self.stop()
        self.scheme, self.host, self.port = found[1], found[2], int(found[3])

    def get(self, path: str = "/metrics") -> bytes:
        client = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            client.request("GET", path)
            return client.getresponse().read()
        finally:
            client.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return errors


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., RunMetrics]]:
    started: list[RunMetrics] = []

    def make(*arguments: str) -> RunMetrics:
        started.append(RunMetrics(tmp_path / "runtime", *arguments))
        return started[-1]

    yield make
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path / "runtime")
    yield worker
    worker.close()


def test_metrics_of_another_process_are_shown_and_own_zeros_are_not(
    run: Callable[..., RunMetrics], worker: Worker
) -> None:
    worker.get("/")
    metrics = run()
    page = metrics.get().decode()
    assert "django_http_requests_before_middlewares_total 1.0\n" in page
    assert 'django_obs_lanes{state="live"} 1.0' in page  # the worker's: runmetrics has none
    assert 'django_migrations_unapplied_total{connection="default"}' in page
    assert page.count("process_resident_memory_bytes{") == 1
    assert "python_info{" in page
    assert "python_gc_objects_collected_total" not in page
    worker.get("/")
    assert "django_http_requests_before_middlewares_total 2.0\n" in metrics.get().decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_at_once_and_cleanly(run: Callable[..., RunMetrics], number: signal.Signals) -> None:
    metrics = run()
    # Somebody who has asked and stays, for whom 130 seconds are waited, and somebody who does not go on.
    with (
        socket.create_connection((metrics.host, metrics.port)) as client,
        socket.create_connection((metrics.host, metrics.port)) as another,
    ):
        client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1)
        another.sendall(b"GET /metrics HT")
        assert metrics.stop(number) == ""
    assert metrics.process.returncode == 0


def test_taken_port_is_told_with_the_way_to_its_owner(run: Callable[..., RunMetrics], tmp_path: Path) -> None:
    metrics = run()
    done = subprocess.run(
        [sys.executable, "-m", "django", "runmetrics", "--port", str(metrics.port)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "runtime"),
        },
    )
    assert done.returncode == 1
    assert f"CommandError: Port {metrics.port} of 127.0.0.1 is taken." in done.stderr
    assert f"ss -ltnp 'sport = :{metrics.port}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_web_config_with_a_mistake_is_told(run: Callable[..., RunMetrics], tmp_path: Path) -> None:
    config = tmp_path / "web.yml"
    config.write_text("tls_server_config: {cert: a}")
    with pytest.raises(AssertionError, match=r"CommandError: .*does not know 'cert'"):
        run("--web-config", str(config))


def test_reset_starts_anew_while_others_go_on(run: Callable[..., RunMetrics], worker: Worker) -> None:
    worker.get("/")
    worker.get("/")
    metrics = run("--reset")
    # Not there yet, or at zero where the worker has been quick.
    assert not re.search(r"^django_http_requests_before_middlewares_total [1-9]", metrics.get().decode(), re.MULTILINE)
    # The worker notices by the clock and begins again.
    deadline = time.monotonic() + 60
    while "django_http_requests_before_middlewares_total 1.0\n" not in (page := metrics.get().decode()):
        assert time.monotonic() < deadline, page
        worker.do("from django.apps import apps; apps.get_app_config('django_obs').metrics.tend()")
        # At zero, the worker has begun again between a request and its count.
        if not re.search(r"^django_http_requests_before_middlewares_total [1-9]", page, re.MULTILINE):
            worker.get("/")


def test_filter_reaches_another_process(run: Callable[..., RunMetrics], worker: Worker) -> None:
    metrics = run()
    client = http.client.HTTPConnection(metrics.host, metrics.port, timeout=60)
    client.request("PUT", "/filter?seconds=60", "shop=debug")
    response = client.getresponse()
    assert response.status == 200
    assert json.loads(response.read())["filter"] == "shop=debug"
    client.close()
    worker.do(
        "import logging\n"
        "from django_obs import runtime\n"
        "control = runtime.control_file()\n"
        "assert control.poll()\n"
        "assert control.filter.text == 'shop=debug', control.filter"
    )


def test_same_application_is_served_by_any_wsgi_server(worker: Worker, tmp_path: Path) -> None:
    worker.get("/")
    code = """
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator
from django_obs.server import application
environ = {}
setup_testing_defaults(environ)
environ.update(PATH_INFO="/metrics", QUERY_STRING="")
answer = validator(application)(environ, lambda status, headers, exc_info=None: print(status))
print(b"".join(answer).decode())
answer.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "runtime"),
        },
    )
    assert done.stdout.startswith("200 OK\n"), done.stderr
    assert "django_http_requests_before_middlewares_total 1.0\n" in done.stdout


PROMETHEUS = """
global: {{scrape_interval: 5s, scrape_timeout: 5s}}
scrape_configs:
- job_name: django
  scheme: {scheme}
  tls_config: {{ca_file: {directory}/ca.pem, server_name: localhost}}
  basic_auth: {{username: prometheus, password: secret}}
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class TextOnly(BaseHTTPRequestHandler):
    """Passes a scrape on as one that knows nothing but text: Debian's Prometheus cannot be told to ask for it."""

    port = 0
    context: ssl.SSLContext

    def do_GET(self) -> None:
        client = http.client.HTTPSConnection("localhost", self.port, timeout=60, context=self.context)
        client.request(
            "GET",
            self.path,
            headers={"Accept": "text/plain; version=0.0.4", "Authorization": self.headers["Authorization"]},
        )
        response = client.getresponse()
        body = response.read()
        client.close()
        self.send_response(response.status)
        self.send_header("Content-Type", response.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.mark.slow
@pytest.mark.parametrize("page", ["openmetrics", "text"])
def test_prometheus_scrapes_with_tls_and_a_password(
    run: Callable[..., RunMetrics], worker: Worker, tmp_path: Path, page: str
) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("service prometheus: not installed")
    trustme = pytest.importorskip("trustme")
    bcrypt = pytest.importorskip("bcrypt")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: server.pem, key_file: server.key}}\n"
        f"basic_auth_users: {{prometheus: {hashed}}}\n"
    )
    worker.get("/")
    metrics = run("--web-config", str(tmp_path / "web.yml"))
    assert metrics.scheme == "https"
    with ExitStack() as stack:
        scheme, port = "https", metrics.port
        if page == "text":
            TextOnly.port = metrics.port
            TextOnly.context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), TextOnly))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            scheme, port = "http", server.server_port
        (tmp_path / "prometheus.yml").write_text(PROMETHEUS.format(directory=tmp_path, scheme=scheme, port=port))
        database = stack.enter_context(Prometheus(prometheus, tmp_path))
        database.wait_for("django_http_requests_before_middlewares_total", ["1"])
        # A scrape that is late takes away until the next what the one before has brought.
        database.wait_for('up{job="django"}', ["1"])
        database.wait_for("http_server_request_duration_seconds_count", ["1"])
        database.wait_for("count(process_resident_memory_bytes)", ["1"])


class Prometheus:
    """A real Prometheus server that scrapes as `prometheus.yml` in the directory says."""

    def __init__(self, program: str, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "prometheus.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def query(self, expression: str) -> list[str]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            client.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            answer = json.loads(client.getresponse().read())
        except (OSError, ValueError):
            return []
        finally:
            client.close()
        return [each["value"][1] for each in answer.get("data", {}).get("result", [])]

    def wait_for(self, expression: str, result: list[str]) -> None:
        deadline = time.monotonic() + 60
        while self.query(expression) != result:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

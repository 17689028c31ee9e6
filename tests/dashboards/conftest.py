"""A real Prometheus that scrapes the ``runmetrics`` of the example project, which works meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import django_obs
from example_project.demo.processes import Process, free_port

ROOT = Path(__file__).parent.parent.parent
BROKER = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
PATIENCE = 120
# Long enough to hold two scrapes of a busy machine, short enough to be filled at once.
WINDOW = "30s"

CONFIG = """
global: {{scrape_interval: 2s, scrape_timeout: 2s}}
scrape_configs:
  - job_name: django
    static_configs:
      - targets: ["127.0.0.1:{port}"]
        labels: {{namespace: shops, cluster: town}}
"""


@dataclass
class Observed:
    """A Prometheus and the site that it watches."""

    port: int
    site: int
    stop: threading.Event = field(default_factory=threading.Event)

    def is_ready(self) -> bool:
        """Tell whether Prometheus answers queries."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def ask(self, api: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' API; raises AssertionError with what it complains of."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", f"/api/v1/{api}?{urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return answer["data"]

    def work(self) -> None:
        """Have the site do everything that there are panels for, until told to stop."""
        paths = ["/", "/products/teapot/", "/nothing/", "/broken/", "/stock/", "/troubles/", "/tasks/"]
        paths += [f"/{place}/{status}/" for place in ("admin", "answer") for status in (200, 302, 404, 500)]
        while not self.stop.wait(0.2):
            for path in paths:
                connection = HTTPConnection("127.0.0.1", self.site, timeout=PATIENCE)
                headers = {"Connection": "close", "X-Request-Start": f"t={time.time()}"}
                with suppress(OSError, HTTPException):
                    connection.request("GET", path, headers=headers)
                    connection.getresponse().read()
                connection.close()


def forget(queue: str) -> None:
    """Remove what nobody will work on any more."""
    from redis import Redis

    with Redis.from_url(BROKER) as redis:
        redis.delete(queue, f"_kombu.binding.{queue}")


# Not for the session: the site works as long as it lasts.
@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("service prometheus: not installed")
    pytest.importorskip("celery")
    pytest.importorskip("redis")
    from kombu import Connection

    try:
        with Connection(BROKER, connect_timeout=20) as connection:
            connection.ensure_connection(max_retries=1, timeout=20)
    except Exception as error:
        pytest.skip(f"service redis: {error}")
    directory = tmp_path_factory.mktemp("observed")
    temporary = directory / "tmp"
    temporary.mkdir()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_", "XDG_"))},
        "DJANGO_SETTINGS_MODULE": "tests.dashboards.watched.settings",
        "DATABASE_URL": f"sqlite:///{directory / 'shop.sqlite3'}",
        "BROKER": BROKER,
        "QUEUE": f"django_obs-{uuid.uuid4().hex}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(django_obs.__file__).parent.parent)]),
        "TMPDIR": str(temporary),
    }
    with ExitStack() as stack:
        stack.callback(forget, env["QUEUE"])

        def start(name: str, *command: str | Path) -> Process:
            return stack.enter_context(Process(name, command, directory=directory, env=env, cwd=directory))

        start("migrate", sys.executable, "-m", "django", "migrate", "--verbosity=0").finish()
        site, metrics, port = free_port(), free_port(), free_port()
        bind = (f"--bind=127.0.0.1:{site}", "--workers=2", f"--control-socket={directory / 'gunicorn.ctl'}")
        start("gunicorn", sys.executable, "-m", "gunicorn", "tests.dashboards.watched.wsgi", *bind).wait_port(site)
        worker = ("-m", "celery", "-A", "tests.dashboards.watched.celery", "worker", "--pool=solo")
        start("celery", sys.executable, *worker, "--loglevel=warning", "--without-gossip", "--without-mingle")
        start("runmetrics", sys.executable, "-m", "django", "runmetrics", f"--port={metrics}").wait_port(metrics)
        (directory / "prometheus.yml").write_text(CONFIG.format(port=metrics))
        observer = start(
            "prometheus",
            prometheus,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        )
        observed = Observed(port, site)
        # It listens before it answers.
        observer.wait_ready(observed.is_ready, PATIENCE)
        visitor = threading.Thread(target=observed.work, name="visitor", daemon=True)
        visitor.start()
        try:
            yield observed
        finally:
            observed.stop.set()
            visitor.join(PATIENCE)

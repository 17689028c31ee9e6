"""A project as ``django-admin startproject`` writes it, with one line more, and the processes that serve it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import django_obs
from example_project.demo.processes import Process, free_port, poll
from example_project.demo.story import read_lines

# Seconds until a server is up or a line is out: far more than it takes, for machines under load.
PATIENCE = 120
# The broker of Celery workers that no other broker is asked of.
REDIS = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def celery_sender() -> tuple[Any, str]:
    """Return a Celery app that sends through Redis, and a queue that nobody else has; skips where there is no Redis."""
    app = pytest.importorskip("celery").Celery("shop", broker=REDIS)
    app.conf.broker_transport_options = {"socket_connect_timeout": 2}
    try:
        app.connection_for_write().ensure_connection(max_retries=1)
    except Exception as error:
        pytest.skip(f"service redis: {error}")
    return app, f"test-{uuid.uuid4().hex[:8]}"


class Project:
    """A fresh project in `directory`, whose INSTALLED_APPS got ``"django_obs"`` and that is otherwise untouched."""

    def __init__(self, directory: Path, stack: ExitStack, *, otlp_endpoint: str) -> None:
        self.directory = directory
        self.stack = stack
        temporary = directory / "tmp"
        temporary.mkdir()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_", "XDG_"))},
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_endpoint,
            # Where the package under test lies: in the tree, or in site-packages.
            "PYTHONPATH": os.pathsep.join([str(directory), str(Path(django_obs.__file__).parent.parent)]),
            "PYTHONUNBUFFERED": "1",
            # Where the runtime directory is made, among others.
            "TMPDIR": str(temporary),
        }
        self.run("-m", "django", "startproject", "shop", str(directory), settings=False)
        settings = directory / "shop" / "settings.py"
        text = settings.read_text()
        assert text.count("INSTALLED_APPS = [\n") == 1
        settings.write_text(text.replace("INSTALLED_APPS = [\n", 'INSTALLED_APPS = [\n    "django_obs",\n'))

    def run(self, *arguments: str, settings: bool = True) -> str:
        """Run Python to its end; return its stdout."""
        env = dict(self.env)
        if not settings:
            del env["DJANGO_SETTINGS_MODULE"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def manage(self, *arguments: str) -> str:
        return self.run("manage.py", *arguments)

    def start(self, name: str, *arguments: str) -> Process:
        process = Process(
            name, [sys.executable, *arguments], directory=self.directory, env=self.env, cwd=self.directory
        )
        return self.stack.enter_context(process)

    def serve(self, kind: str) -> Site:
        """Start a server: ``runserver``, ``gunicorn`` (2 workers) or ``uvicorn``."""
        port = free_port()
        arguments = {
            "runserver": ["manage.py", "runserver", f"127.0.0.1:{port}"],
            "gunicorn": [
                *("-m", "gunicorn", "shop.wsgi", f"--bind=127.0.0.1:{port}", "--workers=2"),
                # It would lie in the home directory.
                f"--control-socket={self.directory / 'gunicorn.ctl'}",
            ],
            "uvicorn": ["-m", "uvicorn", "shop.asgi:application", f"--port={port}"],
        }[kind]
        return Site(self.start(kind, *arguments).wait_port(port, PATIENCE), port)

    def serve_metrics(self) -> Site:
        port = free_port()
        return Site(self.start("runmetrics", "manage.py", "runmetrics", "--port", str(port)).wait_port(port), port)


class Site:
    """A running server of the project and what it says."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.cookies: dict[str, str] = {}

    def request(
        self, path: str, *, form: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        """Send a GET, or a POST of `form`, on a connection of its own."""
        sent = {"connection": "close", **(headers or {})}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = None
        if form is not None:
            body = urlencode(form)
            sent["content-type"] = "application/x-www-form-urlencoded"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET" if form is None else "POST", path, body, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        for cookie in response.headers.get_all("set-cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return response, content

    def lines(self) -> Iterator[dict[str, Any]]:
        """Return the JSON lines that it wrote to stdout."""
        return read_lines(self.process.out)

    def wait_lines(self, count: int, **wanted: object) -> list[dict[str, Any]]:
        """Wait for `count` lines with these fields; return them."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines() if wanted.items() <= line.items()]

        assert poll(lambda: len(found()) >= count, PATIENCE), (
            f"{len(found())} lines of {count} with {json.dumps(wanted)} in:\n{self.process.said()}"
        )
        return found()

"""Run the shop and everything around it, and tell one request three times.

python -m example_project.demo          until Ctrl-C
python -m example_project.demo --once   to the end of the story
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from email.message import Message
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from example_project.demo.collector import Collector
from example_project.demo.processes import Process, StartError, free_port, is_free, poll
from example_project.demo.receiver import ReceivedSpan, Receiver
from example_project.demo.story import count_workers, read_lines, tell_lines, tell_samples, tell_trace

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = 5
# Seconds until a line or a span should be there: far more than it takes, for machines under load.
PATIENCE = 120
PAGES = ("/", "/products/leek/", "/products/goat-cheese/", "/api/products/", "/stock/", "/broken/", "/products/caviar/")


def say(text: str = "") -> None:
    print(text, flush=True)


class Demo:
    """The shop under gunicorn, `runmetrics` beside it, a collector behind it."""

    def __init__(self, stack: ExitStack, directory: Path, options: argparse.Namespace) -> None:
        self.stack = stack
        self.directory = directory
        self.workers: int = options.workers
        self.port = self.take_port("the shop", options.port)
        self.metrics_port = self.take_port("runmetrics", options.metrics_port)
        self.receiver = stack.enter_context(Receiver())
        self.collected_by = "the demo"
        endpoint = self.start_collector(options)
        self.env = os.environ | {
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{directory / 'shop.sqlite3'}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            # Whoever watches does not want to wait for the usual five seconds.
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            # Beside another shop that runs on this machine, and gone with the directory.
            "DJANGO_OBS_RUNTIME_DIR": str(directory / "run"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }

    def take_port(self, name: str, port: int) -> int:
        if port and is_free(port):
            return port
        other = free_port()
        if port:
            say(f"Port {port} is taken, so {name} gets {other}.")
        return other

    def start_collector(self, options: argparse.Namespace) -> str:
        if options.no_collector:
            say("No collector, as asked: the demo receives the spans itself.")
            return self.receiver.url
        port = self.take_port("the collector", options.collector_port)
        try:
            collector = Collector(self.directory, forward_to=self.receiver.url, http_port=port)
        except StartError as error:
            say(f"The collector does not start, so the demo receives the spans itself.\n  {error}")
            return self.receiver.url
        self.stack.enter_context(collector)
        self.collected_by = "the collector"
        say(f"A collector (rotel) listens on {collector.url}.")
        return collector.url

    def start(self, name: str, *arguments: str) -> Process:
        process = Process(name, [sys.executable, "-m", *arguments], directory=self.directory, env=self.env, cwd=ROOT)
        return self.stack.enter_context(process)

    def open_shop(self) -> None:
        self.start("migrate", "django", "migrate", "--verbosity=0").finish()
        self.shop = self.start(
            "shop",
            *("gunicorn", "example_project.wsgi", f"--bind=127.0.0.1:{self.port}", f"--workers={self.workers}"),
            # Its socket would stay in the home directory.
            "--no-control-socket",
        ).wait_port(self.port)
        self.metrics = self.start("runmetrics", "django", "runmetrics", "--port", str(self.metrics_port))
        self.metrics.wait_port(self.metrics_port)

    def get(self, path: str, data: dict[str, Any] | None = None) -> Message:
        """Ask for a page; return the headers of the answer."""
        body = None if data is None else json.dumps(data).encode()
        request = Request(f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "application/json"})
        try:
            with urlopen(request, timeout=60) as response:
                headers: Message = response.headers
                return headers
        except HTTPError as error:
            with error:
                return error.headers

    def send_traffic(self) -> int:
        """Visit every page from several visitors at once, so that every worker gets its share."""

        def visit() -> None:
            for page in PAGES:
                self.get(page)
            self.get("/api/orders/", {"product": "leek", "quantity": 2})

        for _ in range(ROUNDS):
            visitors = [threading.Thread(target=visit) for _ in range(self.workers)]
            for visitor in visitors:
                visitor.start()
            for visitor in visitors:
                visitor.join()
        self.get("/slow/")
        return ROUNDS * self.workers * (len(PAGES) + 1) + 1

    def lines(self) -> list[dict[str, Any]]:
        return list(read_lines(self.shop.out))

    def scrape(self) -> str:
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        with urlopen(Request(f"http://127.0.0.1:{self.metrics_port}/metrics", headers=accept), timeout=60) as response:
            return str(response.read().decode())


def tell(demo: Demo) -> None:
    sent = demo.send_traffic()
    # The answer names its trace: the lines of requests before it may come later.
    trace_id = demo.get("/")["x-trace-id"]

    def last_request() -> dict[str, Any] | None:
        return next((line for line in demo.lines() if "path" in line and line.get("trace_id") == trace_id), None)

    if not poll(lambda: last_request() is not None, PATIENCE):
        msg = f"No line of the request came within {PATIENCE} seconds. The shop said:\n{demo.shop.said()[-2000:]}"
        raise StartError(msg)
    line = last_request()
    assert line is not None
    spans: list[ReceivedSpan] = demo.receiver.trace(trace_id, timeout=PATIENCE)
    if not spans:
        msg = f"No span of the trace {trace_id} came within {PATIENCE} seconds."
        raise StartError(msg)
    # A process writes its exemplars once a second.
    poll(lambda: trace_id in demo.scrape(), PATIENCE)
    page = demo.scrape()
    say(f"\n{sent + 1} requests went to {count_workers(page)} worker processes. The last of them, three times:\n")
    say("1. Its line, as the worker wrote it to stdout\n")
    for text in tell_lines([line]):
        say(f"  {text}")
    say(f"\n2. Its trace, as {demo.collected_by} received it (start, duration)\n")
    for text in tell_trace(spans):
        say(f"  {text}")
    say("\n3. Its samples, summed over all workers, from the metrics port\n")
    for text in tell_samples(page, view="shop:index", trace_id=trace_id):
        say(f"  {text}")
    say(f"\nAll three tell of the trace {trace_id}.")


def stay(demo: Demo, stop: threading.Event) -> None:
    """Print each new line and trace until told to stop."""
    say("\nThe shop stays open until Ctrl-C. Look at")
    for path in PAGES[:2] + PAGES[3:6] + ("/slow/",):
        say(f"  http://127.0.0.1:{demo.port}{path}")
    say(f"  http://127.0.0.1:{demo.metrics_port}/metrics")
    say("and see here what each request leaves.\n")
    told = len(demo.lines())
    while not stop.wait(0.2):
        if not demo.shop.running:
            msg = f"The shop has closed by itself. It said:\n{demo.shop.said()[-2000:]}"
            raise StartError(msg)
        new = demo.lines()[told:]
        told += len(new)
        for text in tell_lines(new):
            say(text)
        for trace_id in dict.fromkeys(line["trace_id"] for line in new if line.get("trace_id") and "path" in line):
            for text in tell_trace(demo.receiver.trace(trace_id, timeout=5)):
                say(f"  {text}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end when the story is told")
    parser.add_argument("--workers", type=int, default=3, help="processes of the shop (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port of the shop (%(default)s; 0: any)")
    parser.add_argument("--metrics-port", type=int, default=9000, help="port of runmetrics (%(default)s; 0: any)")
    parser.add_argument("--collector-port", type=int, default=4318, help="port of the collector (%(default)s; 0: any)")
    parser.add_argument("--no-collector", action="store_true", help="receive the spans in the demo itself")
    options = parser.parse_args()

    stop = threading.Event()

    def leave(signum: int, frame: FrameType | None) -> None:
        # Once is enough: from here on everything is being put away.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        stop.set()
        raise KeyboardInterrupt

    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, leave)

    try:
        with tempfile.TemporaryDirectory(prefix="django-obs-demo-") as directory, ExitStack() as stack:
            demo = Demo(stack, Path(directory), options)
            demo.open_shop()
            tell(demo)
            if not options.once:
                stay(demo, stop)
    except StartError as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nClosed; nothing is left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a span costs: ours against the SDK's with the official encoder, and a request that the sampler leaves out.

    python -m benchmarks.span [rounds]

All contestants take turns in one process, a few milliseconds each, and medians of the rounds' CPU times are compared:
on a shared machine absolute times vary by ten percent and more, ratios hardly.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import process_time, time_ns
from typing import Any

from opentelemetry import context as context_api
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace import TracerProvider as SDKProvider
from opentelemetry.trace import SpanKind, set_span_in_context

from django_obs.conf import TraceSettings
from django_obs.traces.encoder import LeafSource
from django_obs.traces.pipeline import TracePipeline
from django_obs.traces.propagation import detach
from django_obs.traces.provider import TracerProvider

# As many spans as one request of the exporter takes.
BATCH = 500
QUERIES = 3
SQL = 'SELECT "shop_product"."id", "shop_product"."name" FROM "shop_product" WHERE "shop_product"."id" = %s LIMIT 21'
META: dict[str, str] = {}


def ten_attributes(number: int) -> dict[str, Any]:
    return {
        "http.request.method": "GET",
        "url.scheme": "https",
        "url.path": f"/products/{number}/",
        "server.address": "shop.example.org",
        "server.port": 443,
        "client.address": "203.0.113.7",
        "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "network.protocol.version": "1.1",
        "http.route": "/products/<int:id>/",
        "http.response.status_code": 200,
    }


class Sink:
    """Takes what is encoded, as the queue does."""

    def offer(self, groups: Any) -> None:
        pass


class Keep(SpanProcessor):
    """Keeps ended spans for the encoder."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_end(self, span: Any) -> None:
        self.spans.append(span)


def ours() -> Callable[[], None]:
    tracer = TracerProvider(resource={}, sink=Sink()).tracer("benchmark")

    def run() -> None:
        for number in range(BATCH):
            span = tracer.start_request("GET", META, ten_attributes(number))
            token = span.activate()
            detach(token)
            span.end()

    return run


def ours_through_the_api() -> Callable[[], None]:
    tracer = TracerProvider(resource={}, sink=Sink()).get_tracer("benchmark")

    def run() -> None:
        for number in range(BATCH):
            with tracer.start_as_current_span("GET", kind=SpanKind.SERVER, attributes=ten_attributes(number)):
                pass

    return run


def sdk() -> Callable[[], None]:
    provider = SDKProvider(resource=Resource({}), shutdown_on_exit=False)
    keep = Keep()
    provider.add_span_processor(keep)
    tracer = provider.get_tracer("benchmark")

    def run() -> None:
        for number in range(BATCH):
            span = tracer.start_span("GET", kind=SpanKind.SERVER, attributes=ten_attributes(number))
            token = context_api.attach(set_span_in_context(span))
            context_api.detach(token)
            span.end()
        encode_spans(keep.spans).SerializeToString()
        keep.spans.clear()

    return run


def request(endpoint: str, ratio: float, keep_errors: bool) -> Callable[[], None]:
    """A server span and three queries, exported; nothing but what tracing costs."""
    pipeline = TracePipeline(
        TraceSettings(
            endpoint=endpoint,
            sample_ratio=ratio,
            keep_errors=keep_errors,
            keep_slower_than=1.0 if keep_errors else None,
        ),
        service_name="benchmark",
    )
    tracer = pipeline.tracer
    source = LeafSource(lambda sql: ("SELECT shop_product", {"db.system.name": "sqlite", "db.query.text": sql}))
    attributes = ten_attributes(1)

    def run() -> None:
        now = time_ns()
        for _ in range(BATCH):
            span = tracer.start_request("GET", META, attributes.copy())
            token = span.activate()
            for _ in range(QUERIES):
                span.add_leaf(SQL, now, now + 1000, source=source)
            detach(token)
            span.end()
        if ratio:
            assert pipeline.force_flush(30)

    return run


class Accept(BaseHTTPRequestHandler):
    """A collector that takes everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def collect(told: Any) -> None:
    server = HTTPServer(("127.0.0.1", 0), Accept)
    told.send(server.server_port)
    server.serve_forever()


def measure(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median microseconds per span (or request) of each."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            # Each pays for its own garbage.
            gc.collect()
            started = process_time()
            run()
            times[name].append((process_time() - started) / BATCH * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    # In a process of its own: its time is not ours.
    here, there = multiprocessing.Pipe()
    collector = multiprocessing.get_context("spawn").Process(target=collect, args=(there,), daemon=True)
    collector.start()
    endpoint = f"http://127.0.0.1:{here.recv()}/v1/traces"
    found = measure(
        {
            "sdk + official encoder": sdk(),
            "django_obs": ours(),
            "django_obs, start_as_current_span": ours_through_the_api(),
            "request, kept and exported": request(endpoint, 1.0, True),
            "request, left out, may be kept": request(endpoint, 0.0, True),
            "request, left out for good": request(endpoint, 0.0, False),
        },
        rounds,
    )
    for name, each in found.items():
        print(f"{name:36} {each:8.2f} us")
    stock, lean = found["sdk + official encoder"], found["django_obs"]
    kept = found["request, kept and exported"]
    print(f"span: 1/{stock / lean:.1f} of the SDK's (must be 1/6 or less), {lean:.1f} us (must be 10 us or less)")
    for name in ("request, left out, may be kept", "request, left out for good"):
        print(f"{name}: 1/{kept / found[name]:.1f} of one that is kept (must be 1/4 or less)")


if __name__ == "__main__":
    main()

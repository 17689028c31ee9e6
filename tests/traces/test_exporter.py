from __future__ import annotations

import datetime
import logging
import os
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from django_obs.conf import TraceSettings
from django_obs.lifecycle import Worker
from django_obs.traces import exporter as exporter_module
from django_obs.traces.pipeline import TracePipeline

from .support import PIPELINE_QUERIES, Answer, accept, collector, free_port, hang, socket_server, wait_for

Make = Callable[..., TracePipeline]


@pytest.fixture
def make_pipeline() -> Iterator[Make]:
    made: list[TracePipeline] = []
    workers: list[Worker] = []

    def make(endpoint: str, *, environ: dict[str, str] | None = None, **settings: Any) -> TracePipeline:
        workers.append(Worker("exporter of a test"))
        pipeline = TracePipeline(
            TraceSettings(endpoint=endpoint, **settings),
            service_name="shop",
            worker=workers[-1],
            environ={"OTEL_BSP_SCHEDULE_DELAY": "50"} | (environ or {}),
        )
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        pipeline.shutdown(0.2)
    # One that still waits for an answer would warn in the midst of another test.
    for thread in [worker._thread for worker in workers if worker._thread is not None]:
        thread.join(60)
        assert not thread.is_alive()


def request(pipeline: TracePipeline, name: str = "GET /", queries: int = 0) -> float:
    """Make the spans of a request; return the seconds it took."""
    started = monotonic()
    root = pipeline.tracer.start_request(name, {}, {"http.request.method": "GET"})
    for number in range(queries):
        root.add_leaf("SELECT 1", number + 1, number + 2, source=PIPELINE_QUERIES)
    root.end()
    return monotonic() - started


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_spans_arrive_with_resource_and_scope(make_pipeline: Make) -> None:
    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint, headers={"X-Api-Key": "k"})
        request(pipeline, queries=2)
        assert pipeline.force_flush(60)
        (received,) = receiver.requests
        (resource,) = received.resource_spans
        (scope,) = resource.scope_spans
        assert {"service.name", "service.instance.id", "process.pid"} <= {a.key for a in resource.resource.attributes}
        assert scope.scope.name == "django_obs"
        assert scope.schema_url.startswith("https://opentelemetry.io/schemas/")
        assert receiver.names() == ["SELECT", "SELECT", "GET /"]
        assert receiver.headers[0]["x-api-key"] == "k"
        assert receiver.headers[0]["content-type"] == "application/x-protobuf"
        assert receiver.paths == ["/v1/traces"]
        assert pipeline.stats() == {"queued": 0, "exported": 3, "dropped": 0, "failed": 0, "sampled_out": 0}


def test_spans_are_exported_by_the_clock(make_pipeline: Make) -> None:
    with collector() as receiver:
        request(make_pipeline(receiver.endpoint))
        wait_for(receiver.spans)


def test_full_batch_does_not_wait_for_the_clock(make_pipeline: Make) -> None:
    with collector() as receiver:
        environ = {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
        pipeline = make_pipeline(receiver.endpoint, environ=environ)
        for _ in range(25):
            request(pipeline)
        wait_for(lambda: len(receiver.spans()) >= 20)
        assert all(len(r.resource_spans[0].scope_spans[0].spans) <= 10 for r in receiver.requests)


def test_nothing_is_imported_or_started_before_the_first_span() -> None:
    code = (
        "import sys, threading\n"
        "from django_obs.conf import TraceSettings\n"
        "from django_obs.traces.pipeline import TracePipeline\n"
        "pipeline = TracePipeline(TraceSettings(), service_name='shop')\n"
        "assert pipeline.install()\n"
        "heavy = ('opentelemetry.sdk', 'requests', 'grpc', 'google', 'opentelemetry.exporter', 'opentelemetry.proto')\n"
        "assert not [name for name in sys.modules if name.startswith(heavy)]\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=180)


def test_compression_of_the_environment_is_used(make_pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint)
        request(pipeline)
        assert pipeline.force_flush(60)
        assert receiver.headers[0]["content-encoding"] == "gzip"


def test_requests_of_the_exporter_make_no_spans(make_pipeline: Make) -> None:
    from opentelemetry.instrumentation.requests import RequestsInstrumentor

    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint)
        RequestsInstrumentor().instrument(tracer_provider=pipeline.provider)
        try:
            request(pipeline)
            assert pipeline.force_flush(60)
            request(pipeline)
            assert pipeline.force_flush(60)
        finally:
            RequestsInstrumentor().uninstrument()
        assert receiver.names() == ["GET /", "GET /"]


def test_spans_arrive_over_tls(
    make_pipeline: Make, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)  # goes before what a session is told
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with collector(ssl_context=context) as receiver:
        untrusting = make_pipeline(receiver.endpoint)
        request(untrusting)
        assert not untrusting.force_flush(20)
        untrusting.shutdown(60)  # or it tries again until the collector has gone
        assert receiver.spans() == []
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
        trusting = make_pipeline(receiver.endpoint)
        request(trusting)
        assert trusting.force_flush(60)
        assert receiver.names() == ["GET /"]
        trusting.shutdown(60)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    (directory / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem", directory / "key.pem"


def test_trace_larger_than_the_queue_is_let_in_alone(make_pipeline: Make) -> None:
    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint, queue_size=5)
        request(pipeline, queries=20)
        assert pipeline.force_flush(60)
        assert len(receiver.spans()) == 21


def test_batch_that_nobody_takes_is_given_up(make_pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "PATIENCE", 0.2)
    pipeline = make_pipeline(f"http://127.0.0.1:{free_port()}/v1/traces")
    request(pipeline)
    wait_for(lambda: not pipeline.force_flush(5) and pipeline.stats()["failed"] == 1)
    assert pipeline.stats()["queued"] == 0


# -- Collectors that fail ----------------------------------------------------------------------------------------------


def test_collector_that_comes_late_gets_everything(make_pipeline: Make) -> None:
    port = free_port()
    pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces")
    for number in range(5):
        request(pipeline, f"GET /{number}")
    assert not pipeline.force_flush(1)
    assert pipeline.stats()["queued"] == 5
    with collector(port=port) as receiver:
        wait_for(lambda: len(receiver.spans()) == 5)
        wait_for(lambda: pipeline.stats()["queued"] == 0)
    assert pipeline.stats() == {"queued": 0, "exported": 5, "dropped": 0, "failed": 0, "sampled_out": 0}


def test_collector_that_restarts_misses_nothing(make_pipeline: Make) -> None:
    names: list[str] = []
    port = free_port()
    pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces")
    for generation in range(3):
        with collector(port=port) as receiver:
            request(pipeline, f"up {generation}")
            # What was received is sent again if the collector goes before its answer is read.
            wait_for(lambda receiver=receiver: receiver.spans() and not pipeline.stats()["queued"])
        request(pipeline, f"down {generation}")
        names += receiver.names()
    with collector(port=port) as receiver:
        wait_for(lambda: "down 2" in receiver.names())
        names += receiver.names()
    assert sorted(names) == sorted(f"{state} {n}" for state in ("up", "down") for n in range(3))


def test_queue_that_was_full_once_gives_up_nothing_later(make_pipeline: Make) -> None:
    port = free_port()
    with collector(port=port) as receiver:
        pipeline = make_pipeline(receiver.endpoint, queue_size=2, environ={"OTEL_BSP_SCHEDULE_DELAY": "3600000"})
        pipeline.exporter.offer([(b"", 2, b""), (b"", 2, b"")])
        assert pipeline.stats()["dropped"] == 2
        assert pipeline.force_flush(60)
    request(pipeline)
    pipeline.exporter.force_flush(0.5)
    assert pipeline.stats()["failed"] == 0
    with collector(port=port) as receiver:
        assert pipeline.force_flush(60)
        assert receiver.names() == ["GET /"]


def test_dead_collector_costs_a_bounded_queue_and_one_warning(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make_pipeline(f"http://127.0.0.1:{free_port()}/v1/traces", queue_size=100)
    for _ in range(500):
        request(pipeline, queries=1)
    assert pipeline.stats()["queued"] <= 100
    assert not pipeline.force_flush(5)
    stats = pipeline.stats()
    assert stats["queued"] <= 100
    assert stats["exported"] == 0
    assert stats["queued"] + stats["dropped"] + stats["failed"] == 1000
    (warning,) = warnings(caplog)
    assert warning.name == "django_obs"
    assert "Spans are not taken by the collector" in warning.getMessage()


def status(code: int, **headers: str) -> Answer:
    return lambda handler: accept(handler, code, **headers)


@pytest.mark.parametrize("code", [400, 401, 404, 413, 301])
def test_refused_batch_is_counted_and_not_sent_again(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    with collector() as receiver:
        receiver.answers = [status(code)]
        pipeline = make_pipeline(receiver.endpoint)
        request(pipeline, "refused")
        assert not pipeline.force_flush(20)
        assert pipeline.stats()["failed"] == 1
        request(pipeline, "taken")
        assert pipeline.force_flush(60)
        assert receiver.names() == ["taken"]
    (warning,) = warnings(caplog)
    assert str(code) in warning.getMessage()


@pytest.mark.parametrize("code", [429, 503])
def test_collector_that_asks_for_patience_is_asked_again(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    with collector() as receiver:
        asked: list[float] = []

        def later(handler: BaseHTTPRequestHandler) -> None:
            asked.append(monotonic())
            accept(handler, code, Retry_After="1")

        receiver.answers = [later]
        pipeline = make_pipeline(receiver.endpoint)
        request(pipeline)
        wait_for(receiver.spans)
        assert monotonic() - asked[0] >= 0.9
        wait_for(lambda: pipeline.stats()["exported"] == 1)
    assert warnings(caplog) == []


def garbage(connection: Any) -> None:
    connection.recv(100)
    connection.sendall(b"\x00\xff not HTTP at all\r\n\r\n")


def reset(connection: Any) -> None:
    connection.recv(1)


@pytest.mark.parametrize("behave", [garbage, reset, hang])
def test_server_that_is_no_collector_does_not_matter(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, behave: Any
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket_server(behave) as port:
        pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces", queue_size=50)
        for _ in range(200):
            request(pipeline)
        assert not pipeline.force_flush(20)
        stats = pipeline.stats()
        assert stats["exported"] == 0
        assert stats["queued"] <= 50
        assert stats["queued"] + stats["dropped"] + stats["failed"] == 200
    assert len(warnings(caplog)) == 1


def test_request_does_not_wait_for_a_collector_that_hangs(make_pipeline: Make) -> None:
    with socket_server(hang) as port:
        pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces")
        request(pipeline)
        wait_for(lambda: pipeline.exporter._draining.locked() and pipeline.exporter._transport is not None)
        assert max(request(pipeline, queries=10) for _ in range(100)) < 2


def test_shutdown_with_a_collector_that_hangs_keeps_its_deadline(make_pipeline: Make) -> None:
    with socket_server(hang) as port:
        pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces")
        request(pipeline)
        wait_for(lambda: pipeline.exporter._draining.locked() and pipeline.exporter._transport is not None)
        started = monotonic()
        assert not pipeline.shutdown(1.0)
        assert monotonic() - started < 9  # an answer is waited for for 10


def test_shutdown_with_a_dead_collector_does_not_wait_for_retries(make_pipeline: Make) -> None:
    pipeline = make_pipeline(f"http://127.0.0.1:{free_port()}/v1/traces")
    request(pipeline)
    assert not pipeline.force_flush(20)  # the imports
    started = monotonic()
    assert not pipeline.shutdown(60.0)
    assert monotonic() - started < 30


def test_span_after_shutdown_is_counted_as_dropped(make_pipeline: Make) -> None:
    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint)
        request(pipeline)
        assert pipeline.shutdown(60)
        request(pipeline)
        assert pipeline.stats()["dropped"] == 1
        assert receiver.names() == ["GET /"]


def test_collector_that_asks_for_patience_is_not_asked_with_each_request(make_pipeline: Make) -> None:
    refused: list[str] = []

    def later(handler: BaseHTTPRequestHandler) -> None:
        refused.append(handler.path)
        accept(handler, 429, Retry_After="3600")

    with collector() as receiver:
        receiver.answers = [later] * 100
        pipeline = make_pipeline(receiver.endpoint, environ={"OTEL_BSP_SCHEDULE_DELAY": "3600000"})

        def large() -> None:
            pipeline.tracer.start_request("large", {}, {"text": "x" * exporter_module.BATCH_BYTES}).end()

        large()
        wait_for(lambda: refused and not pipeline.exporter._woken)
        for _ in range(5):
            large()
            assert not pipeline.exporter._woken
        assert len(refused) == 1
        receiver.answers.clear()
        assert pipeline.force_flush(60)
        assert receiver.names() == ["large"] * 6


def test_flush_that_ends_the_waiting_for_a_dead_collector_says_what_is_wrong(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    pipeline = make_pipeline(f"http://127.0.0.1:{port}/v1/traces")
    request(pipeline)
    wait_for(lambda: pipeline.exporter._transport is not None)
    assert not pipeline.shutdown(20)
    (warning,) = warnings(caplog)
    assert "Connection refused" in warning.getMessage()
    assert "Shutdown" not in warning.getMessage()


def test_certificate_that_is_not_there_is_reported_and_nothing_is_sent(
    make_pipeline: Make,
    certificate: tuple[Path, Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with collector(ssl_context=context) as receiver:
        pipeline = make_pipeline(receiver.endpoint)
        request(pipeline)
        assert not pipeline.force_flush(20)
        assert pipeline.stats()["failed"] == 1
        pipeline.shutdown(60)
        assert receiver.spans() == []
    assert len(warnings(caplog)) == 1


# -- Forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_child_is_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
import os, sys
from django_obs.conf import TraceSettings
from django_obs.lifecycle import guard
from django_obs.traces.pipeline import TracePipeline

pipeline = TracePipeline(TraceSettings(endpoint=sys.argv[1]), service_name="shop")
guard.adopt(pipeline)
guard.arm(60)
def request(name):
    pipeline.tracer.start_request(name, {}, {}).end()
request("parent before")
pipeline.force_flush(60)          # thread and connection are there
request("parent queued")
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        assert pipeline.stats() == dict(queued=0, exported=0, dropped=0, failed=0, sampled_out=0)
        request(f"child {number}")
        os._exit(0 if pipeline.force_flush(60) else 1)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
assert pipeline.force_flush(60)
"""
    with collector() as receiver:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, receiver.endpoint],
            check=True,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            timeout=180,
        )
        assert sorted(receiver.names()) == ["child 0", "child 1", "child 2", "parent before", "parent queued"]
        resources = [
            {pair.key: pair.value for pair in each.resource_spans[0].resource.attributes} for each in receiver.requests
        ]
        assert len({resource["process.pid"].int_value for resource in resources}) == 4
        assert len({resource["service.instance.id"].string_value for resource in resources}) == 4
        spans = receiver.spans()
        assert len({span.trace_id for span in spans}) == len({span.span_id for span in spans}) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_child_forked_inside_a_span_exports_its_own_spans_only() -> None:
    code = """
import os, sys
from django_obs.conf import TraceSettings
from django_obs.lifecycle import guard
from django_obs.traces.pipeline import TracePipeline

pipeline = TracePipeline(TraceSettings(endpoint=sys.argv[1]), service_name="shop")
guard.adopt(pipeline)
guard.arm(60)
tracer = pipeline.tracer
with tracer.start_as_current_span("root"):
    tracer.start_span("before").end()
    pid = os.fork()
    if not pid:
        for number in range(600):
            tracer.start_span("in child").end()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
    with collector() as receiver:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, receiver.endpoint],
            check=True,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            timeout=180,
        )
        assert Counter(receiver.names()) == {"root": 1, "before": 1, "in child": 600}
        assert len({span.trace_id for span in receiver.spans()}) == 1


def test_flush_from_many_threads_delivers_all(make_pipeline: Make) -> None:
    with collector() as receiver:
        pipeline = make_pipeline(receiver.endpoint)

        def work() -> None:
            for _ in range(50):
                request(pipeline)
            pipeline.force_flush(60)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: len(receiver.spans()) == 200)
        wait_for(lambda: pipeline.stats()["queued"] == 0)

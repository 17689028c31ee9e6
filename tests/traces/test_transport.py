from __future__ import annotations

import base64
import json
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from django_obs.traces.encoder import encode_log, encode_request, encode_scope
from django_obs.traces.pipeline import TracePipeline
from django_obs.traces.propagation import detach
from django_obs.traces.transport import Batch, open_transport

from .rotel import Rotel, rotel_binary, tls_in_front_of
from .support import PIPELINE_QUERIES, collector, free_port, hang, socket_server, wait_for
from .test_exporter import Make, certificate, make_pipeline, request, warnings

__all__ = ["certificate", "make_pipeline"]  # fixtures

PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class GRPCCollector:
    """An OTLP/gRPC receiver that answers as told."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.answers: list[Callable[[grpc.ServicerContext], None]] = []
        self.server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self.export)
        self.server.add_generic_rpc_handlers([_Methods({PATH: handler})])
        address = f"localhost:{port}"
        if credentials is not None:
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.server.start()

    def export(self, payload: bytes, context: grpc.ServicerContext) -> bytes:
        if self.answers:
            self.answers.pop(0)(context)
        self.requests.append(ExportTraceServiceRequest.FromString(payload))
        self.metadata.append(dict(context.invocation_metadata()))
        return b""

    def names(self) -> list[str]:
        return [
            span.name
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, Any]) -> None:
        self.handlers = handlers

    def service(self, details: Any) -> Any:
        return self.handlers.get(details.method)


@contextmanager
def grpc_collector(**arguments: Any) -> Iterator[GRPCCollector]:
    running = GRPCCollector(**arguments)
    try:
        yield running
    finally:
        running.server.stop(None).wait()


def make_grpc(make_pipeline: Make, port: int, scheme: str = "http", **settings: Any) -> TracePipeline:
    return make_pipeline(f"{scheme}://localhost:{port}", protocol="grpc", **settings)


def test_spans_arrive_over_grpc(make_pipeline: Make) -> None:
    with grpc_collector() as receiver:
        pipeline = make_grpc(make_pipeline, receiver.port, headers={"X-Api-Key": "k"})
        request(pipeline, queries=1)
        assert pipeline.force_flush(60)
        assert receiver.names() == ["SELECT", "GET /"]
        assert receiver.metadata[0]["x-api-key"] == "k"
        assert pipeline.stats()["exported"] == 2


def test_spans_arrive_over_grpc_with_tls(
    make_pipeline: Make, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    with grpc_collector(credentials=credentials) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(chain))
        pipeline = make_grpc(make_pipeline, receiver.port, "https")
        request(pipeline)
        assert pipeline.force_flush(60)
        assert receiver.names() == ["GET /"]


def test_grpc_collector_that_refuses_is_not_asked_again(make_pipeline: Make, caplog: pytest.LogCaptureFixture) -> None:
    with grpc_collector() as receiver:
        receiver.answers = [lambda context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")]
        pipeline = make_grpc(make_pipeline, receiver.port)
        request(pipeline, "refused")
        assert not pipeline.force_flush(20)
        request(pipeline, "taken")
        assert pipeline.force_flush(60)
        assert receiver.names() == ["taken"]
        assert pipeline.stats()["failed"] == 1
    (warning,) = warnings(caplog)
    assert "INVALID_ARGUMENT no such thing" in warning.getMessage()


def test_message_that_is_too_large_for_the_collector_is_given_up(
    make_pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
    with grpc_collector() as receiver:
        pipeline = make_grpc(make_pipeline, receiver.port)
        root = pipeline.tracer.start_request("large", {}, {"text": "x" * 5_000_000})
        root.end()
        assert not pipeline.force_flush(20)
        assert pipeline.stats()["failed"] == 1
        request(pipeline, "small")
        assert pipeline.force_flush(60)
        assert receiver.names() == ["small"]


def test_grpc_collector_that_is_unavailable_for_a_moment_gets_everything(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with grpc_collector() as receiver:
        receiver.answers = [lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "later")]
        pipeline = make_grpc(make_pipeline, receiver.port)
        request(pipeline)
        wait_for(receiver.names)
        wait_for(lambda: pipeline.stats()["exported"] == 1)
    assert warnings(caplog) == []


def test_dead_grpc_collector_costs_a_bounded_queue_and_one_warning(
    make_pipeline: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make_grpc(make_pipeline, free_port(), queue_size=50)
    for _ in range(200):
        request(pipeline)
    assert not pipeline.force_flush(20)
    stats = pipeline.stats()
    assert stats["queued"] <= 50
    assert stats["queued"] + stats["dropped"] + stats["failed"] == 200
    assert len(warnings(caplog)) == 1


def test_server_that_speaks_no_grpc_does_not_matter(make_pipeline: Make, caplog: pytest.LogCaptureFixture) -> None:
    with socket_server(hang) as port:
        pipeline = make_grpc(make_pipeline, port)
        request(pipeline)
        started = monotonic()
        assert not pipeline.shutdown(1.5)
        assert monotonic() - started < 9  # an answer is waited for for 10
    assert not [record for record in caplog.records if record.name != "django_obs" and record.levelno > logging.INFO]


FORKING = """
import os, sys
from django_obs.conf import TraceSettings
from django_obs.lifecycle import guard
from django_obs.traces.pipeline import TracePipeline

settings = TraceSettings(endpoint=f"http://localhost:{sys.argv[1]}", protocol="grpc")
pipeline = TracePipeline(settings, service_name="shop")
guard.adopt(pipeline)
guard.arm(60)
pipeline.tracer.start_request("parent", {}, {}).end()
assert pipeline.force_flush(60)
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        pipeline.tracer.start_request("child", {}, {}).end()
        os._exit(0 if pipeline.force_flush(60) else 1)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
pipeline.tracer.start_request("parent", {}, {}).end()
assert pipeline.force_flush(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_children_of_a_process_that_has_exported_over_grpc_export_too() -> None:
    with grpc_collector() as receiver:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORKING, str(receiver.port)],
            check=True,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            timeout=180,
        )
        assert sorted(receiver.names()) == ["child"] * 3 + ["parent"] * 2


SHORT = """
import sys
from django_obs.conf import TraceSettings
from django_obs.lifecycle import guard
from django_obs.traces.pipeline import TracePipeline

settings = TraceSettings(endpoint=sys.argv[2], protocol=sys.argv[1])
pipeline = TracePipeline(settings, service_name="shop")
guard.adopt(pipeline)
guard.arm(60)
pipeline.tracer.start_request("short", {}, {}).end()
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_process_that_is_over_in_a_moment_exports_at_its_exit(protocol: str) -> None:
    with grpc_collector() as called, collector() as posted:
        endpoint = f"http://localhost:{called.port}" if protocol == "grpc" else posted.endpoint
        finished = subprocess.run(
            [sys.executable, "-c", SHORT, protocol, endpoint],
            check=True,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            timeout=180,
            capture_output=True,
            text=True,
        )
        assert called.names() + posted.names() == ["short"], finished.stderr


def test_logs_travel_by_the_same_means() -> None:
    payload = encode_request(b"", [(encode_scope("shop.views"), [encode_log(time_ns=1, body="hello")])])
    with collector() as receiver:
        transport = open_transport("logs", "http/protobuf", receiver.endpoint.replace("traces", "logs"), {})
        assert transport.send(Batch(1, payload), 10, retry=True).delivered
        assert receiver.paths == ["/v1/logs"]


def test_log_lines_of_other_threads_are_not_muted(make_pipeline: Make, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = make_pipeline(f"http://127.0.0.1:{free_port()}/v1/traces")
    request(pipeline)
    pipeline.force_flush(5)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("urllib3.connectionpool").warning("mine")
    assert "mine" in [record.getMessage() for record in caplog.records]


needs_rotel = pytest.mark.skipif(rotel_binary() is None, reason="service rotel: no wheel for this platform")


@needs_rotel
@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_real_collector_receives_exactly_what_was_sent_while_it_restarts(
    make_pipeline: Make, tmp_path: Path, protocol: str
) -> None:
    grpc_port, http_port = free_port(), free_port()
    with collector() as sink:
        address = sink.endpoint.removesuffix("/v1/traces")
        rotel = Rotel(address, grpc_port, http_port, tmp_path / "rotel.log")
        endpoint = f"http://localhost:{grpc_port}" if protocol == "grpc" else f"http://localhost:{http_port}/v1/traces"
        environ = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "40"}
        pipeline = make_pipeline(endpoint, protocol=protocol, environ=environ)
        sent: list[tuple[bytes, int, bytes]] = []
        offer = pipeline.exporter.offer
        pipeline.provider.sink = _Tee(sent, offer)
        try:
            for number in range(60):
                if number in (20, 40):
                    wait_for(lambda: pipeline.stats()["queued"] == 0)
                    rotel.stop()
                    traced(pipeline, number)
                    rotel = Rotel(address, grpc_port, http_port, tmp_path / "rotel.log")
                traced(pipeline, number)
            wait_for(lambda: pipeline.stats()["queued"] == 0, 60)
            wait_for(lambda: len(sink.spans()) >= 62 * 4, 60)
        finally:
            rotel.stop()
        assert pipeline.stats()["exported"] == 62 * 4
        assert len(sink.requests) > 1
        received = sorted((span for span in sink.spans()), key=lambda span: span.span_id)
        decoded = ExportTraceServiceRequest.FromString(_wrap(sent))
        expected = sorted(
            (span for scope in decoded.resource_spans[0].scope_spans for span in scope.spans),
            key=lambda span: span.span_id,
        )
        assert received == expected


@needs_rotel
@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_real_collector_behind_tls_receives_what_was_sent(
    make_pipeline: Make,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    protocol: str,
) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # these go before what a session is told
        monkeypatch.delenv(variable, raising=False)
    grpc_port, http_port = free_port(), free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
    with collector() as sink:
        rotel = Rotel(sink.endpoint.removesuffix("/v1/traces"), grpc_port, http_port, tmp_path / "rotel.log")
        inner, path = (grpc_port, "") if protocol == "grpc" else (http_port, "/v1/traces")
        try:
            with tls_in_front_of(inner, certificate) as port:
                pipeline = make_pipeline(f"https://localhost:{port}{path}", protocol=protocol)
                for number in range(20):
                    traced(pipeline, number)
                assert pipeline.force_flush(60)
                wait_for(lambda: len(sink.spans()) >= 20 * 4, 30)
                pipeline.shutdown(5)
        finally:
            rotel.stop()
        assert sorted(sink.names()) == sorted(
            [f"GET /{number}" for number in range(20)] + ["work", "SELECT", "INSERT"] * 20
        )


class _Tee:
    def __init__(self, kept: list[Any], offer: Callable[..., None]) -> None:
        self.kept = kept
        self.pass_on = offer

    def offer(self, groups: Any) -> None:
        self.kept.extend(groups)
        self.pass_on(groups)


def _wrap(groups: list[tuple[bytes, int, bytes]]) -> bytes:
    return encode_request(b"", [(scope, [spans]) for scope, _, spans in groups])


def traced(pipeline: TracePipeline, number: int) -> None:
    """Make a trace of four spans with everything that a span can have."""
    root = pipeline.tracer.start_request(f"GET /{number}", {}, {"number": number, "list": [1, "a", None, {"k": b"v"}]})
    token = root.activate()
    with pipeline.provider.get_tracer("shop").start_as_current_span("work") as span:
        span.add_event("happened", {"x": 1.5})
        span.add_link(root.get_span_context(), {"why": "test"})
    root.add_leaf("SELECT 1", 1_000, 2_000, source=PIPELINE_QUERIES)
    root.add_leaf("INSERT 2", 3_000, 4_000, "IntegrityError", source=PIPELINE_QUERIES)
    detach(token)
    root.end()


EXPORT = """
import json, sys
from django_obs.conf import TraceSettings
from django_obs.traces.pipeline import TracePipeline

pipeline = TracePipeline(TraceSettings(endpoint=sys.argv[1]), service_name="shop")
pipeline.tracer.start_request("GET /", {}, {}).end()
assert pipeline.shutdown(60), pipeline.stats()
print(json.dumps(sorted(sys.modules)))
"""


def export(endpoint: str, home: Path, **environ: str) -> set[str]:
    """Export a span in a process of its own, where nothing is set but what is given; return the modules it has."""
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, endpoint],
        env=known | {"HOME": str(home)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_export_over_http_imports_an_http_client_and_little_else(tmp_path: Path) -> None:
    with collector() as receiver:
        modules = export(receiver.endpoint, tmp_path)
        assert receiver.names() == ["GET /"]
    assert "urllib3" in modules
    assert modules.isdisjoint({"requests", "google.protobuf", "grpc", "opentelemetry.sdk.trace"})


def test_proxy_of_the_environment_is_taken(tmp_path: Path) -> None:
    with collector() as proxy:
        modules = export("http://collector.invalid/v1/traces", tmp_path, http_proxy=f"http://127.0.0.1:{proxy.port}")
        assert proxy.names() == ["GET /"]
        assert proxy.paths == ["http://collector.invalid/v1/traces"]
    assert "requests" in modules


@pytest.mark.parametrize("place", ["home", "NETRC", "url"])
def test_password_for_the_collector_is_sent(tmp_path: Path, place: str) -> None:
    netrc = tmp_path / (".netrc" if place == "home" else "passwords")
    with collector() as receiver:
        endpoint = receiver.endpoint
        if place == "url":
            endpoint = endpoint.replace("//", "//ann:secret@")
        else:
            netrc.write_text("machine 127.0.0.1 login ann password secret\n")
        export(endpoint, tmp_path, **({"NETRC": str(netrc)} if place == "NETRC" else {}))
        assert receiver.headers[0]["authorization"] == "Basic " + base64.b64encode(b"ann:secret").decode()


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE"])
def test_authority_of_the_environment_is_trusted(tmp_path: Path, certificate: tuple[Path, Path], variable: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with collector(ssl_context=context) as receiver:
        modules = export(receiver.endpoint, tmp_path, **{variable: str(certificate[0])})
        assert receiver.names() == ["GET /"]
    assert ("requests" in modules) == (variable == "REQUESTS_CA_BUNDLE")


def test_client_shows_its_certificate(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.load_verify_locations(certificate[0])
    context.verify_mode = ssl.CERT_REQUIRED
    chain, key = map(str, certificate)
    with collector(ssl_context=context) as receiver:
        export(
            receiver.endpoint,
            tmp_path,
            OTEL_EXPORTER_OTLP_CERTIFICATE=chain,
            OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE=chain,
            OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY=key,
        )
        assert receiver.names() == ["GET /"]

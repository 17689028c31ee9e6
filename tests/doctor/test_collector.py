"""The way to a collector, each of its links cut once: real sockets, TLS and answers."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import grpc
import pytest
from django.test import override_settings

from django_obs.conf import clear
from django_obs.doctor import collector as doctor
from django_obs.doctor.finding import Finding
from tests.traces.support import Collector, accept, collector, free_port, socket_server
from tests.traces.test_transport import grpc_collector

TIMEOUT = 20.0


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield monkeypatch
    clear()


def examine(endpoint: str, protocol: str = "http/protobuf") -> dict[str, Finding]:
    with override_settings(DJANGO_OBS={"TRACES": {"ENDPOINT": endpoint, "PROTOCOL": protocol}}):
        return {finding.id: finding for finding in doctor.examine(TIMEOUT)}


@contextmanager
def answering(status: int) -> Iterator[Collector]:
    with collector() as received:
        received.answers = [partial(accept, status=status)] * 9
        yield received


def test_collector_that_takes_it_is_whole():
    with collector() as received:
        found = examine(received.endpoint)

        (span,) = received.spans()
    assert {finding.state for finding in found.values()} == {"ok"}
    assert list(found) == ["collector.resolves", "collector.connects", "collector.accepted"]
    assert span.name == doctor.TEST


def test_span_is_sent_whatever_the_ratio():
    with collector() as received:
        with override_settings(DJANGO_OBS={"TRACES": {"ENDPOINT": received.endpoint, "SAMPLE_RATIO": 0.0}}):
            found = {finding.id: finding for finding in doctor.examine(TIMEOUT)}

        assert len(received.spans()) == 1
    assert found["collector.accepted"].state == "ok"


def test_unknown_name_is_told():
    found = examine("http://collector.invalid:4318/v1/traces")

    assert list(found) == ["collector.resolves"]
    assert found["collector.resolves"].state == "broken"
    assert "collector.invalid" in found["collector.resolves"].message
    assert "collector.invalid" in found["collector.resolves"].hint


def test_proxy_is_asked_in_place_of_the_name(environment):
    environment.setenv("http_proxy", "http://127.0.0.1:1")
    found = examine("http://collector.invalid:4318/v1/traces")

    assert "127.0.0.1:1" in found["collector.resolves"].message
    assert found["collector.accepted"].state == "broken"


@pytest.mark.parametrize("address", ["http://me:s3cr@t@127.0.0.1:1", "me:s3cr@t@127.0.0.1:1"])
def test_passwords_in_urls_are_not_shown(environment, address):
    name = examine("http://me:s3cr@t@collector.invalid:4318/v1/traces")
    environment.setenv("http_proxy", address)
    proxied = examine("http://me:s3cr@t@collector.invalid:4318/v1/traces")

    assert "collector.invalid" in name["collector.resolves"].hint
    assert "127.0.0.1:1" in proxied["collector.resolves"].message
    assert "s3" not in f"{name}{proxied}"
    assert "cr@t" not in f"{name}{proxied}"


def test_port_without_anybody_is_told():
    found = examine(f"http://127.0.0.1:{free_port()}/v1/traces")

    assert found["collector.connects"].state == "broken"
    assert "start the collector" in found["collector.connects"].hint


@pytest.mark.parametrize(
    ("status", "state", "advice"),
    [
        (401, "broken", "HEADERS"),
        (403, "broken", "HEADERS"),
        (404, "broken", "/v1/traces"),
        (400, "broken", "own log"),
        (429, "warning", "no more for the moment"),
        (500, "broken", "own log"),
        (302, "broken", "own log"),
    ],
)
def test_status_is_told_with_what_to_do(status, state, advice):
    with answering(status) as received:
        found = examine(received.endpoint)

    finding = found["collector.status"]
    assert (finding.state, str(status) in finding.message) == (state, True)
    assert advice in finding.hint


def test_answer_that_is_no_http_is_told():
    with socket_server(lambda connection: connection.sendall(b"220 mail.example.com\r\n")) as port:
        found = examine(f"http://127.0.0.1:{port}/v1/traces")

    assert found["collector.accepted"].state == "broken"
    assert "grpc" in found["collector.accepted"].hint


def test_grpc_to_a_port_of_http_is_told():
    with collector() as received:
        found = examine(f"http://127.0.0.1:{received.port}", "grpc")

    assert found["collector.connects"].state == "ok"
    assert "http/protobuf" in found["collector.accepted"].hint


@pytest.fixture
def certified(tmp_path: Path):
    """A server context, the file of the authority that has signed its certificate, and the authority."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, tmp_path / "ca.pem", authority


def test_certificate_that_is_not_trusted_is_told(certified):
    context, _, _ = certified
    with collector(ssl_context=context) as received:
        found = examine(f"https://127.0.0.1:{received.port}/v1/traces")

    assert found["collector.tls"].state == "broken"
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in found["collector.tls"].hint


@pytest.mark.skipif(
    metadata.version("opentelemetry-exporter-otlp-proto-http") == "1.45.0",
    reason="release 1.45.0 of the exporter sends with urllib3, which does not read the variable",
)
def test_variable_that_goes_before_the_certificate_is_told(certified, environment):
    context, authority, _ = certified
    environment.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority))
    environment.setenv("REQUESTS_CA_BUNDLE", pytest.importorskip("certifi").where())
    with collector(ssl_context=context) as received:
        found = examine(f"https://127.0.0.1:{received.port}/v1/traces")

    assert found["collector.tls"].state == "broken"
    assert "REQUESTS_CA_BUNDLE" in found["collector.tls"].hint


def test_certificate_that_is_trusted_holds(certified, environment):
    context, authority, _ = certified
    environment.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority))
    with collector(ssl_context=context) as received:
        found = examine(f"https://127.0.0.1:{received.port}/v1/traces")

    assert found["collector.tls"].state == found["collector.accepted"].state == "ok"


def test_plain_text_to_a_port_with_tls_is_told(certified):
    context, _, _ = certified
    with collector(ssl_context=context) as received:
        found = examine(f"http://127.0.0.1:{received.port}/v1/traces")

    assert found["collector.tls"].state == "broken"
    assert "https://" in found["collector.tls"].hint


def test_tls_to_a_port_of_plain_text_is_told():
    with collector() as received:
        found = examine(f"https://127.0.0.1:{received.port}/v1/traces")

    assert found["collector.tls"].state == "broken"
    assert "http://" in found["collector.tls"].hint


def test_records_have_a_way_of_their_own(environment):
    with collector() as received:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        with override_settings(DJANGO_OBS={"LOGS": {"OTLP": True}}):
            found = {finding.id: finding for finding in doctor.examine(TIMEOUT)}

    assert found["log_collector.accepted"].state == "ok"
    assert [path for path, _ in received.bodies] == ["/v1/traces", "/v1/logs"]


def test_collector_of_grpc_takes_it():
    with grpc_collector() as received:
        found = examine(f"http://localhost:{received.port}", "grpc")

        assert received.names() == [doctor.TEST]
    assert {finding.state for finding in found.values()} == {"ok"}


def test_refusal_over_grpc_is_told_with_what_to_do():
    with grpc_collector() as received:
        received.answers = [lambda context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")]
        found = examine(f"http://localhost:{received.port}", "grpc")

    assert "UNAUTHENTICATED who are you" in found["collector.status"].message
    assert "HEADERS" in found["collector.status"].hint


def test_http_to_a_port_of_grpc_is_told():
    with grpc_collector() as received:
        found = examine(f"http://localhost:{received.port}/v1/traces")

    assert found["collector.accepted"].state == "broken"
    assert "grpc" in found["collector.accepted"].hint


def test_certificate_of_grpc_that_is_not_trusted_is_told(certified, tmp_path):
    authority = certified[2].issue_cert("localhost")
    key, chain = authority.private_key_pem.bytes(), authority.cert_chain_pems[0].bytes()
    with grpc_collector(credentials=grpc.ssl_server_credentials([(key, chain)])) as received:
        found = examine(f"https://localhost:{received.port}", "grpc")

    assert found["collector.tls"].state == "broken"
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in found["collector.tls"].hint

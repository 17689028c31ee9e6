from __future__ import annotations

import base64
import http.client
import logging
import os
import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from django_obs.server.web_config import Gatekeeper, WebConfigError, read
from tests.server.conftest import QUICK, Client, serving

bcrypt = pytest.importorskip("bcrypt")
trustme = pytest.importorskip("trustme")

PASSWORD = "correct horse"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


def ok(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode()]


def write(path: Path, text: str) -> Path:
    # Times of files tick slowly; a rotation in a test follows faster than any in life.
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    if path.stat().st_mtime_ns == before:
        os.utime(path, ns=(before, before + 1_000_000))
    return path


class Authority:
    """A certificate authority and the files that it has written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str) -> tuple[Path, Path]:
        certificate = self.ca.issue_cert(*identities)
        paths = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        for path, pem in zip(
            paths, (certificate.cert_chain_pems[0].bytes(), certificate.private_key_pem.bytes()), strict=True
        ):
            write(path, pem.decode())
        return paths


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def client_context(authority: Authority, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def get(port: int, context: ssl.SSLContext) -> bytes:
    client = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
    try:
        client.request("GET", "/")
        return client.getresponse().read()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tls_server_config: {cert_file: a, key_file: b, certfile: c}", "does not know 'certfile', must be one of"),
        ("tls_server_config: {cert_file: a}", "tls_server_config.key_file in .* is missing"),
        ("tls_server_config: [a]", "tls_server_config in .* must be a mapping"),
        ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS9}", "'TLS9' must be one of: TLS10"),
        ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAnyClientCert}", "cannot; use"),
        ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAndVerifyClientCert}", "needs it"),
        ("tls_server_config: {cert_file: a, key_file: b, client_ca_file: c}", "client_auth_type is NoClientCert"),
        ("tls_server_config: {cert_file: a, key_file: b, client_allowed_sans: a}", "must be a list of strings"),
        ("basic_auth_users: [a]", "must be a mapping of names"),
        ("basic_auth_users: {a: secret}", "basic_auth_users.a in .* is no bcrypt hash; make one with"),
        ("basic_auth_user: {}", "does not know 'basic_auth_user'"),
        ("http_server_config: {headers: {X-Powered-By: me}}", "does not know 'X-Powered-By'"),
        ('http_server_config: {headers: {X-Frame-Options: "a\\nb"}}', "must be one line of text"),
        ("rate_limit: {interval: 1s}", "rate_limit in .* is not supported"),
        ("a: [", "is not YAML"),
        ("- a", "must be a mapping"),
    ],
)
def test_mistake_is_told_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "web.yml", text)
    with pytest.raises(WebConfigError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WebConfigError, match=r"Cannot read .*web\.yml: No such file"):
        read(tmp_path / "web.yml")


def test_missing_certificate_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "web.yml", "tls_server_config: {cert_file: a.pem, key_file: a.key}")
    with pytest.raises(WebConfigError, match=r"Cannot use .*a\.pem.*, named in .*web\.yml"):
        Gatekeeper(path)


def test_empty_file_is_plain_and_open(tmp_path: Path) -> None:
    gatekeeper = Gatekeeper(write(tmp_path / "web.yml", ""))
    assert gatekeeper.context() is None
    assert gatekeeper.knows(None)


def test_go_names_of_cipher_suites_are_understood(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    suites = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    text = f"tls_server_config: {{cert_file: server.pem, key_file: server.key, cipher_suites: [{', '.join(suites)}]}}"
    context = Gatekeeper(write(tmp_path / "web.yml", text)).context()
    assert context is not None
    names = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert names == {"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"}


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, False),
        ("", False),
        (basic("prometheus", PASSWORD), True),
        (basic("prometheus", PASSWORD).replace("Basic", "basic"), True),
        (basic("prometheus", "wrong"), False),
        (basic("prometheus", ""), False),
        (basic("nobody", PASSWORD), False),
        (basic("prometheus", PASSWORD + "x" * 100), False),
        (basic("prometheus", PASSWORD + "\0"), False),
        ("Bearer " + PASSWORD, False),
        ("Basic !!!", False),
        ("Basic " + base64.b64encode(b"prometheus").decode(), False),
    ],
)
def test_user_is_known_by_its_password(tmp_path: Path, authorization: str | None, expected: bool) -> None:
    gatekeeper = Gatekeeper(write(tmp_path / "web.yml", f"basic_auth_users: {{prometheus: {HASH}}}"))
    assert gatekeeper.knows(authorization) is expected
    assert gatekeeper.knows(authorization) is expected  # from memory


def test_password_is_checked_once_and_after_a_change_again(tmp_path: Path) -> None:
    slow = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(12)).decode()
    path = write(tmp_path / "web.yml", f"basic_auth_users: {{prometheus: {slow}}}")
    gatekeeper = Gatekeeper(path)
    header = basic("prometheus", PASSWORD)
    began = time.thread_time()  # not the clock's: the machine may be busy
    assert gatekeeper.knows(header)
    first = time.thread_time() - began
    began = time.thread_time()
    assert gatekeeper.knows(header)
    assert time.thread_time() - began < first / 10
    other = bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode()
    write(path, f"basic_auth_users: {{prometheus: {other}}}")
    assert not gatekeeper.knows(header)
    assert gatekeeper.knows(basic("prometheus", "another"))


def test_file_that_breaks_changes_nothing_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "web.yml", f"basic_auth_users: {{prometheus: {HASH}}}")
    gatekeeper = Gatekeeper(path)
    write(path, "basic_auth_users: oops")
    with caplog.at_level(logging.WARNING, "django_obs"):
        for _ in range(3):
            assert not gatekeeper.knows(None)
            assert gatekeeper.knows(basic("prometheus", PASSWORD))
    assert len(caplog.records) == 1
    path.unlink()
    assert not gatekeeper.knows(None)


def test_connection_is_encrypted_and_certificates_rotate(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    path = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}")
    with serving(ok, tls=Gatekeeper(path)) as listener:
        assert get(listener.port, client_context(authority)) == b"https"
        # A new authority: only who trusts that one can have been shown the new certificate.
        renewed = Authority(tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            get(listener.port, client_context(renewed))
        renewed.issue("server", "localhost")
        assert get(listener.port, client_context(renewed)) == b"https"


def test_client_needs_a_certificate_of_the_authority(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    known = authority.issue("known", "prometheus.example")
    text = (
        "tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem,"
        " client_auth_type: RequireAndVerifyClientCert}"
    )
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("stranger", "prometheus.example")
    with serving(ok, tls=Gatekeeper(write(tmp_path / "web.yml", text))) as listener:
        assert get(listener.port, client_context(authority, known)) == b"https"
        for certificate in (None, stranger):
            with pytest.raises((ssl.SSLError, OSError)):
                get(listener.port, client_context(authority, certificate))


def test_client_needs_one_of_the_allowed_names(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    text = (
        "tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem,"
        " client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [prometheus.example, 192.0.2.7]}"
    )
    with serving(ok, tls=Gatekeeper(write(tmp_path / "web.yml", text))) as listener:
        for name in ("prometheus.example", "192.0.2.7"):
            assert get(listener.port, client_context(authority, authority.issue("named", name))) == b"https"
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            get(listener.port, client_context(authority, authority.issue("other", "grafana.example")))


def test_plain_request_to_a_tls_port_is_told_so(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    path = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}")
    with serving(ok, tls=Gatekeeper(path)) as listener:
        client = Client(listener).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = client.read_all()
        client.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"HTTPS" in answer


def test_handshake_that_never_ends_is_cut_off(tmp_path: Path, authority: Authority) -> None:
    authority.issue("server", "localhost")
    path = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}")
    with serving(ok, tls=Gatekeeper(path), limits=QUICK) as listener:
        client = Client(listener).send(b"\x16\x03\x01")
        began = time.monotonic()
        client.read_all()
        client.close()
        assert time.monotonic() - began < 30

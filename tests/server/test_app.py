from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from django_obs.metrics.collectors import Collectors
from django_obs.metrics.scraper import Scraper
from django_obs.runtime import ControlFile
from django_obs.server.app import AdminApplication
from django_obs.server.assembly import build_console
from django_obs.server.filter_control import LogFilter
from django_obs.server.page import MetricsPage
from django_obs.server.recent import Recent
from django_obs.server.web_config import Gatekeeper

LOCAL = {"HTTP_HOST": "localhost:9000", "REMOTE_ADDR": "127.0.0.1"}


class Port:
    """The application with all its real parts, without a socket."""

    def __init__(self, directory: Path, web_config: str | None = None) -> None:
        registry = CollectorRegistry()
        for number in range(100):
            Gauge(f"tick_{number}", "A gauge of this process", registry=registry).set_function(lambda: 3)
        path = None
        if web_config is not None:
            path = directory / "web.yml"
            path.write_text(web_config)
        self.control = ControlFile(directory / "control.json")
        page = MetricsPage(Scraper(lambda: directory / "metrics"), Collectors(registry))
        self.recent = Recent()
        log_filter = LogFilter(lambda: self.control, "info")
        self.console = build_console(page, self.recent, log_filter, None, service="shop <1>")
        self.application = AdminApplication(
            page, Gatekeeper(path), log_filter, recent=self.recent, console=self.console
        )

    def __call__(self, method: str, target: str, body: bytes = b"", **environ: str) -> Any:
        path, _, query = target.partition("?")
        answer: Any = SimpleNamespace()

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            answer.status = int(status.split()[0])
            answer.headers = dict(headers)
            assert len(answer.headers) == len(headers)

        request = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.url_scheme": "http",
            **LOCAL,
            **environ,
        }
        answer.body = b"".join(self.application(request, start_response))
        return answer


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


def test_metrics_are_served_in_the_format_asked_for(port: Port) -> None:
    answer = port("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"tick_0 3.0\n" in answer.body
    answer = port("GET", "/metrics", HTTP_ACCEPT="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert answer.body.endswith(b"# EOF\n")


def test_metrics_are_zipped_where_allowed(port: Port) -> None:
    answer = port("GET", "/metrics", HTTP_ACCEPT_ENCODING="gzip")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert b"tick_0 3.0\n" in gzip.decompress(answer.body)


def test_names_select_families(port: Port) -> None:
    answer = port("GET", "/metrics?name[]=tick_1&name[]=tick_2")
    assert answer.body.count(b"# TYPE") == 2


def test_head_tells_the_length(port: Port) -> None:
    answer = port("HEAD", "/-/healthy")
    assert answer.body == b""
    assert answer.headers["Content-Length"] == str(len(port("GET", "/-/healthy").body))


def test_health_and_readiness_are_told(port: Port) -> None:
    assert port("GET", "/-/healthy").status == 200
    assert port("GET", "/-/ready").status == 200


def test_unreadable_store_is_unavailable(port: Port) -> None:
    def directory() -> Path:
        raise PermissionError(13, "Permission denied", "/somewhere")

    port.application.page.scraper.directory = directory  # type: ignore[attr-defined]
    for path in ("/-/ready", "/metrics"):
        answer = port("GET", path)
        assert answer.status == 503
        assert b"Permission denied" in answer.body
    assert port("GET", "/-/healthy").status == 200


def test_unknown_path_and_method_say_what_is_known(port: Port) -> None:
    answer = port("GET", "/metric")
    assert answer.status == 404
    assert b"/metrics" in answer.body
    answer = port("POST", "/metrics")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_filter_is_set_for_a_time_and_taken_back(port: Port) -> None:
    assert json.loads(port("GET", "/filter").body) == {"filter": "info", "source": "settings", "seconds": None}
    answer = port("PUT", "/filter?seconds=60", b"info,shop=debug\n")
    assert answer.status == 200
    shown = json.loads(answer.body)
    assert shown["filter"] == "info,shop=debug"
    assert 50 < shown["seconds"] <= 60
    port.control.poll()
    assert port.control.filter is not None
    assert port.control.filter.text == "info,shop=debug"
    assert json.loads(port("DELETE", "/filter").body)["source"] == "settings"


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("/filter", b"shop=[", 400),
        ("/filter", b"shop=loud", 400),
        ("/filter", b"\xff", 400),
        ("/filter?seconds=0", b"info", 400),
        ("/filter?seconds=nan", b"info", 400),
        ("/filter?seconds=soon", b"info", 400),
        ("/filter", b"a" * 10_000, 413),
    ],
)
def test_bad_filter_changes_nothing(port: Port, target: str, body: bytes, status: int) -> None:
    answer = port("PUT", target, body)
    assert answer.status == status
    assert answer.body.strip()
    port.control.poll()
    assert port.control.filter is None


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_directory_that_is_gone_is_told(port: Port, method: str) -> None:
    port.control.path = port.control.path.parent / "gone" / "control.json"
    answer = port(method, "/filter", b"info")
    assert answer.status == 503
    assert b"gone" in answer.body


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"REMOTE_ADDR": ""},
        {"HTTP_HOST": "evil.example:9000"},  # a name of theirs that points here
        {"HTTP_HOST": ""},
        {"HTTP_HOST": "[oops"},
        {"HTTP_X_FORWARDED_FOR": "192.0.2.1"},
        {"HTTP_FORWARDED": "for=192.0.2.1"},
        {"HTTP_VIA": "1.1 proxy"},
        {"HTTP_X_FORWARDED_HOST": "shop.example"},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": "https://localhost:9000"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_stranger_cannot_see_or_change_the_filter(port: Port, environ: dict[str, str], method: str) -> None:
    answer = port(method, "/filter", b"off", **environ)
    assert answer.status == 403
    port.control.poll()
    assert port.control.filter is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HTTP_ORIGIN": "http://localhost:9000"},
        {"HTTP_HOST": "127.0.0.1"},
        {"HTTP_HOST": "[::1]:9000", "REMOTE_ADDR": "::1"},
        {"REMOTE_ADDR": "::ffff:127.0.0.1"},
        {"REMOTE_ADDR": "192.0.2.1", "HTTP_HOST": "metrics.example", "django_obs.client_certified": "yes"},
    ],
)
def test_who_is_here_or_certified_can_change_the_filter(port: Port, environ: dict[str, str]) -> None:
    assert port("PUT", "/filter", b"debug", **environ).status == 200


def test_users_of_the_web_config_are_let_in_everywhere_and_nobody_else(tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    port = Port(tmp_path, f"basic_auth_users: {{prometheus: {hashed}}}")
    far = {"REMOTE_ADDR": "192.0.2.1", "HTTP_HOST": "metrics.example"}
    known = {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"prometheus:secret").decode()}
    for path in ("/metrics", "/", "/-/healthy", "/filter", "/nowhere"):
        answer = port("GET", path)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert port("GET", "/metrics", **far, **known).status == 200
    assert port("PUT", "/filter", b"debug", **far, **known).status == 200
    # A browser that knows the password sends it for any page.
    assert port("PUT", "/filter", b"debug", **far, **known, HTTP_ORIGIN="http://evil.example").status == 403


def test_headers_of_the_web_config_are_sent(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    headers = "{X-Frame-Options: DENY, Content-Security-Policy: default-src 'self'}"
    port = Port(tmp_path, f"http_server_config: {{headers: {headers}}}")
    answer = port("GET", "/")
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Content-Security-Policy"] == "default-src 'self'"

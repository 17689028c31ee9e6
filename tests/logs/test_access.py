from __future__ import annotations

import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from django.test import RequestFactory
from django.utils.log import log_response

from django_obs.conf import LogSettings
from django_obs.context import Scope, current
from django_obs.logs.entry import ACCESS_FIELDS
from django_obs.logs.values import MAX_TEXT
from tests.logs.conftest import Installed


def request_scope(**changes: Any) -> Scope:
    scope = Scope("request")
    scope.method = "GET"
    scope.path = "/cart/7/"
    scope.status = 200
    scope.route = "/cart/<int:pk>/"
    scope.request_id = "r-1"
    scope.trace_id = "c" * 32
    scope.db_count = 3
    scope.db_ns = 1_500_000
    scope.cache_hits = 2
    scope.cache_misses = 1
    for name, value in changes.items():
        setattr(scope, name, value)
    return scope


def error() -> Exception:
    try:
        raise ValueError("bad")
    except ValueError as raised:
        return raised


@pytest.mark.parametrize("direct", [True, False])
def test_access_line_has_all_that_is_known(direct: bool, pipeline: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pipeline(service_name="shop")
    assert made.access is not None
    logging.getLogger().handlers[:] = [made.handler]
    if not direct:
        # Somebody else wants records.
        made.access.logger.addHandler(logging.NullHandler())
    scope = request_scope(
        user_id="42", bound={"order_id": 7}, ended=12_345_678, size=99, client="::1", queue_ns=2_000_000
    )
    current.set(scope)
    made.access.emit(scope)
    # Work that the request has started goes on to count, and to bind.
    scope.db_count += 1
    scope.bound["late"] = True
    (line,) = pipeline.lines()
    timestamp = line.pop("timestamp")
    assert timestamp.endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "django_obs.access",
        "message": "GET /cart/7/ 200",
        "trace_id": "c" * 32,
        "request_id": "r-1",
        "service": "shop",
        "order_id": 7,
        "method": "GET",
        "route": "/cart/<int:pk>/",
        "path": "/cart/7/",
        "status": 200,
        "duration_ms": 12.345,
        "queue_ms": 2.0,
        "response_bytes": 99,
        "db_queries": 3,
        "db_ms": 1.5,
        "cache_hits": 2,
        "cache_misses": 1,
        "user_id": "42",
        "client": "::1",
    }


def test_all_that_an_access_line_may_say_is_declared(pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    made.access.emit(request_scope(user_id="42", size=99, client="::1", queue_ns=2_000_000))
    (line,) = pipeline.lines()
    assert [key for key in line if key in ACCESS_FIELDS] == list(ACCESS_FIELDS)


@pytest.mark.parametrize("direct", [True, False])
def test_endless_path_is_cut(direct: bool, pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    if not direct:
        made.access.logger.addHandler(logging.NullHandler())
    made.access.emit(request_scope(path="/" + "a" * 2 * MAX_TEXT, size=1, client="::1"))
    (line,) = pipeline.lines()
    assert MAX_TEXT < len(line["path"]) < MAX_TEXT + 100
    assert MAX_TEXT < len(line["message"]) < MAX_TEXT + 100


def test_what_was_bound_is_not_kept_until_the_line_is_written(pipeline: Installed) -> None:
    class Cart:
        def __str__(self) -> str:
            return "cart 7"

    made = pipeline()
    assert made.access is not None
    scope = request_scope(bound={"cart": Cart()}, client="::1", size=1)
    kept = weakref.ref(scope.bound["cart"])
    made.access.emit(scope)
    del scope
    assert kept() is None
    (line,) = pipeline.lines()
    assert (line["cart"], line["path"], line["client"]) == ("cart 7", "/cart/7/", "::1")


def test_unknown_is_left_out(pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    made.access.emit(request_scope(route=None, status=404))
    (line,) = pipeline.lines()
    assert not {"queue_ms", "response_bytes", "user_id", "client"} & set(line)
    assert line["route"] is None


@pytest.mark.parametrize(
    ("status", "level"), [(200, "INFO"), (302, "INFO"), (404, "WARNING"), (499, "WARNING"), (500, "ERROR")]
)
def test_level_follows_the_status(status: int, level: str, pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    made.access.emit(request_scope(status=status))
    assert pipeline.lines()[0]["level"] == level


@pytest.mark.parametrize("direct", [True, False])
def test_failed_request_carries_the_exception(direct: bool, pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    logging.getLogger().handlers[:] = [made.handler] if direct else [made.handler, logging.NullHandler()]
    made.access.emit(request_scope(status=500, error=error()))
    (line,) = pipeline.lines()
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["message"] == "bad"
    assert "test_access.py" in line["exception"]["stack"]


def test_path_that_would_break_the_line_does_not(pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    made.access.emit(request_scope(path='/a\n{"level":"ERROR"}\ud800'))
    (line,) = pipeline.lines()
    assert line["message"].startswith('GET /a\n{"level"')


def test_filter_decides_on_access_lines_too(pipeline: Installed) -> None:
    made = pipeline(LogSettings(filter="info,django_obs.access=warn,django_obs.access[/vip*]=info"))
    assert made.access is not None
    for path in ("/cart", "/vip"):
        scope = request_scope(path=path)
        current.set(scope)
        made.access.emit(scope)
    assert [line["path"] for line in pipeline.lines()] == ["/vip"]


def test_no_access_lines_if_they_are_switched_off(pipeline: Installed) -> None:
    assert pipeline(LogSettings(access=False)).access is None


def test_telemetry_that_cannot_be_told_breaks_nothing(pipeline: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    made = pipeline()
    assert made.access is not None
    for _ in range(2):
        made.access.emit(SimpleNamespace(request=None))  # type: ignore[arg-type]
    assert made.stats()["failed"] == 2
    assert capsys.readouterr().err.count("could not be queued; reported once") == 1


# -- What Django says of the same request ------------------------------------------------------------------------------


def test_line_of_django_about_a_failed_request_is_left_to_ours(pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    heard: list[str] = []

    class Mail(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logging.getLogger("django").addHandler(Mail())
    request = RequestFactory().get("/cart/7/")
    scope = request_scope(request=request, status=500, error=error())
    token = current.set(scope)
    log_response(
        "%s: %s",
        "Internal Server Error",
        "/cart/7/",
        response=SimpleNamespace(status_code=500),
        request=request,
        exception=error(),
    )
    made.access.emit(scope)
    current.reset(token)
    # As Django's handler does after the last middleware.
    log_response("Not Found: %s", "/cart/7/", response=SimpleNamespace(status_code=404), request=request)
    assert [line["logger"] for line in pipeline.lines()] == ["django_obs.access"]
    assert heard == ["Internal Server Error: /cart/7/", "Not Found: /cart/7/"]


def test_line_of_django_that_says_more_is_kept(pipeline: Installed) -> None:
    pipeline()
    request = RequestFactory().get("/cart/7/")
    current.set(request_scope(request=request))
    log_response(
        "Forbidden (Permission denied): %s",
        "/cart/7/",
        response=SimpleNamespace(status_code=403),
        request=request,
        exception=error(),
    )
    logging.getLogger("django.security.csrf").warning(
        "Forbidden (CSRF): /", extra={"status_code": 403, "request": request}
    )
    lines = pipeline.lines()
    assert [line["message"] for line in lines] == ["Forbidden (Permission denied): /cart/7/", "Forbidden (CSRF): /"]
    assert lines[0]["status_code"] == 403
    assert "request" not in lines[0]


@pytest.mark.parametrize("why", ["no scope", "excluded", "access off"])
def test_line_of_django_about_a_request_without_access_line_is_kept(why: str, pipeline: Installed) -> None:
    pipeline(LogSettings(access=why != "access off"))
    request = RequestFactory().get("/health")
    if why != "no scope":
        current.set(request_scope(request=request, excluded=why == "excluded"))
    log_response("Error: %s", "/health", response=SimpleNamespace(status_code=500), request=request)
    assert [line["logger"] for line in pipeline.lines()] == ["django.request"]


def test_access_lines_of_runserver_are_left_out_and_its_complaints_are_not(pipeline: Installed, settings: Any) -> None:
    settings.STATIC_URL = "static/"
    pipeline()
    server = logging.getLogger("django.server")
    server.error('"%s" %s %s', "GET / HTTP/1.1", "500", "1", extra={"status_code": 500})
    server.error("You're accessing the development server over HTTPS", extra={"status_code": 500})
    server.warning('"%s" %s %s', "GET /static/missing.css HTTP/1.1", "404", "1", extra={"status_code": 404})
    assert [line["message"][:20] for line in pipeline.lines()] == ["You're accessing the", '"GET /static/missing']


def test_bad_stamp_of_a_caller_is_counted_not_raised(pipeline: Installed) -> None:
    def ids() -> tuple[str, str]:
        raise RuntimeError

    made = pipeline(ids=ids)
    logging.getLogger("shop").info("line")
    # The report about it fails likewise.
    assert made.stats()["failed"] == 2


def test_access_line_goes_to_no_root_handler_but_to_one_of_its_own(pipeline: Installed) -> None:
    class Kept(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.messages.append(record.getMessage())

    sentry, own = Kept(), Kept()
    made = pipeline()
    assert made.access is not None
    logging.getLogger().addHandler(sentry)
    made.access.logger.addHandler(own)
    made.access.emit(request_scope(status=500, error=error()))
    assert (sentry.messages, own.messages) == ([], ["GET /cart/7/ 500"])
    assert len(pipeline.lines()) == 1

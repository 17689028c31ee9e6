from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.config
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.utils.log import DEFAULT_LOGGING

from django_obs.conf import LogSettings
from django_obs.context import Scope, current
from django_obs.lifecycle import Worker
from django_obs.logs.formatters import ConsoleFormatter, JSONFormatter
from django_obs.logs.handlers import NonBlockingHandler
from django_obs.logs.pipeline import LogPipeline, is_one_off_command
from tests.logs.conftest import Installed

shop = logging.getLogger("shop")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def configure(config: dict[str, Any]) -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **config})


class Stderr:
    """What was written to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.text = ""

    def getvalue(self) -> str:
        self.text += self.capsys.readouterr().err
        return self.text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Stderr:
    return Stderr(capsys)


def test_record_becomes_a_line_of_the_layout(pipeline: Installed) -> None:
    pipeline(LogSettings(), service_name="shop", ids=lambda: ("a" * 32, "b" * 16))

    logging.getLogger("shop.cart").info("paid %s", 7, extra={"order_id": 7, "level": "high"})

    (line,) = pipeline.lines()
    assert list(line) == [
        "timestamp",
        "level",
        "logger",
        "message",
        "trace_id",
        "span_id",
        "service",
        "order_id",
        "level_",
    ]
    assert line["message"] == "paid 7"
    assert line["level"] == "INFO"
    assert line["level_"] == "high"
    assert line["trace_id"] == "a" * 32


def test_bound_context_and_request_id_are_on_every_line(pipeline: Installed) -> None:
    pipeline(LogSettings())
    scope = Scope("request")
    scope.request_id = "r-1"
    scope.trace_id = "c" * 32
    scope.bound["order_id"] = 7
    token = current.set(scope)
    shop.warning("low")
    current.reset(token)

    (line,) = pipeline.lines()
    assert (line["request_id"], line["trace_id"], line["order_id"]) == ("r-1", "c" * 32, 7)


def test_installing_starts_no_thread(pipeline: Installed) -> None:
    made = pipeline()
    assert not made.worker.running
    shop.info("first")
    assert made.worker.running


def test_console_handlers_of_django_are_taken_over(pipeline: Installed, stderr: Stderr) -> None:
    logging.config.dictConfig(DEFAULT_LOGGING)
    mail = [each for each in logging.getLogger("django").handlers if not isinstance(each, logging.StreamHandler)]
    pipeline(LogSettings(filter="info,django.server=info", access=False))
    logging.getLogger("django").info("django")
    logging.getLogger("django.server").info("server")
    assert [line["message"] for line in pipeline.lines()] == ["django", "server"]
    assert logging.getLogger("django").handlers == mail
    assert stderr.getvalue() == ""


def test_other_handlers_keep_working(pipeline: Installed, stderr: Stderr, tmp_path: Any) -> None:
    configure(
        {
            "handlers": {
                "console": {"class": "logging.StreamHandler"},
                "file": {"class": "logging.FileHandler", "filename": str(tmp_path / "shop.log")},
            },
            "root": {"handlers": ["console"], "level": "INFO"},
            "loggers": {
                "shop": {"handlers": ["file", "console"], "level": "INFO", "propagate": False},
                "cart": {"handlers": ["console"]},
            },
        }
    )
    pipeline()
    for name in ("shop", "shop.orders", "cart", "other"):
        logging.getLogger(name).info("from %s", name)
    assert [line["message"] for line in pipeline.lines()] == [
        "from shop",
        "from shop.orders",
        "from cart",
        "from other",
    ]
    assert (tmp_path / "shop.log").read_text() == "from shop\nfrom shop.orders\n"
    assert stderr.getvalue() == ""
    for handler in shop.handlers:
        handler.close()


def test_child_below_a_logger_that_keeps_to_itself_is_heard(pipeline: Installed, stderr: Stderr) -> None:
    kept = Kept()
    logging.getLogger("closed").propagate = False
    logging.getLogger("closed").addHandler(kept)
    logging.getLogger("closed.child").addHandler(logging.StreamHandler())
    pipeline()
    logging.getLogger("closed.child").info("child")
    logging.getLogger("closed").info("closed")
    assert [line["message"] for line in pipeline.lines()] == ["child"]
    assert kept.messages == ["child", "closed"]


def test_later_configuration_is_lived_with(pipeline: Installed, stderr: Stderr) -> None:
    made = pipeline(LogSettings(filter="info,shop=debug"))
    shop.debug("before")
    configure(
        {
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["console"], "level": "ERROR"},
        }
    )
    shop.debug("after")
    logging.getLogger("other").info("other")
    configure({"loggers": {"shop": {"handlers": [], "level": "WARNING", "propagate": False}}})
    assert [line["message"] for line in pipeline.lines()] == ["before", "after", "other"]
    assert stderr.getvalue() == ""
    assert sum(isinstance(each, NonBlockingHandler) for each in logging.getLogger().handlers) == 1
    assert made.handler in logging.getLogger().handlers


@pytest.mark.parametrize(
    "disturb",
    [
        lambda: logging.basicConfig(force=True),
        lambda: logging.getLogger().handlers.clear(),
        lambda: logging.getLogger().addHandler(logging.StreamHandler()),
    ],
    ids=["basicConfig", "cleared", "added"],
)
def test_other_changes_are_noticed_by_the_clock(
    disturb: Callable[[], object], pipeline: Installed, stderr: Stderr
) -> None:
    made = pipeline()
    disturb()
    made.look()
    shop.info("line")
    assert [line["message"] for line in pipeline.lines()] == ["line"]
    assert stderr.getvalue() == ""


def test_uninstalling_puts_everything_back(pipeline: Installed, stderr: Stderr) -> None:
    handler = logging.StreamHandler()
    shop.addHandler(handler)
    shop.propagate = False
    root = logging.getLogger()
    before = list(root.handlers), root.level
    made = pipeline(LogSettings(filter="debug,shop[{a}]=debug"))
    assert shop.handlers == [made._placed[shop]]
    made.uninstall()
    assert shop.handlers == [handler]
    assert (root.handlers, root.level) == before
    assert not any(each.filters for each in root.handlers)


def test_other_handlers_get_no_records_that_only_a_dynamic_directive_has_asked_for(pipeline: Installed) -> None:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    made = pipeline(LogSettings(filter="info"))
    made.filter.set("info,shop[{order_id=7}]=debug", source="test")
    shop.debug("hidden")
    shop.debug("shown", extra={"order_id": 7})
    shop.info("told")
    made.filter.set(None)
    shop.debug("hidden again", extra={"order_id": 7})
    assert kept.messages == ["shown", "told"]
    assert [line["message"] for line in pipeline.lines()] == ["shown", "told"]
    assert kept.filters == []


def test_filter_expires_by_the_clock(pipeline: Installed) -> None:
    made = pipeline()
    made.filter.set("debug", until=0.0, source="test")
    assert logging.getLogger().level == logging.DEBUG
    made.worker.flush(60)
    assert logging.getLogger().level == logging.INFO


def test_unreadable_directive_in_the_settings_is_told(pipeline: Installed, stderr: Stderr) -> None:
    pipeline(LogSettings(filter="info,shop=loud"))
    assert "Unknown level 'loud'" in stderr.getvalue()


def test_root_level_of_the_project_holds_where_our_settings_say_nothing(
    pipeline: Installed, stderr: Stderr, settings: Any
) -> None:
    settings.LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "root": {"level": "WARNING"},
        "loggers": {"urllib3": {"level": "DEBUG"}},
    }
    logging.getLogger("urllib3").setLevel(logging.DEBUG)
    made = pipeline()
    shop.info("hidden")
    logging.getLogger("urllib3").debug("asked for")
    assert made.filter.state == ("warning", "LOGGING", None)
    made.filter.set("info,shop=debug", source="test")
    shop.debug("shown")
    made.filter.set(None)
    shop.info("hidden again")
    assert [line["message"] for line in pipeline.lines()] == ["asked for", "shown"]


def test_root_level_of_the_project_gives_way_to_our_settings(pipeline: Installed, settings: Any) -> None:
    settings.LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
    pipeline(LogSettings(filter="info,cart=debug"))
    shop.info("shown")
    assert [line["message"] for line in pipeline.lines()] == ["shown"]


def test_level_of_a_console_handler_is_respected(pipeline: Installed, stderr: Stderr) -> None:
    kept = Kept()
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    shop.addHandler(kept)
    shop.addHandler(console)
    shop.setLevel(logging.DEBUG)
    made = pipeline()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("shop.cart").log(level, logging.getLevelName(level))
    # A logger of which LOGGING says nothing follows the filter.
    logging.getLogger("other").info("other")
    made.filter.set("info,shop=info", source="test")
    shop.info("named")
    assert kept.messages == ["DEBUG", "INFO", "WARNING", "named"]
    assert [line["message"] for line in pipeline.lines()] == ["WARNING", "other", "named"]


@pytest.mark.parametrize(
    ("console_level", "printed"), [("WARNING", ["w"]), ("NOTSET", ["d", "i", "w"]), (None, ["i", "w"])]
)
def test_file_of_the_root_logger_keeps_what_the_console_does_not_show(
    console_level: str | None,
    printed: list[str],
    pipeline: Installed,
    stderr: Stderr,
    settings: Any,
) -> None:
    settings.LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "DEBUG"}}
    root, file = logging.getLogger(), Kept()
    root.setLevel(logging.DEBUG)
    root.handlers[:] = [file]
    if console_level is not None:
        console = logging.StreamHandler()
        console.setLevel(console_level)
        root.addHandler(console)
    made = pipeline()
    shop.debug("d")
    shop.info("i")
    shop.warning("w")
    assert file.messages == ["d", "i", "w"]
    assert [line["message"] for line in pipeline.lines()] == printed
    assert made.access is not None
    made.access.emit(Scope("request"))
    assert pipeline.lines()[-1]["logger"] == "django_obs.access"


def test_filter_that_is_set_to_the_default_is_set(pipeline: Installed, settings: Any) -> None:
    settings.LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
    pipeline(filter_is_default=False)
    shop.info("shown")
    assert [line["message"] for line in pipeline.lines()] == ["shown"]


def test_filters_of_a_console_handler_are_kept(pipeline: Installed, stderr: Stderr) -> None:
    class Tenant(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.tenant = "acme"
            return record.getMessage() != "health"

    console = logging.StreamHandler()
    console.addFilter(Tenant())
    logging.getLogger().addHandler(console)
    made = pipeline()
    shop.info("health")
    shop.info("line")
    made.filter.set("info,shop[{tenant=acme}]=debug", source="test")
    shop.debug("detail")
    assert [(line["message"], line["tenant"]) for line in pipeline.lines()] == [("line", "acme"), ("detail", "acme")]


def test_formatter_of_ours_on_a_console_handler_is_kept(pipeline: Installed, stderr: Stderr) -> None:
    console = logging.StreamHandler()
    console.setFormatter(JSONFormatter(rename_fields={"level": "severity"}))
    logging.getLogger().addHandler(console)
    pipeline(service_name="shop", ids=lambda: ("a" * 32, "b" * 16))
    shop.info("line")
    (line,) = pipeline.lines()
    assert (line["severity"], line["service"], line["trace_id"]) == ("INFO", "shop", "a" * 32)


def test_file_in_our_layout_gets_ids_and_no_secrets(pipeline: Installed, tmp_path: Any) -> None:
    with contextlib.closing(logging.FileHandler(tmp_path / "shop.log")) as handler:
        handler.setFormatter(JSONFormatter(service="shop"))
        shop.addHandler(handler)
        pipeline(ids=lambda: ("a" * 32, "b" * 16))
        shop.info("line", extra={"password": "x"})
    line = json.loads((tmp_path / "shop.log").read_text())
    assert (line["trace_id"], line["password"]) == ("a" * 32, "[redacted]")


def test_our_loggers_are_not_silenced_by_a_configuration_that_does_not_name_them(pipeline: Installed) -> None:
    made = pipeline()
    assert made.access is not None
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    made.access.emit(Scope("request"))
    assert len(pipeline.lines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "debug", "terminal", "expected"),
    [
        ("auto", True, True, ConsoleFormatter),
        ("auto", False, True, JSONFormatter),
        ("auto", True, False, JSONFormatter),
        ("json", True, True, JSONFormatter),
        ("console", False, False, ConsoleFormatter),
    ],
)
def test_format_is_chosen(
    wanted: Any, debug: bool, terminal: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    made = LogPipeline(LogSettings(format=wanted, stream="stdout"), worker=Worker("tests"), debug=debug)
    assert type(made.formatter) is expected
    if isinstance(made.formatter, ConsoleFormatter):
        assert made.formatter.colours is terminal


def test_colours_are_not_forced_on_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    made = LogPipeline(LogSettings(format="console", stream="stdout"), worker=Worker("tests"))
    assert isinstance(made.formatter, ConsoleFormatter)
    assert not made.formatter.colours


@pytest.mark.parametrize(
    ("argv", "one_off"),
    [
        (["manage.py", "dumpdata"], True),
        (["/srv/manage.py", "runserver"], False),
        (["manage.py"], True),
        (["/usr/bin/django-admin", "check"], True),
        (["/lib/django/__main__.py", "migrate"], True),
        (["/lib/gunicorn/__main__.py", "shop.wsgi"], False),
        (["gunicorn", "check"], False),
        ([], False),
    ],
)
def test_one_off_commands_are_known(argv: list[str], one_off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert is_one_off_command() is one_off
    made = LogPipeline(LogSettings(), worker=Worker("tests"))
    assert made.sink.stream == ("stderr" if one_off else "stdout")


def test_line_written_is_json(pipeline: Installed) -> None:
    pipeline(LogSettings())
    shop.info("one\ntwo")
    assert json.loads(pipeline.raw())["message"] == "one\ntwo"

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from django_obs import conf
from django_obs.conf import LogSettings, MetricSettings, Settings, TraceSettings, read_settings

# A machine under load is no finding.
patient = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(raw: object = None, **environ: str) -> Settings:
    """Return the settings of a project without mistakes."""
    settings, problems, *_ = read_settings({} if raw is None else raw, environ)
    assert problems == ()
    return settings


def only_problem(raw: object = None, **environ: str) -> conf.Problem:
    settings, problems, *_ = read_settings({} if raw is None else raw, environ)
    assert settings == read()
    assert len(problems) == 1
    return problems[0]


def test_nothing_given_defaults_hold():
    settings = read()

    assert settings.logs == LogSettings()
    assert settings.metrics == MetricSettings()
    assert settings.traces == TraceSettings(endpoint="http://localhost:4318/v1/traces")
    assert settings.service_name == "unknown_service"


@pytest.mark.parametrize("path", list(conf.paths()), ids="-".join)
def test_every_default_read_back_from_settings_is_itself(path):
    value = default = Settings()
    raw: dict = {}
    inner = raw
    for name in path:
        default = getattr(default, name)
    for name in path[:-1]:
        inner = inner.setdefault(name.upper(), {})
    inner[path[-1].upper()] = default

    value = read(raw)
    for name in path:
        value = getattr(value, name)
    if path not in {("service_name",), ("traces", "endpoint")}:
        assert value == default


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("DJANGO_OBS_SERVICE_NAME", "shop", "service_name", "shop"),
        ("DJANGO_OBS_EXCLUDED_PATHS", "/a, /b/*", "excluded_paths", ("/a", "/b/*")),
        ("DJANGO_OBS_EXCLUDED_PATHS", "none", "excluded_paths", ()),
        ("DJANGO_OBS_FLUSH_TIMEOUT", "2", "flush_timeout", 2.0),
        ("DJANGO_OBS_LOGS_ENABLED", "No", "logs.enabled", False),
        ("DJANGO_OBS_LOGS_FILTER", "info,shop=debug", "logs.filter", "info,shop=debug"),
        ("DJANGO_OBS_LOGS_QUEUE_SIZE", " 7 ", "logs.queue_size", 7),
        ("DJANGO_OBS_LOGS_OVERFLOW", "block", "logs.overflow", "block"),
        ("DJANGO_OBS_TRACES_HEADERS", "a=b%2C,c = d", "traces.headers", {"a": "b,", "c": "d"}),
        ("DJANGO_OBS_TRACES_INSTRUMENT", "auto", "traces.instrument", "auto"),
        ("DJANGO_OBS_TRACES_INSTRUMENT", "redis,httpx", "traces.instrument", ("redis", "httpx")),
        ("DJANGO_OBS_TRACES_INSTRUMENT", "none", "traces.instrument", ()),
        ("DJANGO_OBS_TRACES_KEEP_SLOWER_THAN", "none", "traces.keep_slower_than", None),
        ("DJANGO_OBS_TRACES_KEEP_SLOWER_THAN", "0.5", "traces.keep_slower_than", 0.5),
        ("DJANGO_OBS_METRICS_BUCKETS", "0.1,1,inf", "metrics.buckets", (0.1, 1.0)),
        ("DJANGO_OBS_METRICS_PORT", "0", "metrics.port", 0),
    ],
)
def test_variable_read_as_the_type_of_its_setting(variable, text, path, value):
    found: object = read(**{variable: text})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_variable_goes_before_settings():
    settings = read({"LOGS": {"FILTER": "debug"}}, DJANGO_OBS_LOGS_FILTER="warning")
    assert settings.logs.filter == "warning"


def test_settings_go_before_opentelemetry():
    settings = read(
        {"TRACES": {"ENABLED": True}, "SERVICE_NAME": "ours"}, OTEL_SDK_DISABLED="true", OTEL_SERVICE_NAME="x"
    )
    assert settings.traces.enabled
    assert settings.service_name == "ours"


def test_blank_variable_counts_as_unset():
    settings = read({"LOGS": {"FILTER": "debug"}}, DJANGO_OBS_LOGS_FILTER=" ", OTEL_TRACES_EXPORTER="")
    assert settings.logs.filter == "debug"
    assert settings.traces.enabled


def test_bad_variable_lets_the_next_source_speak():
    settings, problems, *_ = read_settings({"LOGS": {"QUEUE_SIZE": 5}}, {"DJANGO_OBS_LOGS_QUEUE_SIZE": "many"})
    assert settings.logs.queue_size == 5
    assert [str(each) for each in problems] == ["DJANGO_OBS_LOGS_QUEUE_SIZE is 'many', must be an integer."]


def test_path_object_accepted_as_directory():
    assert read({"RUNTIME_DIR": PurePosixPath("/run/shop")}).runtime_dir == "/run/shop"


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        ([], "type", "DJANGO_OBS is [], must be a dict."),
        ({"LOGS": True}, "type", "DJANGO_OBS['LOGS'] is True, must be a dict."),
        ({3: 1}, "key", "Unknown setting DJANGO_OBS[3], must be one of: SERVICE_NAME, EXCLUDED_PATHS"),
        ({"LOG": {}}, "key", "Unknown setting DJANGO_OBS['LOG'], must be one of: LOGS, SERVICE_NAME"),
        ({"LOGS": {"QUEUESIZE": 1}}, "key", "DJANGO_OBS['LOGS']['QUEUESIZE'], must be one of: QUEUE_SIZE, "),
        ({"LOGS": {"ACCESS": 1}}, "type", "DJANGO_OBS['LOGS']['ACCESS'] is 1, must be True or False."),
        ({"LOGS": {"QUEUE_SIZE": True}}, "type", "must be an integer."),
        ({"LOGS": {"QUEUE_SIZE": 0}}, "value", "must be at least 1."),
        ({"LOGS": {"FLUSH_INTERVAL": 0}}, "value", "must be more than 0."),
        ({"LOGS": {"FORMAT": "xml"}}, "choice", "is 'xml', must be one of: auto, json, console."),
        ({"LOGS": {"REDACT": "password"}}, "type", "must be a list of strings."),
        ({"LOGS": {"FILTER": None}}, "type", "is None, must be a string."),
        ({"FLUSH_TIMEOUT": math.nan}, "value", "must be a number."),
        ({"FLUSH_TIMEOUT": "5"}, "type", "must be a number."),
        ({"RUNTIME_DIR": "run"}, "value", "must be an absolute path."),
        ({"TRACES": {"SAMPLE_RATIO": 5}}, "value", "must be at most 1."),
        ({"TRACES": {"KEEP_SLOWER_THAN": "1s"}}, "type", "must be a number or None."),
        ({"TRACES": {"INSTRUMENT": "redis"}}, "choice", "must be 'auto' or a list of strings."),
        ({"TRACES": {"RESPONSE_HEADER": "X Trace"}}, "value", "must be the name of an HTTP header."),
        ({"TRACES": {"ENDPOINT": "collector"}}, "endpoint", "must be a URL such as http://collector:4318."),
        ({"TRACES": {"ENDPOINT": "collector:4317"}}, "endpoint", "must start with http:// or https://."),
        ({"TRACES": {"ENDPOINT": "ftp://collector"}}, "endpoint", "must be a URL such as"),
        ({"TRACES": {"ENDPOINT": "http://a:99999"}}, "endpoint", "must be a URL such as"),
        ({"TRACES": {"ENDPOINT": "http://a b"}}, "endpoint", "must be a URL such as"),
        ({"METRICS": {"BUCKETS": [1, 1]}}, "value", "must be one or more numbers, each larger than the one before."),
        ({"METRICS": {"BUCKETS": [math.inf]}}, "value", "must be one or more numbers"),
        ({"METRICS": {"BUCKETS": ["1"]}}, "type", "must be a list of numbers."),
        ({"METRICS": {"PORT": 70000}}, "value", "must be at most 65535."),
        ({"METRICS": {"MAX_SERIES": 10**30}}, "value", "must be at most 10000000."),
        ({"FLUSH_TIMEOUT": 10**400}, "type", "must be a number."),
        ({"SERVICE_NAME": "\ud800"}, "value", "must be text that UTF-8 can carry."),
        ({"RUNTIME_DIR": "/run/\0"}, "value", "must be an absolute path."),
        ({"RUNTIME_DIR": b"/run"}, "type", "must be a string or None."),
        ({"TRACES": {"HEADERS": {"a": 1}}}, "type", "must be a dict of strings."),
        ({"TRACES": {"HEADERS": {"a b": "c"}}}, "value", "must be names of HTTP headers with values on one line."),
        ({"TRACES": {"HEADERS": {"a": "b\r\nc: d"}}}, "value", "must be names of HTTP headers"),
        ({"TRACES": {"HEADERS": {"": "b"}}}, "value", "must be names of HTTP headers"),
    ],
)
def test_bad_setting_named_and_default_holds(raw, kind, words):
    problem = only_problem(raw)
    assert problem.kind == kind
    assert words in str(problem)
    assert "\n" not in str(problem)


def test_unknown_variable_named_with_its_neighbour():
    problem = only_problem(DJANGO_OBS_LOGS_FILTR="debug")
    assert problem.kind == "variable"
    assert str(problem) == (
        "Unknown environment variable DJANGO_OBS_LOGS_FILTR, the nearest known one is DJANGO_OBS_LOGS_FILTER."
    )


def test_header_values_never_shown():
    problem = only_problem({"TRACES": {"HEADERS": "api-key=hunter2"}})
    assert "hunter2" not in str(problem)


def test_value_that_cannot_be_shown_survived():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert "is an object of Broken, must be an integer." in str(only_problem({"LOGS": {"QUEUE_SIZE": Broken()}}))


def test_password_in_endpoint_never_shown():
    problem = only_problem({"TRACES": {"ENDPOINT": "ftp://me:hunter2@collector"}})
    assert "hunter2" not in str(problem)


@patient
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(),
        lambda x: st.dictionaries(st.text(), x),
    )
)
def test_any_value_read_without_raising(value):
    for raw in (
        value,
        {"LOGS": value},
        {"TRACES": {"ENDPOINT": value, "HEADERS": {"a": value}}, "EXCLUDED_PATHS": [value], "FLUSH_TIMEOUT": value},
    ):
        settings, problems, *_ = read_settings(raw, {})
        assert isinstance(settings, Settings)
        assert all(str(problem) for problem in problems)


@patient
@given(st.sampled_from([conf.variable_of(path) for path in conf.paths()]), st.text())
def test_any_variable_read_without_raising(variable, text):
    settings, problems, *_ = read_settings({}, {variable: text})
    assert isinstance(settings, Settings)
    assert all(str(problem) for problem in problems)


# -- OpenTelemetry's variables


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, "https://c/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/"}, "https://c/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otlp/"}, "https://c/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x"}, "https://c/x"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c"}, "https://c"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://a/x", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://b"},
            "https://a/x",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "c:4317"),
        ({"DJANGO_OBS_TRACES_ENDPOINT": "https://c"}, "https://c/v1/traces"),
        ({"DJANGO_OBS_TRACES_ENDPOINT": "https://c/in"}, "https://c/in"),
        ({"DJANGO_OBS_TRACES_ENDPOINT": "http://[::1]:4318/"}, "http://[::1]:4318/v1/traces"),
    ],
)
def test_endpoint_path_follows_the_specification(environ, endpoint):
    assert read(**environ).traces.endpoint == endpoint


@pytest.mark.parametrize(
    ("environ", "path", "value"),
    [
        ({"OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, "service_name", "a"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "x=1,service.name=b%20c"}, "service_name", "b c"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "x=1"}, "service_name", "unknown_service"),
        ({"OTEL_SDK_DISABLED": "TRUE"}, "traces.enabled", False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "none"}, "traces.enabled", False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "traces.enabled", True),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, "logs.otlp", True),
        ({"OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, "logs.otlp", False),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "traces.protocol", "grpc"),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "a=b", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "c=d"},
            "traces.headers",
            {"c": "d"},
        ),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, "traces.sample_ratio", 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, "traces.parent_based", False),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "traces.sample_ratio", 0.0),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "traces.keep_errors", False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "traces.keep_slower_than", None),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "traces.parent_based", True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, "traces.sample_ratio", 0.25),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, "traces.keep_errors", True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, "traces.sample_ratio", 1.0),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, "traces.sample_ratio", 1.0),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "99"}, "traces.queue_size", 99),
    ],
)
def test_opentelemetry_variable_keeps_its_meaning(environ, path, value):
    found: object = read(**environ)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_SDK_DISABLED": "yes"}, "OTEL_SDK_DISABLED is 'yes', must be true or false."),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is 'console', must be one of: otlp, none"),
        ({"OTEL_TRACES_SAMPLER": "xray"}, "OTEL_TRACES_SAMPLER is 'xray', must be one of: always_on, "),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "must be one of: http/protobuf, grpc."),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "must be a URL such as"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "must be pairs such as key=value,key2=value2."),
        ({"OTEL_RESOURCE_ATTRIBUTES": "secret"}, "must be pairs such as"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "must be at least 1."),
    ],
)
def test_bad_opentelemetry_variable_named_and_default_holds(environ, words):
    problem = only_problem(**environ)
    assert problem.kind == "otel"
    assert words in str(problem)


def test_bad_sampler_argument_samples_all():
    settings, problems, *_ = read_settings({}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "x"})
    assert settings.traces.sample_ratio == 1.0
    assert [problem.place for problem in problems] == ["OTEL_TRACES_SAMPLER_ARG"]


@pytest.mark.parametrize(
    ("raw", "environ", "endpoint", "protocol", "headers"),
    [
        ({}, {}, "http://localhost:4318/v1/logs", "http/protobuf", {}),
        (
            {"TRACES": {"ENDPOINT": "https://c", "HEADERS": {"k": "v"}}},
            {},
            "https://c/v1/logs",
            "http/protobuf",
            {"k": "v"},
        ),
        ({"TRACES": {"ENDPOINT": "https://c/in/v1/traces"}}, {}, "https://c/in/v1/logs", "http/protobuf", {}),
        ({"TRACES": {"ENDPOINT": "c:4317", "PROTOCOL": "grpc"}}, {}, "c:4317", "grpc", {}),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, "https://c/v1/logs", "http/protobuf", {}),
        (
            {},
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://t",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "t=1",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_HEADERS": "g=1",
            },
            "http://localhost:4318/v1/logs",
            "http/protobuf",
            {"g": "1"},
        ),
        (
            {"TRACES": {"ENDPOINT": "https://c"}},
            {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://l/x", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "l=1"},
            "https://l/x",
            "http/protobuf",
            {"l": "1"},
        ),
    ],
)
def test_logs_go_where_spans_go_unless_told_otherwise(raw, environ, endpoint, protocol, headers):
    reading = read_settings(raw, environ)
    assert reading.problems == ()
    assert reading.logs_collector == conf.Collector(endpoint=endpoint, protocol=protocol, headers=headers)


def test_bad_collector_of_logs_named_where_logs_are_sent():
    environ = {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "collector:4318"}
    reading = read_settings({"LOGS": {"OTLP": True}}, environ)
    assert [str(problem) for problem in reading.problems] == [
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is 'collector:4318', must start with http:// or https://."
    ]
    assert reading.logs_collector.endpoint == "http://localhost:4318/v1/logs"
    assert read(**environ)


# -- The settings in force


def test_override_of_settings_noticed():
    before = conf.get_settings()
    with override_settings(DJANGO_OBS={"FLUSH_TIMEOUT": 1.5, "LOGS": {"FORMAT": "xml"}}):
        assert conf.get_settings().flush_timeout == 1.5
        assert [problem.kind for problem in conf.problems()] == ["choice"]
    assert conf.get_settings() == before
    assert conf.get_settings() is conf.get_settings()
    assert conf.problems() == ()


def test_variable_noticed_after_clear(monkeypatch):
    conf.get_settings()
    monkeypatch.setenv("DJANGO_OBS_METRICS_PORT", "9100")
    conf.clear()
    assert conf.get_settings().metrics.port == 9100
    monkeypatch.undo()
    conf.clear()
    assert conf.get_settings().metrics.port == 9000


def test_origin_told_of_each_value(monkeypatch):
    assert conf.is_default("logs", "filter")
    assert conf.origin_of("logs", "filter") == "DJANGO_OBS['LOGS']['FILTER']"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with override_settings(DJANGO_OBS={"LOGS": {"FILTER": "debug"}}):
        assert not conf.is_default("logs", "filter")
        assert conf.origin_of("service_name") == "OTEL_SERVICE_NAME"


def test_service_name_is_the_root_package():
    assert conf.get_settings().service_name == "tests"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"SETTINGS_MODULE": "shop.settings.prod"}, "shop"),
        ({"SETTINGS_MODULE": "settings", "ROOT_URLCONF": "shop.urls"}, "shop"),
        ({"SETTINGS_MODULE": "settings", "BASE_DIR": PurePosixPath("/srv/shop")}, "shop"),
        ({"ROOT_URLCONF": "urls"}, "unknown_service"),
    ],
)
def test_service_name_found_without_a_setting(settings, name):
    assert conf.default_service_name(SimpleNamespace(**settings)) == name


def test_problems_said_in_one_line(caplog):
    with override_settings(DJANGO_OBS={"LOGS": {"FORMAT": "xml", "ACCESS": 3}}), caplog.at_level(logging.WARNING):
        conf.warn_of_problems()
    (record,) = caplog.records
    assert record.name == "django_obs"
    assert "['FORMAT'] is 'xml'" in record.getMessage()
    assert "['ACCESS'] is 3" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_nothing_said_without_problems(caplog):
    conf.warn_of_problems()
    assert caplog.records == []


def test_import_brings_nothing_that_django_has_not():
    # What any manage.py command has loaded before it comes to us.
    program = (
        "import sys, django.core.management, django.apps, django.conf; "
        "before = set(sys.modules); import django_obs.conf; print(*set(sys.modules) - before)"
    )
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert {name for name in modules if not name.startswith("django_obs")} <= {
        "__future__",
        "dataclasses",
        "django.core.signals",
    }

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

import pytest
from django.core.checks import registry
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

from django_obs import checks, conf
from django_obs.checks import check_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Look for the runtime directory in a place of this test's own."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path
    monkeypatch.undo()
    conf.clear()


def given(monkeypatch, **environ):
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    conf.clear()


def only_message(project=None, **settings):
    with override_settings(DJANGO_OBS=project or {}, **settings):
        (message,) = check_settings()
    assert message.hint
    assert message.hint.endswith(".")
    return message


def test_nothing_to_say_by_default():
    with override_settings(DJANGO_OBS={}):
        assert check_settings() == []


def test_checking_makes_nothing(place):
    check_settings()
    assert list(place.iterdir()) == []


# -- Errors


def test_e001_unknown_key():
    message = only_message({"LOGS": {"QUEUESIZE": 5}})
    assert message.id == "django_obs.E001"
    assert message.msg.startswith("Unknown setting DJANGO_OBS['LOGS']['QUEUESIZE'], must be one of: QUEUE_SIZE, ")


def test_e002_wrong_type():
    message = only_message({"LOGS": {"QUEUE_SIZE": "5"}})
    assert message.id == "django_obs.E002"
    assert message.msg == "DJANGO_OBS['LOGS']['QUEUE_SIZE'] is '5', must be an integer."


def test_e002_wrong_type_in_our_variable(monkeypatch):
    given(monkeypatch, DJANGO_OBS_LOGS_QUEUE_SIZE="many")
    message = only_message()
    assert message.id == "django_obs.E002"
    assert message.msg == "DJANGO_OBS_LOGS_QUEUE_SIZE is 'many', must be an integer."


def test_e003_bad_choice():
    message = only_message({"LOGS": {"OVERFLOW": "raise"}})
    assert message.id == "django_obs.E003"
    assert message.msg == "DJANGO_OBS['LOGS']['OVERFLOW'] is 'raise', must be one of: drop, block."


@pytest.mark.parametrize(
    "project", [{"TRACES": {"SAMPLE_RATIO": 1.5}}, {"METRICS": {"BUCKETS": [2, 1]}}, {"FLUSH_TIMEOUT": math.nan}]
)
def test_e004_value_out_of_bounds(project):
    assert only_message(project).id == "django_obs.E004"


def test_e005_bad_endpoint():
    message = only_message({"TRACES": {"ENDPOINT": "collector"}})
    assert message.id == "django_obs.E005"
    assert "must be a URL such as http://collector:4318" in message.msg


def test_e006_bad_directive():
    message = only_message({"LOGS": {"FILTER": "info,shop=inof"}})
    assert message.id == "django_obs.E006"
    where, directives, pointer = message.msg.splitlines()
    assert where.startswith("DJANGO_OBS['LOGS']['FILTER'] cannot be read. ")
    assert directives[pointer.index("^") :] == "inof"


def test_e006_bad_directive_in_our_variable(monkeypatch):
    given(monkeypatch, DJANGO_OBS_LOGS_FILTER="shop[")
    assert only_message({"LOGS": {"FILTER": "info"}}).msg.startswith("DJANGO_OBS_LOGS_FILTER cannot be read.")


def test_directives_not_looked_at_when_logs_are_off():
    with override_settings(DJANGO_OBS={"LOGS": {"FILTER": "info,shop=inof", "ENABLED": False}}):
        assert check_settings() == []


def test_e007_middleware_placed_twice():
    message = only_message(
        MIDDLEWARE=(checks.MIDDLEWARE, "django.middleware.common.CommonMiddleware", checks.MIDDLEWARE)
    )
    assert message.id == "django_obs.E007"
    assert "2 times" in message.msg


@pytest.mark.parametrize(("protocol", "module"), [("grpc", "grpc"), ("http/protobuf", "http")])
def test_e008_exporter_missing(monkeypatch, protocol, module):
    # What the import system does with a name that cannot be found.
    monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.{module}", None)
    message = only_message({"TRACES": {"PROTOCOL": protocol}})
    assert message.id == "django_obs.E008"
    assert f"opentelemetry-exporter-otlp-proto-{module} is not installed" in message.msg


def test_exporter_not_missed_when_nothing_is_exported(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with override_settings(DJANGO_OBS={"TRACES": {"ENABLED": False}}):
        assert check_settings() == []


def test_e009_instrumentor_missing():
    message = only_message({"TRACES": {"INSTRUMENT": ["requestz"]}})
    assert message.id == "django_obs.E009"
    assert "has 'requestz', which is unknown, must be one of: " in message.msg


# -- Warnings


def test_w001_unknown_variable(monkeypatch):
    given(monkeypatch, DJANGO_OBS_LOGS_FILTR="debug")
    message = only_message()
    assert message.id == "django_obs.W001"
    assert "DJANGO_OBS_LOGS_FILTER" in message.msg


def test_w002_bad_opentelemetry_variable(monkeypatch):
    given(monkeypatch, OTEL_TRACES_SAMPLER="sometimes")
    message = only_message()
    assert message.id == "django_obs.W002"
    assert message.msg.startswith("OTEL_TRACES_SAMPLER is 'sometimes', must be one of: always_on, ")


@pytest.mark.parametrize(
    "traces",
    [
        {"ENDPOINT": "http://collector:4317"},
        {"ENDPOINT": "http://collector:4318", "PROTOCOL": "grpc"},
        {"ENDPOINT": "collector:4318", "PROTOCOL": "grpc"},
    ],
)
def test_w003_port_of_the_other_protocol(traces):
    assert only_message({"TRACES": traces}).id == "django_obs.W003"


def test_w004_excluded_path_that_matches_nothing():
    message = only_message({"EXCLUDED_PATHS": ["/a", "*/b", "health"]})
    assert message.id == "django_obs.W004"
    assert message.hint == "Write '/health'."


def test_w005_runtime_directory_of_somebody_else(place):
    theirs = Path("/usr")
    if os.geteuid() == 0:
        theirs = place / "theirs"
        theirs.mkdir()
        os.chown(theirs, 65534, 65534)
    message = only_message({"RUNTIME_DIR": str(theirs)})
    assert message.id == "django_obs.W005"
    assert message.msg.startswith(f"Runtime directory {theirs} belongs to ")


def test_w005_runtime_directory_that_cannot_be_made(place):
    (place / "file").touch()
    message = only_message({"RUNTIME_DIR": str(place / "file" / "shop")})
    assert message.id == "django_obs.W005"
    assert "cannot be made" in message.msg


# -- All of them


def ids() -> list[str]:
    return re.findall(r'[("]([EW]\d{3})"', Path(checks.__file__).read_text().replace("django_obs.", ""))


def test_ids_are_unique():
    assert len(ids()) == len(set(ids()))


def test_ids_are_counted_without_gaps():
    for letter in "EW":
        numbers = sorted(int(each[1:]) for each in ids() if each[0] == letter)
        assert numbers == list(range(1, len(numbers) + 1))


def test_each_id_has_its_test():
    tested = {name.split("_")[1].upper() for name in globals() if re.match(r"test_[ew]\d{3}_", name)}
    assert tested == set(ids())


@pytest.fixture
def registered():
    before = set(registry.registry.registered_checks)
    registry.register(check_settings)
    yield
    registry.registry.registered_checks = before


@pytest.mark.usefixtures("registered")
def test_check_command_fails_with_place_and_choices():
    with override_settings(DJANGO_OBS={"LOGS": {"FORMAT": "xml"}}), pytest.raises(SystemCheckError) as caught:
        call_command("check")
    assert "(django_obs.E003) DJANGO_OBS['LOGS']['FORMAT'] is 'xml', must be one of: auto, json, console." in str(
        caught.value
    )


@pytest.mark.usefixtures("registered")
def test_check_command_passes_with_a_warning(monkeypatch, capsys):
    given(monkeypatch, OTEL_SDK_DISABLED="perhaps")
    call_command("check")
    assert "(django_obs.W002)" in capsys.readouterr().err

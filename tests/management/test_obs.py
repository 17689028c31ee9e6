from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_obs.management.obs.durations import duration, seconds_of
from django_obs.runtime import ControlFile, user_name


@pytest.fixture
def control(tmp_path):
    """The control file of a project that has its runtime directory in a place of this test's own."""
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "run"), "LOGS": {"FILTER": "warning"}}):
        yield ControlFile(tmp_path / "run" / "control.json")


def obs(*args: str) -> str:
    out = StringIO()
    # As a string the name would be looked up in INSTALLED_APPS.
    from django_obs.management.commands.obs import Command

    call_command(Command(), *args, stdout=out)
    return out.getvalue()


def rows(text: str) -> dict[str, str]:
    return dict(re.split(r":\s+", line, maxsplit=1) for line in text.splitlines() if not line.startswith(" "))


def test_status_says_until_when_the_processes_are_watched(control):
    assert "Watched" not in rows(obs("status"))
    control.update(watch={"url": "http://127.0.0.1:9000", "token": "secret", "until": time.time() + 600})
    shown = rows(obs("status"))
    assert re.search(r"\(in (10m|9m \d+s)\)$", shown["Watched"])
    assert "secret" not in str(shown)


# -- filter


def test_settings_hold_where_nothing_was_ordered(control):
    assert rows(obs("filter")) == {
        "Filter": "warning",
        "From": "DJANGO_OBS['LOGS']['FILTER']",
        "Until": "further notice",
    }


def test_default_called_by_its_name(tmp_path):
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "run")}):
        assert rows(obs("filter"))["From"] == "the default"


def test_directives_reach_the_control_file(control):
    shown = rows(obs("filter", "info,shop=debug"))
    assert control.poll()
    assert control.filter is not None
    assert control.filter.text == "info,shop=debug"
    assert control.filter.until is None
    assert shown["Filter"] == "info,shop=debug"
    assert shown["From"] == f"manage.py obs filter, run by {user_name(os.geteuid())}"
    assert shown["Until"].startswith("further notice")
    assert shown["Then"] == "warning (DJANGO_OBS['LOGS']['FILTER'])"


def test_directives_expire(control):
    before = time.time()
    shown = rows(obs("filter", "debug", "--for", "10m"))
    control.poll()
    assert before + 600 <= control.filter.until <= time.time() + 600
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in (10m|9m \d\ds)\)", shown["Until"])


def test_reset_takes_the_order_back(control):
    obs("filter", "debug")
    assert rows(obs("filter", "--reset"))["Filter"] == "warning"
    control.poll()
    assert control.filter is None


def test_what_others_ordered_is_shown(control):
    control.path.parent.mkdir(mode=0o700)
    control.set_filter("debug", source="runmetrics\x1b[31m")
    assert rows(obs("filter"))["From"] == "runmetrics?[31m"


def test_bad_directive_pointed_at(control):
    with pytest.raises(CommandError) as caught:
        obs("filter", "info,shop=inof")
    said, directives, pointer = str(caught.value).splitlines()
    assert said.startswith("The filter was not changed. Unknown level 'inof'")
    assert directives[pointer.index("^") :] == "inof"
    assert not control.path.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["info", "--reset"], "either directives or --reset"),
        (["--for", "10m"], "give them as well"),
        ([" "], "obs filter --reset"),
        (["info", "--for", "10"], "'10' lacks a unit behind 10"),
        (["info", "--for", "10 minutes"], "'10 minutes' lacks a unit behind 10"),
        (["info", "--for", "soon"], "'soon' is no duration, expected a number and s, m, h or d"),
    ],
)
def test_bad_arguments_explained(control, args, words):
    with pytest.raises(CommandError) as caught:
        obs("filter", *args)
    assert words in str(caught.value)
    assert not control.path.exists()


def test_no_filter_without_logs():
    with (
        override_settings(DJANGO_OBS={"LOGS": {"ENABLED": False}}),
        pytest.raises(CommandError, match=re.escape("DJANGO_OBS['LOGS']['ENABLED'] switches the logs off")),
    ):
        obs("filter")


def test_unusable_directory_explained(tmp_path):
    (tmp_path / "file").touch()
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "file")}), pytest.raises(CommandError) as caught:
        obs("filter")
    assert f"Runtime directory {tmp_path / 'file'} is not a directory" in str(caught.value)


def test_file_that_cannot_be_written_explained(control):
    control.path.mkdir(parents=True, mode=0o700)
    control.path.parent.chmod(0o700)
    with pytest.raises(CommandError, match="The filter was not changed"):
        obs("filter", "debug")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("0.5H", 1800)]
)
def test_duration_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5m", "5y", "5 m", "9999d", "9" * 400 + "d", "\u0665m", "m", "1h-"])
def test_bad_duration_refused(text):
    with pytest.raises(ArgumentTypeError):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (0.4, "0s"), (59.6, "1m"), (581, "9m 41s"), (90061, "1d 1h"), (86401, "1d 1s")]
)
def test_duration_written(seconds, text):
    assert duration(seconds) == text


def test_order_reaches_another_process(control):
    # The project is named by its settings alone; no variable of ours is passed.
    program = (
        "import sys, django; django.setup(); from django_obs.runtime import control_file; control = control_file();"
        "control.poll(); print(control.filter.text)"
    )
    obs("filter", "info,shop=debug", "--for", "1m")
    environ = os.environ | {"DJANGO_OBS_RUNTIME_DIR": str(control.path.parent)}
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environ)
    assert found.stdout == "info,shop=debug\n"


# -- status


def test_status_tells_place_and_filter(control):
    with override_settings(
        DJANGO_OBS={"RUNTIME_DIR": str(control.path.parent), "METRICS": {"ENABLED": False}, "SERVICE_NAME": "shop"}
    ):
        shown = rows(obs("status"))
    assert shown["Service"] == "shop"
    assert shown["Signals"] == "logs, traces"
    assert shown["Directory"] == str(control.path.parent)
    assert shown["Filter"] == "info"
    assert shown["Collector"] == "http://localhost:4318/v1/traces (http/protobuf)"
    assert "Processes" not in shown


def test_status_keeps_the_password_of_the_collector(control):
    traces = {"ENDPOINT": "http://me:s3cret@collector:4318"}
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(control.path.parent), "TRACES": traces}):
        shown = rows(obs("status"))
    assert shown["Collector"] == "http://***@collector:4318/v1/traces (http/protobuf)"


LIVE = """
import pathlib, sys
from django_obs.metrics.store import Store
store = Store(lambda: pathlib.Path(sys.argv[1]) / "metrics")
store.role = "web"
assert store.open()
print("open", flush=True)
sys.stdin.read()
"""


def test_status_tells_live_processes(control):
    assert rows(obs("status"))["Processes"] == "none has counted anything yet"
    with subprocess.Popen(
        [sys.executable, "-c", LIVE, str(control.path.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        shown = obs("status")
        assert rows(shown)["Processes"] == "1"
        assert re.search(rf"^ +{process.pid}  web +since \d{{4}}-", shown, flags=re.MULTILINE)
        process.stdin.close()
        process.wait(30)
    assert rows(obs("status"))["Processes"] == "none has counted anything yet"

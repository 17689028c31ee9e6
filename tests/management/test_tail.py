"""``obs tail`` and ``obs watch`` as an operator runs them: processes, pipes and signals."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from django_obs.management.obs.port import Port, Unreachable
from django_obs.management.obs.tail import Screen, slowness_of
from django_obs.server.recent import Recent
from django_obs.server.tail import as_json
from tests.management.test_runmetrics import RunMetrics
from tests.server.otlp import logs, record, span, traces
from tests.traces.support import free_port, wait_for

ENVIRON = {"DJANGO_SETTINGS_MODULE": "tests.settings", "DJANGO_OBS_TRACES_ENABLED": "false", "PYTHONUNBUFFERED": "1"}

# A shell lets its background jobs ignore SIGINT, and what they start inherits that.
LAUNCH = """
import signal, sys
from django.core.management import execute_from_command_line
signal.signal(signal.SIGINT, signal.default_int_handler)
execute_from_command_line(["manage.py", "obs", *sys.argv[1:]])
"""


class Command:
    """A running ``manage.py obs``."""

    def __init__(self, runtime_dir: Path, *arguments: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRON, "DJANGO_OBS_RUNTIME_DIR": str(runtime_dir), **environ},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Return its exit status and what it has said, after it was told to end if so."""
        if number is not None:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, out, errors


@pytest.fixture(scope="module")
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tail") / "runtime"


@pytest.fixture(scope="module")
def metrics(runtime_dir: Path) -> Iterator[RunMetrics]:
    running = RunMetrics(runtime_dir)
    yield running
    assert running.stop() == ""


@pytest.fixture
def obs(runtime_dir: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def make(*arguments: str, **environ: str) -> Command:
        started.append(Command(runtime_dir, *arguments, **environ))
        return started[-1]

    yield make
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()


def send(metrics: RunMetrics, path: str, body: bytes) -> None:
    client = http.client.HTTPConnection(metrics.host, metrics.port, timeout=20)
    client.request("POST", path, body, {"Content-Type": "application/x-protobuf", "Django-Obs-Role": "web"})
    response = client.getresponse()
    assert (response.status, response.read()) == (200, b"")
    client.close()


def watched(metrics: RunMetrics) -> list[str]:
    """Return who watches, as the port has it."""
    holders: list[str] = json.loads(metrics.get("/watch"))["holders"]
    return holders


def follow(obs: Callable[..., Command], metrics: RunMetrics, *arguments: str, **environ: str) -> Command:
    """Start a tail and wait until it follows."""
    before = set(watched(metrics))
    command = obs(*(() if "tail" in arguments else ("tail",)), *arguments, **environ)
    wait_for(lambda: set(watched(metrics)) - before or command.process.poll() is not None)
    assert command.process.poll() is None, command.end()
    return command


def marked(metrics: RunMetrics, command: Command, path: str, body: bytes) -> str:
    """Send marks until the tail shows the first one, as then it surely follows; then this, and return what is shown."""
    number = 0
    assert command.process.stdout is not None
    while True:
        number += 1
        send(metrics, "/v1/logs", logs(record(f"mark {number}", severity=21, duration_ms=9e9), logger="mark"))
        if select.select([command.process.stdout], [], [], 0.5)[0]:
            break
        assert number < 120
    send(metrics, path, body)
    while "mark" in (line := command.line()):
        assert command.process.poll() is None
    return line


def test_lines_are_shown_for_people(obs: Any, metrics: RunMetrics) -> None:
    command = follow(obs, metrics)
    body = logs(record("Paid\x1b[2J", trace=5, severity=13, order=7, **{"exception.stacktrace": "Trace\n  back"}))
    line = marked(metrics, command, "/v1/logs", body)
    assert "WARNING  shop.cart            Paid\\x1b[2J" in line
    assert "order=7" in line
    assert "process=web:4711" in line
    assert f"trace_id={5:032x}" in line
    assert "\x1b" not in line
    assert command.line() == "    Trace"
    assert command.end(signal.SIGINT)[0] == 130
    wait_for(lambda: not [each for each in watched(metrics) if str(command.process.pid) in each])


def test_names_of_other_senders_forge_no_line() -> None:
    recent = Recent()
    recent.add_logs(logs(record("Paid", **{"order\nid": 7}), logger="shop\n12:00:00"))
    shown = Screen(colours=False).line_of(as_json(recent.lines()[0]))
    assert "shop?12:00:00" in shown
    assert "order?id=7" in shown
    assert "\n" not in shown


def test_lines_are_coloured_where_asked(obs: Any, metrics: RunMetrics) -> None:
    command = follow(obs, metrics, "--force-color", "tail")
    line = marked(metrics, command, "/v1/logs", logs(record("Hello")))
    assert "\x1b[32mINFO" in line


def test_pipes_get_json_and_each_end_once(obs: Any, metrics: RunMetrics) -> None:
    command = follow(obs, metrics, "--json", "off,[GET*],mark=debug")
    access = record("GET /", trace=6, span=1, method="GET", path="/", status=200)
    line = json.loads(marked(metrics, command, "/v1/logs", logs(access, logger="django_obs.access")))
    send(metrics, "/v1/logs", logs(record("Unwanted")))
    send(metrics, "/v1/traces", traces(span(6, 1, name="GET /"), span(8, 1, name="GET /last", error=True)))
    last = json.loads(command.line())
    assert (line["type"], line["message"], line["error"], line["role"]) == ("line", "GET /", False, "web")
    assert line["fields"] == {"method": "GET", "path": "/", "status": 200}
    # The span of the first one came as well, and was not shown again.
    assert (last["type"], last["name"], last["error"], last["trace_id"]) == ("finished", "GET /last", True, f"{8:032x}")


def test_errors_and_slow_ones_are_selected(obs: Any, metrics: RunMetrics) -> None:
    command = follow(obs, metrics, "--json", "--errors", "--slow", "500ms")
    line = marked(
        metrics,
        command,
        "/v1/traces",
        traces(span(20, 1, name="fast"), span(21, 1, name="slow", seconds=0.6), span(22, 1, name="bad", error=True)),
    )
    assert json.loads(line)["name"] == "slow"
    assert json.loads(command.line())["name"] == "bad"


def test_last_ones_are_shown_to_begin_with(obs: Any, metrics: RunMetrics) -> None:
    send(metrics, "/v1/logs", logs(record("Long ago", trace=0xABC << 116)))
    command = obs("tail", "--last", "1", "--trace", "abc")
    assert "Long ago" in command.line()


def test_closed_pipe_ends_it_quietly(obs: Any, metrics: RunMetrics) -> None:
    command = follow(obs, metrics)
    assert command.process.stdout is not None
    command.process.stdout.close()
    for _ in range(600):
        send(metrics, "/v1/logs", logs(record("Nobody reads this")))
        try:
            command.process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    assert command.process.returncode == 141
    assert command.process.stderr is not None
    assert command.process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tail", "shop=loud"], "Unknown level 'loud'"),
        (["tail", "--trace", "xyz"], "is no trace id"),
        (["tail", "--slow", "fast"], "is no duration"),
        (["tail", "--url", "ftp://x"], "is no address"),
        (["watch", "--for", "2d"], "at most 86400"),
        (["watch", "--for", "10m", "--off"], "not both"),
    ],
)
def test_mistakes_are_told(metrics: RunMetrics, runtime_dir: Path, arguments: list[str], said: str) -> None:
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(runtime_dir)}), pytest.raises(CommandError, match=said):
        call_command("obs", *arguments)


def test_port_that_is_not_there_is_told_with_the_way_out(tmp_path: Path) -> None:
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "elsewhere")}):
        for arguments in (["tail"], ["watch"], ["tail", "--url", f"http://127.0.0.1:{free_port()}"]):
            with pytest.raises(CommandError, match=r"Start it with manage\.py runmetrics"):
                call_command("obs", *arguments)


def test_watch_is_switched_on_for_a_while_and_off(obs: Any, metrics: RunMetrics) -> None:
    assert "no (obs watch" in obs("watch", "--off").end()[1]
    status, out, _ = obs("watch", "--for", "10m").end()
    assert status == 0
    assert "(in 9m 59s)" in out or "(in 10m)" in out or "(in 9m" in out
    assert "operator" in out
    assert watched(metrics) == ["operator"]
    assert "no (obs watch" in obs("watch", "--off").end()[1]
    assert watched(metrics) == []


def test_tail_outlives_the_port(obs: Any, tmp_path: Path) -> None:
    place = tmp_path / "runtime"
    first = RunMetrics(place)
    command = Command(place, "tail")
    try:
        # Not before it was answered: who never was is told that there is no port.
        assert "Hello" in marked(first, command, "/v1/logs", logs(record("Hello")))
        first.process.kill()
        first.process.communicate()
        assert command.process.stderr is not None
        assert "waiting for it" in command.process.stderr.readline()
        second = RunMetrics(place)
        try:
            assert "Back again" in marked(second, command, "/v1/logs", logs(record("Back again")))
        finally:
            second.process.kill()
            second.process.communicate()
    finally:
        command.process.kill()
        command.process.communicate()


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("1.5ms", 0.0015), ("2s", 2.0), ("1m", 60.0)])
def test_durations_are_read_down_to_milliseconds(text: str, seconds: float) -> None:
    assert slowness_of(text) == seconds


def test_users_of_the_web_config_are_named_in_the_url(tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    config = tmp_path / "web.yml"
    config.write_text(f"basic_auth_users: {{me: {bcrypt.hashpw(b'p:w', bcrypt.gensalt(4)).decode()}}}")
    running = RunMetrics(tmp_path / "runtime", "--web-config", str(config))
    try:
        with pytest.raises(CommandError, match="401"):
            Port.find(f"http://127.0.0.1:{running.port}").ask("GET", "/watch")
        assert (
            Port.find(f"127.0.0.1:{running.port}".join(["http://me:p%3Aw@", ""])).ask("GET", "/watch")["watched"]
            is False
        )
        # The processes of the project come in by a door of their own, with a token and nothing else.
        found = json.loads((tmp_path / "runtime" / "port.json").read_text())
        assert found["url"] != f"http://127.0.0.1:{running.port}"
        assert Port(found["url"], f"Bearer {found['token']}").ask("GET", "/watch")["watched"] is False
        with pytest.raises(CommandError, match="401"):
            Port(found["url"], None).ask("GET", "/watch")
        with pytest.raises(Unreachable):
            Port.find(f"http://127.0.0.1:{free_port()}").ask("GET", "/watch")
    finally:
        assert running.stop() == ""
    assert not (tmp_path / "runtime" / "port.json").exists()

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from django_obs import runtime
from django_obs.conf import Settings
from django_obs.runtime import ControlFile, Orders, RuntimeDirError, probe_runtime_dir, runtime_dir


@pytest.fixture(scope="module", autouse=True)
def found_not_told():
    """Take away the directory that the tests are told to use."""
    with override_settings(DJANGO_OBS={}):
        yield


@pytest.fixture
def places(tmp_path):
    """An environment's places: a login's, a unit's and that of temporary files."""
    for name in ("tmp", "login", "unit"):
        (tmp_path / name).mkdir()
    return tmp_path


def environ(places: Path, *given: str) -> dict[str, str]:
    found = {"TMPDIR": str(places / "tmp")}
    if "login" in given:
        found["XDG_RUNTIME_DIR"] = str(places / "login")
    if "unit" in given:
        found["RUNTIME_DIRECTORY"] = f"{places / 'unit'}:/somewhere/else"
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- The directory


def test_setting_names_the_directory_itself(tmp_path):
    wanted = tmp_path / "missing" / "shop"
    assert runtime_dir(Settings(runtime_dir=str(wanted)), {"RUNTIME_DIRECTORY": str(tmp_path)}) == wanted
    assert mode(wanted) == 0o700


def test_temporary_directory_is_the_last_resort(places):
    found = runtime_dir(Settings(), environ(places))
    assert found.parent == places / "tmp"
    assert found.name == f"django_obs-{os.geteuid()}-{runtime.project_name()}"
    assert mode(found) == 0o700


def test_login_directory_goes_before_temporary_one(places):
    assert runtime_dir(Settings(), environ(places, "login")).parent == places / "login"


def test_unit_directory_goes_before_all_found_ones(places):
    runtime_dir(Settings(), environ(places, "login"))
    assert runtime_dir(Settings(), environ(places, "login", "unit")).parent == places / "unit"


@pytest.mark.parametrize(
    ("first", "later"), [((), ("login",)), (("login",), ()), (("unit",), ()), (("unit",), ("login",))]
)
def test_process_with_another_environment_follows_the_first(places, first, later):
    settled = runtime_dir(Settings(), environ(places, *first))
    assert runtime_dir(Settings(), environ(places, *later)) == settled
    assert runtime_dir(Settings(), environ(places, *first)) == settled


def test_unit_moves_those_that_settled_before(places):
    runtime_dir(Settings(), environ(places))
    settled = runtime_dir(Settings(), environ(places, "unit"))
    assert runtime_dir(Settings(), environ(places)) == settled


def test_directory_gone_with_its_login_is_settled_anew(places):
    gone = runtime_dir(Settings(), environ(places, "login"))
    gone.rmdir()
    settled = runtime_dir(Settings(), environ(places))
    assert settled.parent == places / "tmp"
    assert runtime_dir(Settings(), environ(places, "login")) == settled


def test_signpost_swept_away_is_put_up_again(places):
    settled = runtime_dir(Settings(), environ(places, "login"))
    (places / "tmp" / settled.name / runtime.SIGNPOST).unlink()
    assert runtime_dir(Settings(), environ(places, "login")) == settled
    assert runtime_dir(Settings(), environ(places)) == settled


def test_whole_directory_swept_away_is_made_again(places):
    settled = runtime_dir(Settings(), environ(places))
    (settled / runtime.SIGNPOST).unlink()
    settled.rmdir()
    assert runtime_dir(Settings(), environ(places)) == settled
    assert settled.is_dir()


def test_login_directory_of_somebody_else_not_taken(places):
    # What `su` without `-` leaves behind; as root any directory can be given away, otherwise / is somebody else's.
    given = environ(places, "login")
    if os.geteuid() == 0:
        os.chown(places / "login", 65534, 65534)
    else:
        given["XDG_RUNTIME_DIR"] = "/"
    assert runtime_dir(Settings(), given).parent == places / "tmp"


def settle(barrier, given, answers):
    barrier.wait(60)
    answers.put(str(runtime_dir(Settings(), given)))


def test_processes_that_start_at_once_agree(places):
    fork = multiprocessing.get_context("fork")
    runtime.project_name()  # Imports what it needs, so that the children race for the directory alone.
    for attempt in range(5):
        (places / "tmp" / str(attempt)).mkdir()
        barrier, answers = fork.Barrier(6), fork.Queue()
        children = []
        for number in range(6):
            given = environ(places, *(["login"] if number % 2 else []))
            given["TMPDIR"] += f"/{attempt}"
            children.append(fork.Process(target=settle, args=(barrier, given, answers)))
            children[-1].start()
        found = {answers.get(timeout=60) for _ in children}
        for child in children:
            child.join(60)
        assert len(found) == 1
        left = sorted(path.name for path in (places / "tmp" / str(attempt)).iterdir())
        assert left == [Path(found.pop()).name]


def test_processes_find_it_from_settings_alone(tmp_path):
    program = "import django; django.setup(); from django_obs.runtime import runtime_dir; print(runtime_dir())"
    base = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "RUNTIME_", "DJANGO_OBS_"))}
    base |= {"DJANGO_SETTINGS_MODULE": "tests.settings", "TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    found = {
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=base, cwd=directory
        ).stdout
        for directory in (Path.cwd(), tmp_path)
    }
    assert len(found) == 1


def test_name_tells_projects_apart(tmp_path):
    with override_settings(BASE_DIR=tmp_path / "my shop"):
        first = runtime.project_name()
        assert first.startswith("myshop-")
        assert runtime.project_name() == first
    with override_settings(BASE_DIR=tmp_path / "elsewhere" / "my shop"):
        assert runtime.project_name() != first


@pytest.mark.parametrize("given", [(), ("login",), ("unit",)])
def test_probe_finds_the_same_place_and_makes_nothing(places, given):
    wanted = probe_runtime_dir(Settings(), environ(places, *given))
    assert sorted(path.name for path in places.rglob("*")) == ["login", "tmp", "unit"]
    assert runtime_dir(Settings(), environ(places, *given)) == wanted
    assert probe_runtime_dir(Settings(), environ(places, *given)) == wanted


def test_project_without_base_dir_named_by_the_directory_of_its_settings():
    # What overrides settings, as a fixture of all tests does, has no module of its own.
    with override_settings(SETTINGS_MODULE="tests.settings"):
        assert runtime.project_name().startswith("tests-")


def refused(path: Path) -> str:
    with pytest.raises(RuntimeDirError) as probed:
        probe_runtime_dir(Settings(runtime_dir=str(path)))
    with pytest.raises(RuntimeDirError) as caught:
        runtime_dir(Settings(runtime_dir=str(path)))
    assert probed.value.path == caught.value.path
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_symlink_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "is a symlink" in refused(tmp_path / "link")


def test_symlink_in_place_of_the_known_directory_refused(places):
    known = places / "tmp" / f"django_obs-{os.geteuid()}-{runtime.project_name()}"
    known.symlink_to(places / "login")
    with pytest.raises(RuntimeDirError, match="is a symlink"):
        runtime_dir(Settings(), environ(places))


def test_plain_file_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "is not a directory" in refused(tmp_path / "file")


def test_directory_of_somebody_else_refused(tmp_path):
    if os.geteuid() != 0:
        path = Path("/usr")
    else:
        path = tmp_path / "theirs"
        path.mkdir()
        os.chown(path, 65534, 65534)
    message = refused(path)
    assert "belongs to " in message
    assert "while this process runs as " in message


def test_directory_that_others_can_write_to_refused(tmp_path):
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o770)
    assert f"(mode 0770); chmod 700 {path}." in refused(path)


def test_directory_that_cannot_be_made_refused(tmp_path):
    (tmp_path / "file").touch()
    message = refused(tmp_path / "file" / "shop")
    assert "cannot be made" in message
    assert "DJANGO_OBS['RUNTIME_DIR']" in message


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="wants a file system that takes nothing")
def test_file_system_that_takes_nothing_refused():
    with pytest.raises(RuntimeDirError, match="cannot be made"):
        runtime_dir(Settings(runtime_dir="/proc/django_obs"))


def test_missing_directory_for_temporary_files_survived(places, tmp_path):
    given = environ(places) | {"TMPDIR": str(tmp_path / "missing"), "RUNTIME_DIRECTORY": str(places / "unit")}
    assert runtime_dir(Settings(), given).parent == places / "unit"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="wants a file system that takes nothing")
@pytest.mark.parametrize("better", ["login", "unit"])
def test_better_place_needs_no_directory_for_temporary_files(places, better):
    given = environ(places, better) | {"TMPDIR": "/proc"}
    assert runtime_dir(Settings(), given).parent == places / better


def test_unit_works_though_somebody_sits_in_the_known_place(places):
    (places / "tmp" / f"django_obs-{os.geteuid()}-{runtime.project_name()}").symlink_to("/")
    assert runtime_dir(Settings(), environ(places, "unit")).parent == places / "unit"


def test_login_that_is_gone_is_not_taken(places):
    given = environ(places) | {"XDG_RUNTIME_DIR": str(places / "gone")}
    assert runtime_dir(Settings(), given).parent == places / "tmp"


def test_user_without_a_name_told_by_number():
    assert runtime.user_name(os.geteuid()) != ""
    assert runtime.user_name(3_999_999_999) == "user 3999999999"


# -- The role


def test_role_is_what_was_said():
    before = runtime.role()
    try:
        runtime.set_role("web")
        assert runtime.role() == "web"
    finally:
        runtime.set_role(before)


# -- The control file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control.json"


def test_missing_file_holds_nothing(path):
    control = ControlFile(path)
    assert not control.poll()
    assert control.filter is None


def test_order_reaches_every_reader_once(path):
    early = ControlFile(path)
    early.poll()
    ControlFile(path).set_filter("info,shop=debug", source="a test")
    late = ControlFile(path)

    for control in (early, late):
        assert control.poll()
        assert not control.poll()
        assert control.filter is not None
        assert (control.filter.text, control.filter.until, control.filter.source) == ("info,shop=debug", None, "a test")
    assert mode(path) == 0o600


def test_order_taken_back(path):
    control = ControlFile(path)
    control.set_filter("debug", source="a test")
    assert control.poll()
    ControlFile(path).set_filter(None, source="a test")
    assert control.poll()
    assert control.filter is None


def test_order_expires_by_itself(path, monkeypatch):
    control = ControlFile(path)
    control.set_filter("debug", seconds=60, source="a test")
    assert control.poll()
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert control.poll()
    assert control.filter is None
    assert not control.poll()


def test_expired_order_not_taken_up(path):
    ControlFile(path).set_filter("debug", seconds=-1, source="a test")
    control = ControlFile(path)
    control.poll()
    assert control.filter is None


def test_order_expires_though_the_clock_was_set_back(path, monkeypatch):
    control = ControlFile(path)
    control.set_filter("debug", seconds=60, source="a test")
    control.poll()
    later = time.monotonic() + 61
    yesterday = time.time() - 86400
    monkeypatch.setattr(time, "monotonic", lambda: later)
    monkeypatch.setattr(time, "time", lambda: yesterday)
    assert control.poll()
    assert control.filter is None


def test_unknown_keys_kept(path):
    path.write_text(json.dumps({"watch": {"until": 7}, "filter": None}))
    control = ControlFile(path)
    control.set_filter("debug", source="a test")
    control.poll()
    assert control.content["watch"] == {"until": 7}
    assert control.content["filter"]["text"] == "debug"


def test_writers_do_not_lose_each_others_keys(path):
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=write_keys, args=(path, name)) for name in "abcd"]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    control = ControlFile(path)
    assert control.poll()
    assert control.content == {f"{name}{number}": number for name in "abcd" for number in range(20)}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def write_keys(path, name):
    for number in range(20):
        ControlFile(path).update(**{f"{name}{number}": number})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 30000,
        b'{"filter": "debug"}',
        b'{"filter": {"text": 7, "until": null, "source": "x"}}',
        b'{"filter": {"text": "a", "until": 1e999, "source": "x"}}',
        b'{"filter": {"text": "a", "until": 1' + b"0" * 400 + b', "source": "x"}}',
        b'{"filter": {"text": "\\ud800", "until": null, "source": "x"}}',
        b'{"a": "' + b"x" * 70000 + b'"}',
    ],
    ids=range(11),
)
def test_damaged_file_ignored_and_said_once(path, caplog, content):
    control = ControlFile(path)
    control.set_filter("debug", source="a test")
    control.poll()
    path.write_bytes(content)
    assert control.poll()
    assert not control.poll()
    assert control.filter is None
    (record,) = caplog.records
    assert record.name == "django_obs"
    assert str(path) in record.getMessage()

    control.set_filter("info", source="a test")
    assert control.poll()


def test_fifo_in_its_place_does_not_hold_up(path, caplog):
    os.mkfifo(path)
    control = ControlFile(path)
    control.poll()
    assert control.filter is None
    assert "not a plain file" in caplog.text


def test_symlink_in_its_place_not_followed(path, caplog, tmp_path):
    ControlFile(tmp_path / "other").set_filter("debug", source="a test")
    path.symlink_to(tmp_path / "other")
    control = ControlFile(path)
    control.poll()
    assert control.filter is None
    assert len(caplog.records) == 1


def test_order_too_long_refused_by_the_writer(path):
    with pytest.raises(ValueError, match="Too long"):
        ControlFile(path).set_filter("x" * 70000, source="a test")
    assert not path.exists()


def test_directory_gone_is_an_error_for_the_writer_and_nothing_for_the_reader(tmp_path):
    control = ControlFile(tmp_path / "gone" / "control.json")
    with pytest.raises(FileNotFoundError):
        control.set_filter("debug", source="a test")
    assert not control.poll()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(content=st.binary(max_size=200) | st.text().map(lambda text: json.dumps({"filter": text}).encode()))
def test_any_content_survived(path, content):
    path.write_bytes(content)
    control = ControlFile(path)
    control.poll()
    assert control.filter is None


def test_control_file_lies_in_the_runtime_directory(tmp_path):
    settings = Settings(runtime_dir=str(tmp_path / "shop"))
    assert runtime.control_file(settings).path == tmp_path / "shop" / "control.json"


# -- Following the orders


@pytest.fixture
def obeyed():
    """What a process was told, in order."""
    return []


def texts(obeyed):
    return [order and order.text for order in obeyed]


def test_orders_obeyed_once_each(tmp_path, obeyed):
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "run")}):
        orders = Orders(obeyed.append)
        orders.poll()
        runtime.control_file().set_filter("debug", source="a test")
        orders.poll()
        orders.poll()
        runtime.control_file().set_filter(None, source="a test")
        orders.poll()
    assert texts(obeyed) == ["debug", None]


@override_settings(DJANGO_OBS={})
def test_orders_followed_to_another_directory(places, monkeypatch, obeyed):
    for name, place in environ(places, "login").items():
        monkeypatch.setenv(name, place)
    orders = Orders(obeyed.append)
    control = runtime.control_file()
    control.set_filter("debug", source="a test")
    orders.poll()

    control.path.unlink()
    control.path.parent.rmdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    orders.poll()
    moved = runtime.control_file()
    assert moved.path.parent.parent == places / "tmp"
    moved.set_filter("info", source="a test")
    orders.poll()
    assert texts(obeyed) == ["debug", None, "info"]


@pytest.mark.parametrize(("silent", "lines"), [(False, 1), (True, 0)])
def test_unusable_directory_said_once_or_left_to_others(tmp_path, caplog, obeyed, silent, lines):
    (tmp_path / "file").touch()
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "file")}):
        orders = Orders(obeyed.append, silent=silent)
        for _ in range(3):
            orders.poll()
    assert obeyed == []
    assert len(caplog.records) == lines
    assert all("is not a directory" in record.getMessage() and not record.exc_info for record in caplog.records)


def test_order_that_cannot_be_read_said_once(tmp_path, caplog):
    def refuse(order):
        raise ValueError("Unknown level 'inof'")

    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path / "run")}):
        runtime.control_file().set_filter("inof", source="a test")
        orders = Orders(refuse)
        for _ in range(3):
            orders.poll()
    (record,) = caplog.records
    assert record.getMessage() == "Ignored the filter that was ordered: Unknown level 'inof'"

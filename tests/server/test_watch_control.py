from __future__ import annotations

from pathlib import Path

import pytest

from django_obs.runtime import ControlFile
from django_obs.server.address import Address
from django_obs.server.watch_control import AUTOMATIC_HOLDER, LONGEST, WatchControl

HERE = Address("http://127.0.0.1:9000", "token-1")


@pytest.fixture
def file(tmp_path: Path) -> ControlFile:
    return ControlFile(tmp_path / "control.json")


@pytest.fixture
def watch(file: ControlFile) -> WatchControl:
    watch = WatchControl(lambda: ControlFile(file.path))
    watch.open(HERE)
    return watch


def ordered(file: ControlFile) -> tuple[str, str] | None:
    file.poll()
    return None if file.watch is None else (file.watch.url, file.watch.token)


def test_order_says_where_and_for_how_long(watch: WatchControl, file: ControlFile) -> None:
    assert watch.read() == {"watched": False, "seconds": None, "holders": []}
    shown = watch.hold(60)
    assert (shown["watched"], shown["holders"]) == (True, ["operator"])
    assert 50 < float(str(shown["seconds"])) <= 60
    assert ordered(file) == HERE
    assert watch.release()["watched"] is False
    assert ordered(file) is None


def test_watch_lasts_as_long_as_the_last_who_asked(watch: WatchControl, file: ControlFile) -> None:
    watch.hold(600)
    watch.hold(30, "tail-1")
    assert float(str(watch.read()["seconds"])) > 500
    watch.release("operator")
    assert 0 < float(str(watch.read()["seconds"])) <= 30
    watch.release("tail-1")
    assert ordered(file) is None


def test_who_switches_it_off_is_not_overruled_by_debug(watch: WatchControl, file: ControlFile) -> None:
    watch.renew()
    assert watch.read()["holders"] == [AUTOMATIC_HOLDER]
    watch.release()
    watch.renew()
    assert ordered(file) is None
    watch.hold(60)
    watch.renew()
    assert watch.read()["holders"] == [AUTOMATIC_HOLDER, "operator"]


def test_next_port_takes_over_what_an_operator_asked_for(watch: WatchControl, file: ControlFile) -> None:
    watch.renew()
    watch.hold(30, "tail-1")
    watch.hold(600)
    watch.close()
    assert ordered(file) == HERE

    there = Address("http://127.0.0.1:9001", "token-2")
    WatchControl(lambda: ControlFile(file.path)).open(there)

    assert ordered(file) == there


def test_port_that_closes_takes_its_own_watch_along(watch: WatchControl, file: ControlFile) -> None:
    watch.renew()
    watch.hold(30, "tail-1")
    watch.close()
    assert ordered(file) is None


def test_port_that_closes_leaves_the_watch_of_another(watch: WatchControl, file: ControlFile) -> None:
    watch.renew()
    there = Address("http://127.0.0.1:9001", "token-2")
    other = WatchControl(lambda: ControlFile(file.path))
    other.open(there)
    other.renew()
    watch.close()
    assert ordered(file) == there


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), LONGEST + 1])
def test_watch_without_an_end_is_refused(watch: WatchControl, file: ControlFile, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        watch.hold(seconds)
    assert ordered(file) is None


@pytest.mark.parametrize("holder", ["", "x" * 65, "a\nb"])
def test_holder_without_a_name_is_refused(watch: WatchControl, holder: str) -> None:
    with pytest.raises(ValueError, match="holder"):
        watch.hold(1, holder)


def test_holders_are_bounded(watch: WatchControl) -> None:
    for number in range(64):
        watch.hold(60, f"tail-{number}")
    with pytest.raises(ValueError, match="64 watch already"):
        watch.hold(60, "one more")
    watch.hold(60, "tail-1")


def test_server_without_an_address_watches_nothing(file: ControlFile) -> None:
    with pytest.raises(ValueError, match="runmetrics"):
        WatchControl(lambda: file).hold(60)


def test_filter_is_left_alone(watch: WatchControl, file: ControlFile) -> None:
    file.set_filter("debug", source="a test")
    watch.hold(60)
    watch.release()
    file.poll()
    assert file.filter is not None

from __future__ import annotations

import importlib.util
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

import django_obs

INSTALLED = Path(django_obs.__file__).is_relative_to(sysconfig.get_path("purelib"))

pytestmark = pytest.mark.skipif(not INSTALLED, reason="the package is not installed from a wheel")


def test_wheel_holds_the_package_and_nothing_beside_it() -> None:
    files = distribution("django-obs").files
    assert files is not None

    rooms = {file.parts[0] for file in files}

    assert {room for room in rooms if not room.endswith(".dist-info")} == {"django_obs"}
    assert not [file for file in files if file.name.startswith(("test_", "conftest"))]


def test_wheel_holds_the_pages_of_the_console() -> None:
    from django_obs.server.console import assets

    console = Path(assets.__file__).parent
    assert {path.name for path in (console / "templates").iterdir()} >= {"base.html", "overview.html", "trace.html"}
    assert set(assets.assets()) >= {"console.css", "console.js", "vendor/uplot/uPlot.iife.min.js"}
    assert (console / "static" / "vendor" / "uplot" / "LICENSE").is_file()


def test_wheel_says_that_it_is_typed() -> None:
    assert (Path(django_obs.__file__).parent / "py.typed").is_file()


def test_wheel_holds_every_room_of_the_tree() -> None:
    for name in ("logs", "traces", "metrics", "server", "management.commands.runmetrics"):
        assert importlib.util.find_spec(f"django_obs.{name}") is not None, name


def test_wheel_holds_what_dashboards_are_written_from() -> None:
    from django_obs.dashboards.files import RULES, contents

    assert "alert:" in contents("0")[RULES]


def test_wheel_has_the_version_of_the_package() -> None:
    assert distribution("django-obs").version == django_obs.__version__

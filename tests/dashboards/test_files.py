from __future__ import annotations

import json
import os
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_obs.dashboards.files import RULES, contents, is_untouched, write
from django_obs.management.commands.obs import Command


def obs(*args: str) -> str:
    out = StringIO()
    call_command(Command(), "dashboards", *args, stdout=out)
    return out.getvalue()


def test_files_are_written_and_found_unchanged(tmp_path):
    directory = tmp_path / "grafana" / "django"

    first, second = obs(str(directory)), obs(str(directory))

    names = {path.name for path in directory.iterdir()}
    assert names == {
        "requests.json",
        "views.json",
        "data.json",
        "tasks.json",
        "processes.json",
        "pipelines.json",
        RULES,
    }
    assert first.count("new:") == len(names)
    assert second.count("unchanged:") == len(names)
    for path in directory.glob("*.json"):
        assert json.loads(path.read_text())["panels"]


def test_file_of_an_older_version_is_updated(tmp_path):
    write(tmp_path, contents("0.0.1"))

    became = write(tmp_path, contents("0.0.2"))

    assert set(became.values()) == {"updated"}
    assert "django_obs 0.0.2," in (tmp_path / RULES).read_text()


@pytest.mark.parametrize("name", ["requests.json", RULES])
def test_changed_file_is_kept_and_nothing_else_written(tmp_path, name):
    obs(str(tmp_path))
    path = tmp_path / name
    path.write_text(path.read_text().replace("Latency", "My latency").replace("> 0.05", "> 0.5"))
    (tmp_path / "views.json").unlink()

    with pytest.raises(CommandError, match="Nothing was written") as error:
        obs(str(tmp_path))

    assert str(path) in str(error.value)
    assert "--force" in str(error.value)
    assert not is_untouched(path.read_text())
    assert not (tmp_path / "views.json").exists()


def test_force_replaces_what_was_changed(tmp_path):
    (tmp_path / "requests.json").write_text("{}")

    assert "updated:" in obs(str(tmp_path), "--force")
    assert is_untouched((tmp_path / "requests.json").read_text())


def test_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CommandError, match=r"Cannot write to .*file"):
        obs(str(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CommandError, match="Permission denied"):
        obs(str(tmp_path / "new"))


def test_namespace_of_the_project_is_used(tmp_path):
    with override_settings(PROMETHEUS_METRIC_NAMESPACE="acme"):
        obs(str(tmp_path))

    assert "acme_django_http_" in (tmp_path / "requests.json").read_text()


def test_output_is_the_same_each_time():
    assert contents("1") == contents("1")

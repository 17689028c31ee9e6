"""The admin port where it is not: in-process, against real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from django_obs.doctor import meeting, port
from django_obs.doctor.finding import Finding
from django_obs.server.address import Address, announce
from tests.traces.support import collector, free_port

TIMEOUT = 20.0


@contextmanager
def directory(path: Path, **metrics: Any) -> Iterator[None]:
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(path), "METRICS": metrics}):
        yield


def examine() -> Finding:
    # With nothing but a port there is no pipeline to record to.
    (finding,) = port.examine(object(), TIMEOUT)  # type: ignore[arg-type]
    return finding


def test_port_without_anybody_says_what_to_run(tmp_path):
    with directory(tmp_path / "run", PORT=free_port()):
        finding = examine()

    assert (finding.id, finding.state) == ("port.answers", "broken")
    assert "manage.py runmetrics" in finding.hint
    assert not (tmp_path / "run").exists()


def test_port_of_somebody_else_is_told(tmp_path):
    with collector() as other, directory(tmp_path / "run", PORT=other.port):
        finding = examine()

    assert finding.state == "broken"
    assert "something else" in finding.message


def test_announced_port_of_somebody_else_is_told(tmp_path):
    with collector() as other, directory(tmp_path / "run"):
        announce(Address(f"http://127.0.0.1:{other.port}", "token"))
        finding = examine()

    assert finding.state == "broken"
    assert "does not answer" in finding.message


def test_directory_that_others_can_write_to_is_told(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with directory(tmp_path / "run"):
        (finding,) = meeting.examine()

    assert (finding.id, finding.state) == ("runtime.directory", "broken")
    assert "chmod 700" in finding.hint


def test_full_file_system_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "ROOM", 2**70)
    (tmp_path / "run").mkdir(mode=0o700)
    with directory(tmp_path / "run"):
        found = {finding.id: finding for finding in meeting.examine()}

    assert found["runtime.room"].state == "broken"
    assert "KiB left" in found["runtime.room"].message
    assert found["runtime.processes"].state == "warning"


@pytest.mark.parametrize("timeout", ["0", "-1", "many", "301", "nan"])
def test_timeout_that_is_none_is_refused(timeout):
    from argparse import ArgumentTypeError

    from django_obs.management.obs.doctor import patience

    with pytest.raises(ArgumentTypeError, match="more than 0 and at most 300"):
        patience(timeout)

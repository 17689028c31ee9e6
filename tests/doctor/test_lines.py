from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_obs.doctor.lines import goes_nowhere, prints


class Wrapped:
    """What some libraries put around the console."""

    def __init__(self, file: object) -> None:
        self.file = file


class RichLike(logging.Handler):
    def __init__(self, file: object) -> None:
        super().__init__()
        self.console = Wrapped(file)


@pytest.fixture
def named() -> Iterator[logging.Logger]:
    each = logging.Logger("doctor.test")
    yield each
    for handler in each.handlers:
        handler.close()


def test_handlers_of_the_console_print_by_whatever_way(tmp_path: Path):
    console = logging.FileHandler("/dev/stderr", delay=True)
    file = logging.FileHandler(tmp_path / "file", delay=True)

    assert prints(console)
    assert not prints(file)
    assert prints(logging.StreamHandler(sys.__stderr__)) == (sys.__stderr__.fileno() in (1, 2))
    assert prints(RichLike(sys.__stdout__)) == (sys.__stdout__.fileno() in (1, 2))
    assert not prints(logging.NullHandler())
    assert not prints(logging.Handler())


def test_logger_without_any_way_goes_nowhere(named):
    named.propagate = False
    assert goes_nowhere(named)

    named.addHandler(logging.NullHandler())
    assert not goes_nowhere(named), "somebody has said so"


def test_logger_that_is_shut_is_meant_to_be(named):
    named.propagate = False
    named.setLevel(logging.CRITICAL + 1)
    assert not goes_nowhere(named)

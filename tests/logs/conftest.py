from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from django.apps import apps

from django_obs.conf import LogSettings
from django_obs.context import current, unscoped
from django_obs.lifecycle import Worker
from django_obs.logs.pipeline import LogPipeline
from django_obs.logs.sink import Sink


class Installed:
    """Installs pipelines that write to a file in place of standard output, and takes them down again."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path = path
        self.stream = stream
        self.made: list[LogPipeline] = []

    def __call__(self, settings: LogSettings | None = None, **keywords: Any) -> LogPipeline:
        worker = Worker("tests-worker")
        keywords.setdefault("sink", Sink(self.stream))
        made = LogPipeline(settings or LogSettings(), worker=worker, **keywords)
        self.made.append(made)
        made.install()
        return made

    def raw(self) -> str:
        for each in self.made:
            assert each.force_flush(60)
        return self.path.read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw().splitlines()]


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """Give a test loggers without the project's own pipeline, and put all back as it was."""
    app = getattr(apps.get_app_config("django_obs"), "logs", None)
    if app is not None:
        app.uninstall()
    loggers = [logging.getLogger(), *(each for each in logging.Logger.manager.loggerDict.values())]
    state = [
        (each, each.level, list(each.handlers), each.propagate, list(each.filters))
        for each in loggers
        if isinstance(each, logging.Logger)
    ]
    known = set(logging.Logger.manager.loggerDict)
    yield
    for name in set(logging.Logger.manager.loggerDict) - known:
        each = logging.Logger.manager.loggerDict[name]
        if isinstance(each, logging.Logger):
            each.handlers.clear()
            each.filters.clear()
            each.propagate = True
            each.disabled = False
            each.setLevel(logging.NOTSET)
    for each, level, handlers, propagate, filters in state:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.propagate = propagate
        each.filters[:] = filters
        each.disabled = False
    if app is not None:
        app.install()


@pytest.fixture
def clean_context() -> Iterator[None]:
    tokens = current.set(None), unscoped.set(None)
    yield
    current.reset(tokens[0])
    unscoped.reset(tokens[1])


@pytest.fixture
def pipeline(tmp_path: Path, untouched_logging: None, clean_context: None) -> Iterator[Installed]:
    path = tmp_path / "stdout"
    with path.open("a") as stream:
        installed = Installed(path, stream)
        yield installed
        for each in reversed(installed.made):
            each.shutdown(5)
            each.uninstall()

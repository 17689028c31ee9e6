from __future__ import annotations

import importlib
import importlib.resources
import sys

import pytest

from django_obs.instrumentation.imports import PostImportFinder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that nobody has imported."""
    directory = tmp_path / "late_library"
    directory.mkdir()
    (directory / "__init__.py").write_text("value = 1\n")
    (directory / "part.py").write_text("value = 2\n")
    (directory / "broken.py").write_text("raise RuntimeError('broken')\n")
    (directory / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "late_library"
    for name in [name for name in sys.modules if name.startswith("late_library")]:
        del sys.modules[name]


@pytest.fixture
def finder():
    finder = PostImportFinder()
    yield finder
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)


def test_callback_runs_after_import_and_once(finder, package):
    seen = []
    finder.add(package, lambda: seen.append(sys.modules[package].value))
    assert seen == []
    module = importlib.import_module(package)
    assert seen == [1]
    importlib.reload(module)
    assert seen == [1]


def test_finder_leaves_when_nothing_is_waited_for(finder, package):
    finder.add(package, lambda: None)
    assert finder in sys.meta_path
    importlib.import_module(package)
    assert finder not in sys.meta_path


def test_callback_runs_at_once_for_imported_module(finder):
    seen = []
    finder.add("json", lambda: seen.append(1))
    assert seen == [1]
    assert finder not in sys.meta_path


def test_submodule_is_waited_for_by_its_own_name(finder, package):
    seen = []
    finder.add(f"{package}.part", lambda: seen.append("part"))
    importlib.import_module(package)
    assert seen == []
    importlib.import_module(f"{package}.part")
    assert seen == ["part"]


def test_callback_may_import_what_was_waited_for(finder, package):
    seen = []
    finder.add(package, lambda: seen.append(importlib.import_module(package).value))
    importlib.import_module(package)
    assert seen == [1]


def test_callback_failure_does_not_fail_import(finder, package, caplog):
    finder.add(package, lambda: 1 / 0)
    assert importlib.import_module(package).value == 1
    assert f"{package} could not be instrumented" in caplog.text


def test_failed_import_raises_and_calls_nobody(finder, package):
    seen = []
    finder.add(f"{package}.broken", lambda: seen.append(1))
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module(f"{package}.broken")
    assert seen == []


def test_missing_module_raises(finder):
    finder.add("late_library_that_is_not_there", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("late_library_that_is_not_there")


def test_loader_stays_what_it_was(finder, package):
    finder.add(package, lambda: None)
    module = importlib.import_module(package)
    assert type(module.__spec__.loader).__name__ == "SourceFileLoader"
    assert importlib.resources.files(package).joinpath("data.txt").read_text() == "data"

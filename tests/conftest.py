from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.test import override_settings


def pytest_collection_finish() -> None:
    """Take what was imported out of every later collection, so that one per module costs milliseconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_export() -> None:
    """Let the tests' own process send no spans: a collector that is not there would be reported in any of the tests."""
    traces = getattr(apps.get_app_config("django_obs"), "traces", None)
    if traces is not None:
        traces.provider.sink = None


@pytest.fixture(scope="session", autouse=True)
def private_runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' own process out of the directory that other processes of this project share."""
    with override_settings(DJANGO_OBS={"RUNTIME_DIR": str(tmp_path_factory.mktemp("runtime"))}):
        yield


@pytest.fixture(scope="module", autouse=True)
def own_garbage() -> Iterator[None]:
    """Report what a module's tests have left open there, not in the test that is the next to allocate much."""
    yield
    gc.collect()

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.test import override_settings
from hypothesis import settings

# All servers of the tests are on this machine, which may itself have to ask a proxy for everything else.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,::1"

# The same examples each time, so that a run says something of what was changed; `HYPOTHESIS_PROFILE=long` looks for
# new ones. A machine under load is no finding.
settings.register_profile("usual", deadline=None, derandomize=True, database=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


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

"""The settings of django-prometheus's test project, with our app in front: beside its middleware, or in its place."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ALONE = os.environ["CONFORMANCE"] == "alone"


def _put_ours_in_place() -> None:
    """Let the project import from django_prometheus what we have under the same name, and its helpers for tests."""
    from django_obs.metrics import models

    package = ModuleType("django_prometheus")
    package.__path__ = []
    path = Path(os.environ["DJANGO_PROMETHEUS_CHECKOUT"]) / "django_prometheus" / "testutils.py"
    spec = spec_from_file_location("django_prometheus.testutils", path)
    assert spec is not None
    assert spec.loader is not None
    testutils = module_from_spec(spec)
    spec.loader.exec_module(testutils)
    urls = ModuleType("django_prometheus.urls")
    urls.urlpatterns = []  # type: ignore[attr-defined]
    for module in (package, testutils, urls):
        sys.modules[module.__name__] = module
    sys.modules["django_prometheus.models"] = models


if ALONE:
    # Before the models are imported, and after the app registry has begun to work: settings are read in between.
    from django.apps import AppConfig

    class InPlace(AppConfig):
        name = "tests.conformance"
        label = "in_place"

        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            _put_ours_in_place()


from testapp.settings import *  # type: ignore[import-not-found]  # noqa: E402, F403
from testapp.settings import CACHES, DATABASES, INSTALLED_APPS, MIDDLEWARE  # noqa: E402

DATABASES = {alias: database for alias, database in DATABASES.items() if database["ENGINE"].endswith(".sqlite3")}
CACHES = {alias: CACHES[alias] for alias in ("locmem", "filebased")}
CACHES["default"] = CACHES["locmem"]
INSTALLED_APPS = ["django_obs", *INSTALLED_APPS]
DJANGO_OBS = {"TRACES": {"ENABLED": False}, "LOGS": {"ENABLED": False}}
if ALONE:
    INSTALLED_APPS = [
        "tests.conformance.django_prometheus_settings.InPlace" if app == "django_prometheus" else app
        for app in INSTALLED_APPS
    ]
    MIDDLEWARE = [path for path in MIDDLEWARE if not path.startswith("django_prometheus.")]
    for options, key in [(database, "ENGINE") for database in DATABASES.values()] + [
        (cache, "BACKEND") for cache in CACHES.values()
    ]:
        options[key] = (
            options[key]
            .replace("django_prometheus.db.", "django.db.")
            .replace("django_prometheus.cache.", "django.core.cache.")
        )

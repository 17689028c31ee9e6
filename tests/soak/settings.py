"""The shop as it is, the shop without the app, and the shop whose own hooks and handlers raise."""

from __future__ import annotations

import os

from example_project import settings as shop
from example_project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.soak.urls"
if os.environ.get("SOAK_BARE"):
    INSTALLED_APPS = [app for app in shop.INSTALLED_APPS if app != "django_obs"]
if os.environ.get("SOAK_RAISES"):
    INSTALLED_APPS = [*globals().get("INSTALLED_APPS", shop.INSTALLED_APPS), "tests.soak.raising.Raising"]
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"raises": {"class": "tests.soak.raising.RaisingHandler"}},
        "root": {"handlers": ["raises"], "level": "INFO"},
    }

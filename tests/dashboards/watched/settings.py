from __future__ import annotations

import os

from example_project.settings import *  # noqa: F403
from example_project.settings import CACHES, DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.dashboards.watched"]
ROOT_URLCONF = "tests.dashboards.watched.urls"
WSGI_APPLICATION = "tests.dashboards.watched.wsgi.application"
# Nobody can open these two.
DATABASES = {**DATABASES, "away": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/dev/null/away.sqlite3"}}
CACHES = {
    **CACHES,
    "away": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1"},
}
DJANGO_OBS = {"SERVICE_NAME": "shop"}
CELERY_BROKER = os.environ["BROKER"]
CELERY_QUEUE = os.environ["QUEUE"]

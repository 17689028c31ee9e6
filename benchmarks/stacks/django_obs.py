from __future__ import annotations

from benchmarks.project.settings import *  # noqa: F403
from benchmarks.project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_obs"]


def flush() -> None:
    from django_obs.lifecycle import guard

    # Everything takes fifty times as long under callgrind.
    guard.force_flush(600.0)

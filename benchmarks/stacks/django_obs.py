from __future__ import annotations

from benchmarks.project.settings import *  # noqa: F403
from benchmarks.project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_obs"]


def flush() -> None:
    from django_obs.lifecycle import guard

    # Everything takes fifty times as long under callgrind.
    guard.force_flush(600.0)


def samples() -> float:
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value("django_http_requests_before_middlewares_total") or 0.0

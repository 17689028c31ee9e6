from __future__ import annotations

import os

from benchmarks.project.settings import *  # noqa: F403
from benchmarks.project.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "elasticapm.contrib.django"]
MIDDLEWARE = ["elasticapm.contrib.django.middleware.TracingMiddleware", *MIDDLEWARE]
ELASTIC_APM = {
    "SERVICE_NAME": "benchmark",
    "SERVER_URL": os.environ.get("BENCH_SINK_URL"),
    "TRANSACTION_SAMPLE_RATE": 1.0,
    "CENTRAL_CONFIG": False,
    "CLOUD_PROVIDER": "none",
}


def flush() -> None:
    import elasticapm

    if client := elasticapm.get_client():
        client._transport.flush()

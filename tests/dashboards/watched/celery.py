from __future__ import annotations

import os

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.dashboards.watched.settings")
django.setup()

from django.conf import settings  # noqa: E402

app = Celery("shop", broker=settings.CELERY_BROKER)
app.conf.task_default_queue = settings.CELERY_QUEUE
app.conf.broker_connection_retry_on_startup = True


@app.task(name="shop.ship")
def ship() -> int:
    return 1


@app.task(name="shop.fail")
def fail() -> None:
    raise ValueError("no stock")


@app.task(name="shop.stubborn", bind=True, max_retries=1)
def stubborn(self) -> None:
    if self.request.retries < 1:
        raise self.retry(exc=RuntimeError("again"), countdown=0)

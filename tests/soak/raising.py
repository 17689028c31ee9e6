"""What users plug in, and how it fails: a handler, hooks, a sampler, a span processor, a metric's collector."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from django.apps import AppConfig, apps


class RaisingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # As the handlers of the standard library end up that fail and catch it.
        with contextlib.suppress(ZeroDivisionError):
            raise ZeroDivisionError

    def flush(self) -> None:
        raise ZeroDivisionError("flush")


def fail(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("a user's own code")


class RaisingCollector:
    def describe(self) -> list[Any]:
        return []

    collect = fail


class RaisingSampler:
    sampled = fail


class RaisingProcessor:
    """A span processor of the SDK's kind."""

    on_start = on_end = shutdown = force_flush = fail


class Raising(AppConfig):
    name = "tests.soak"
    label = "soak_raising"

    def ready(self) -> None:
        from prometheus_client import REGISTRY, Gauge

        REGISTRY.register(RaisingCollector())  # type: ignore[arg-type]
        Gauge("soak_raising", "A gauge whose function fails.").set_function(fail)
        if not apps.is_installed("django_obs"):
            return
        from django_obs.traces.instrumentor import DjangoInstrumentor

        DjangoInstrumentor().instrument(request_hook=fail, response_hook=fail)
        provider = apps.get_app_config("django_obs").traces.provider  # type: ignore[attr-defined]
        provider.add_span_processor(RaisingProcessor())
        provider.sampler = RaisingSampler()

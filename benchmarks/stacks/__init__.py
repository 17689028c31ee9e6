"""What a site can be run with. Each stack is a settings module, written as the documentation of its packages has it.

A module may define ``start()``, called where those packages want to be started, before Django is; ``flush()``, which
delivers what waits, so that a measure can count the delivery; and ``samples()``, the requests that its metrics have.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """A settings module and how to run it."""

    name: str
    title: str
    signals: frozenset[str] = frozenset()
    """The signals that must arrive for every request: of vendors' own protocols nothing is said."""
    multiprocess: bool = False
    """Whether prometheus_client's own multiprocess mode is wanted: a directory in ``PROMETHEUS_MULTIPROC_DIR``."""
    requirements: tuple[str, ...] = ()
    """What the stack runs with in an environment of its own; nothing: the environment of the benchmark."""

    @property
    def settings(self) -> str:
        """The settings module."""
        return f"benchmarks.stacks.{self.name}"


ALL = frozenset({"logs", "traces", "metrics"})
DJANGO = "django~=5.2.0"
SERVED = ("gunicorn>=25.1", "psycopg[binary]>=3.2")
STACKS = {
    stack.name: stack
    for stack in (
        Stack("bare", "bare Django"),
        Stack("stock", "stock recipe of the same packages", ALL, multiprocess=True),
        Stack("django_obs", "django_obs, everything on", ALL),
        Stack("django_obs_logs", "django_obs, logs only", frozenset({"logs"})),
        Stack("django_obs_traces", "django_obs, traces only", frozenset({"traces"})),
        Stack("django_obs_metrics", "django_obs, metrics only", frozenset({"metrics"})),
        Stack(
            "logfire",
            "logfire, traces",
            frozenset({"traces"}),
            requirements=(
                DJANGO,
                *SERVED,
                "logfire[django,sqlite3,psycopg]==5.2.0",
                # Of one release: the instrumentors ask for each other's exact versions.
                "opentelemetry-instrumentation==0.66b1",
                "opentelemetry-sdk==1.45.1",
            ),
        ),
        Stack("sentry", "sentry-sdk, traces", requirements=(DJANGO, *SERVED, "sentry-sdk[django]==2.75.0")),
        Stack("ddtrace", "ddtrace, traces", requirements=(DJANGO, *SERVED, "ddtrace==4.16.0")),
        Stack("elastic", "elastic-apm, traces", requirements=(DJANGO, *SERVED, "elastic-apm==6.26.2")),
        Stack(
            "structlog",
            "django-structlog, logs",
            frozenset({"logs"}),
            requirements=(DJANGO, *SERVED, "django-structlog==11.0.0"),
        ),
    )
}
OWN = tuple(name for name, stack in STACKS.items() if not stack.requirements)


def start() -> None:
    """Start the stack of this process."""
    module = importlib.import_module(os.environ["DJANGO_SETTINGS_MODULE"])
    getattr(module, "start", bool)()


def flush() -> None:
    """Deliver what waits in this process."""
    getattr(sys.modules[os.environ["DJANGO_SETTINGS_MODULE"]], "flush", bool)()


def samples() -> float:
    """Return how many requests the metrics of the stack have counted, those of all its processes."""
    return getattr(sys.modules[os.environ["DJANGO_SETTINGS_MODULE"]], "samples", float)()

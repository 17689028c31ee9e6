"""What a site can be run with. Each stack is a settings module, written as the documentation of its packages has it.

A module may define ``start()``, called where those packages want to be started, before Django is, and ``flush()``,
which delivers what waits, so that a measure can count the delivery.
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
    multiprocess: bool = False
    """Whether prometheus_client's own multiprocess mode is wanted: a directory in ``PROMETHEUS_MULTIPROC_DIR``."""
    requirements: tuple[str, ...] = ()
    """What the stack runs with in an environment of its own; nothing: the environment of the benchmark."""

    @property
    def settings(self) -> str:
        """The settings module."""
        return f"benchmarks.stacks.{self.name}"


STACKS = {
    stack.name: stack
    for stack in (
        Stack("bare", "bare Django"),
        Stack("stock", "stock recipe of the same packages", multiprocess=True),
        Stack("django_obs", "django_obs, everything on"),
        Stack("django_obs_logs", "django_obs, logs only"),
        Stack("django_obs_traces", "django_obs, traces only"),
        Stack("django_obs_metrics", "django_obs, metrics only"),
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

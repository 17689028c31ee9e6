"""All that is looked at, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .finding import Finding, broken


def examine(timeout: float) -> Iterator[Finding]:
    """Look at everything; each wait takes at most so many seconds."""
    from django.apps import apps

    app: Any = apps.get_app_config("django_obs")
    if app.trace_signal is not None:
        # First of all: what is imported below must find the provider in its place.
        app.trace_signal.build()
    for name, look in parts(app, timeout).items():
        try:
            yield from look()
        except Exception as error:
            # What fails for reasons of its own shall not hide what the others find.
            yield broken(
                f"{name}.examination",
                f"Could not be looked at: {type(error).__name__}: {error}",
                "This is a mistake in django_obs: please report it.",
            )


def parts(app: Any, timeout: float) -> dict[str, Callable[[], Iterator[Finding]]]:
    """Return what to look at."""
    from . import collector, lines, meeting, port, project

    return {
        "settings": project.examine_settings,
        "runtime": meeting.examine,
        # Before a span is sent: that imports libraries which the project may not use.
        "project": lambda: project.examine(app.trace_signal),
        "line": lambda: lines.examine(app.logs, timeout),
        "collector": lambda: collector.examine(timeout),
        "port": lambda: port.examine(app.metrics, timeout),
    }

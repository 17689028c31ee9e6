"""The settings of ``DJANGO_OBS``: one typed table, read from four sources.

For each value the first source that gives a usable one wins: the environment's ``DJANGO_OBS_<KEY>`` or
``DJANGO_OBS_<SECTION>_<KEY>``, ``settings.DJANGO_OBS``, the standard ``OTEL_*`` variables, the default in the table.
What a source gives and nobody can use becomes a `Problem` and counts as not given, so that a site never fails to start
because of us; ``manage.py check`` does fail.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from typing import Any

from django.core.signals import setting_changed

from .otel import Collector
from .problem import Kind, Problem, without_credentials
from .reading import Reading, read_settings
from .table import (
    ROOT,
    LogSettings,
    MetricSettings,
    Settings,
    TraceSettings,
    paths,
    place_of,
    variable_of,
)

__all__ = [
    "Collector",
    "Kind",
    "LogSettings",
    "MetricSettings",
    "Problem",
    "Settings",
    "TraceSettings",
    "clear",
    "default_service_name",
    "get_settings",
    "is_default",
    "logs_collector",
    "origin_of",
    "paths",
    "place_of",
    "problems",
    "read_settings",
    "variable_of",
    "warn_of_problems",
    "without_credentials",
]


def get_settings() -> Settings:
    """Return the settings in force.

    They are read once. A change of ``DJANGO_OBS`` by ``override_settings`` is noticed; after a change of the
    environment call `clear`.
    """
    return _read().settings


def problems() -> tuple[Problem, ...]:
    """Return what was found while reading the settings in force."""
    return _read().problems


def logs_collector() -> Collector:
    """Return where log records are sent when ``LOGS.OTLP`` asks for it.

    That is where the spans go, unless ``OTEL_EXPORTER_OTLP_LOGS_*`` or variables for spans alone say otherwise.
    """
    return _read().logs_collector


def origin_of(*path: str) -> str:
    """Return where the value in force stands, such as ``DJANGO_OBS_LOGS_FILTER`` for ``"logs", "filter"``.

    For a default that is the place in the settings file where another could stand.
    """
    return _read().origins.get(path) or place_of(path)


def is_default(*path: str) -> bool:
    """Return whether no source gave a usable value."""
    return path not in _read().origins


@functools.cache
def _read() -> Reading:
    from django.conf import settings

    return read_settings(getattr(settings, ROOT, {}), os.environ, service_name=default_service_name(settings))


def clear(*, setting: str | None = None, **kwargs: object) -> None:
    """Forget the settings that were read, if `setting` is one that they are read from; by default in any case."""
    if setting in (None, ROOT, "BASE_DIR", "ROOT_URLCONF"):
        _read.cache_clear()


setting_changed.connect(clear, dispatch_uid="django_obs.conf")


def default_service_name(settings: Any) -> str:
    """Return the root package of the settings module, or else of the URLconf, or else ``BASE_DIR``'s name."""
    for name in (getattr(settings, "SETTINGS_MODULE", None), getattr(settings, "ROOT_URLCONF", None)):
        if isinstance(name, str) and "." in name:
            return name.partition(".")[0]
    base = getattr(settings, "BASE_DIR", None)
    # The word is the one that OpenTelemetry's resource conventions give to a service without a name.
    return os.path.basename(os.fspath(base)) if base else "unknown_service"


def warn_of_problems(found: Iterable[Problem] | None = None) -> None:
    """Say in one warning line what was ignored, if anything was."""
    said = [str(problem) for problem in (problems() if found is None else found)]
    if said:
        logging.getLogger("django_obs").warning(
            "Ignored in the settings of django_obs (manage.py check tells more): %s", " ".join(said)
        )

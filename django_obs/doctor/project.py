"""What else in this project collides with us, or keeps us from work without a word."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django_obs.apps import MIDDLEWARE, is_ours
from django_obs.checks import check_settings
from django_obs.conf import get_settings, is_default, origin_of, place_of
from django_obs.instrumentation.outgoing import DISTRIBUTIONS, INSTRUMENTORS
from django_obs.trace_signal import TraceSignal

from . import meeting
from .finding import Finding, broken, ok, warning

OFFICIAL_MIDDLEWARE = "opentelemetry.instrumentation.django."
PROMETHEUS_MIDDLEWARE = "django_prometheus."
MULTIPROC = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
# What stands in PYTHONPATH of the processes that they start.
AGENTS = {
    b"opentelemetry/instrumentation/auto_instrumentation": "opentelemetry-instrument",
    b"ddtrace/bootstrap": "ddtrace-run",
}
# Imported by what everybody has (Django itself, the exporters, requests): that is no sign of a use.
NO_SIGN = frozenset({"urllib", "urllib3", "grpc", "grpc-aio"})


def examine_settings() -> Iterator[Finding]:
    """Run the system checks of this app."""
    messages = [message for message in check_settings() if not message.is_silenced()]
    for message in messages:
        make = broken if message.is_serious() else warning
        # One id per check and number: what a script compares.
        yield make(f"settings.{str(message.id).rpartition('.')[2]}", str(message.msg), str(message.hint or ""))
    if not messages:
        yield ok("settings.checks", "The system checks find nothing.")


def examine(traces: TraceSignal | None) -> Iterator[Finding]:
    """Look at the middleware, the URLs, the tracer provider, the instrumentors and the environment."""
    yield from _urls()
    yield from _middleware()
    if traces is not None:
        yield from _provider(traces)
        yield from _instrumentors()
    yield from _environments()


# -- Middleware --------------------------------------------------------------------------------------------------------


def _middleware() -> Iterator[Finding]:
    from django.conf import settings

    placed = list(settings.MIDDLEWARE)
    if MIDDLEWARE not in placed:
        if any(getattr(get_settings(), name).enabled for name in ("logs", "traces", "metrics")):
            yield broken(
                "project.middleware",
                f"MIDDLEWARE has no {MIDDLEWARE}: something has replaced the list after django_obs was set up.",
                "Write it into MIDDLEWARE yourself, outermost; or let that app insert into the list that is there.",
            )
    elif before := placed[: placed.index(MIDDLEWARE)]:
        yield warning(
            "project.middleware",
            f"What these do is not measured, and what they answer is not seen: {', '.join(before)} stand before ours.",
            f"Move {MIDDLEWARE} to the top of MIDDLEWARE, or take it out: then it is put there.",
        )
    else:
        yield ok("project.middleware", "Our middleware is outermost.")
    for path in placed:
        if path.startswith(OFFICIAL_MIDDLEWARE):
            yield warning(
                "project.django_instrumentor",
                "DjangoInstrumentor().instrument() is called in this project: each request makes a second server span "
                "(and none under ASGI, unless opentelemetry-instrumentation-asgi is installed).",
                "Remove the call; its arguments are those of django_obs.traces.instrumentor.DjangoInstrumentor.",
            )
        elif path.startswith(PROMETHEUS_MIDDLEWARE):
            yield warning(
                "project.django_prometheus",
                f"{path} times each request a second time, and counts by its names in our place.",
                "Remove django-prometheus's middlewares from MIDDLEWARE: django_obs has the same metrics.",
            )


# -- Paths -------------------------------------------------------------------------------------------------------------


def _urls() -> Iterator[Finding]:
    globs = get_settings().excluded_paths
    try:
        samples = list(routes())
    except Exception as error:
        yield broken(
            "project.urls",
            f"The URLconf cannot be loaded: {type(error).__name__}: {error}",
            "Mend it; no request is answered until then.",
        )
        return
    seen = [path for path in samples if not any(fnmatchcase(path, glob) for glob in globs)]
    if samples and not seen:
        yield broken(
            "project.excluded_paths",
            f"{origin_of('excluded_paths')} excludes every path of the project: {', '.join(map(repr, globs))}.",
            "Exclude less: what is excluded leaves no line, no span and no sample.",
        )
    elif is_default("excluded_paths"):
        yield ok("project.excluded_paths", "The usual paths of health checks are excluded.")
    else:
        idle = [glob for glob in globs if glob.startswith(("/", "*", "?", "[")) and not hits(glob, samples)]
        if idle:
            yield warning(
                "project.excluded_paths",
                f"{origin_of('excluded_paths')} has globs that match no URL of this project: "
                f"{', '.join(map(repr, idle))}.",
                "Correct them (the end counts: '/health' is not '/health/'), or take them out.",
            )
        else:
            yield ok("project.excluded_paths", "Each excluded path is one of the project's.")


def routes() -> Iterator[str]:
    """Yield a path for each route of the URLconf, with ``x`` for each thing that it captures."""
    import re

    from django.urls import get_resolver
    from django.urls.resolvers import RegexPattern, URLPattern

    def walk(patterns: Any, prefix: str) -> Iterator[str]:
        for each in patterns:
            text = str(each.pattern)
            if isinstance(each.pattern, RegexPattern):
                # What it stands for cannot be told: anything.
                text = text.removeprefix("^") if re.fullmatch(r"\^?[\w/-]*\$?", text) else "*"
                text = text.removesuffix("$")
            else:
                text = re.sub(r"<[^>]*>", "x", text)
            if isinstance(each, URLPattern):
                yield prefix + text
            else:
                yield from walk(each.url_patterns, prefix + text)

    yield from walk(get_resolver().url_patterns, "/")
    yield from (f"{url}*" for url in served_urls())


def served_urls() -> Iterator[str]:
    """Yield the beginnings of paths that are served without a view, as a rule by somebody else."""
    from django.conf import settings

    for name in ("STATIC_URL", "MEDIA_URL"):
        url = str(getattr(settings, name, None) or "")
        if url.startswith("/") and url != "/":
            yield url


def hits(glob: str, samples: list[str]) -> bool:
    """Tell whether a glob matches one of these paths, or what a route with captures may stand for."""
    literal = glob.partition("*")[0].partition("?")[0].partition("[")[0]
    if literal == glob:
        return _resolves(glob) or glob.startswith(tuple(served_urls()))
    return any(
        fnmatchcase(path, glob) or ("*" in path and literal.startswith(path.partition("*")[0])) for path in samples
    )


def _resolves(path: str) -> bool:
    from django.urls import Resolver404, resolve

    with suppress(Resolver404):
        resolve(path)
        return True
    return False


# -- Traces ------------------------------------------------------------------------------------------------------------


def _provider(traces: TraceSignal) -> Iterator[Finding]:
    from opentelemetry import trace

    pipeline = traces.build()
    if is_ours(pipeline):
        yield ok("project.tracer_provider", "The tracer provider is ours.")
        return
    other = type(trace.get_tracer_provider())
    yield warning(
        "project.tracer_provider",
        f"Another tracer provider is installed: {other.__module__}.{other.__qualname__}. Spans go where that one sends "
        f"them; {place_of(('traces', 'endpoint'))} and all of TRACES' sampling have no effect.",
        "Remove what sets it (set_tracer_provider(), opentelemetry-instrument, another agent), or set "
        f"{place_of(('traces', 'enabled'))} to False.",
    )


def _instrumentors() -> Iterator[Finding]:
    settings = get_settings().traces
    if settings.instrument != "auto":
        return
    used = [name for name, each in INSTRUMENTORS.items() if name not in NO_SIGN and each.library in sys.modules]
    on = []
    for name in used:
        _, module, attribute = INSTRUMENTORS[name]
        if not _is_installed(module):
            package = f"opentelemetry-instrumentation-{DISTRIBUTIONS.get(name, name)}"
            yield warning(
                "project.instrumentor_missing",
                f"{name} is used and its instrumentor is not installed: its calls make no spans.",
                f"Run python -m pip install {package}; or name those that you want in "
                f"{place_of(('traces', 'instrument'))}.",
            )
        elif problem := _not_instrumented(module, attribute):
            yield warning(
                "project.instrumentor_idle",
                f"{name} is used and its instrumentor is installed, but not at work: {problem}.",
                "Install versions that fit each other.",
            )
        else:
            on.append(name)
    if on:
        yield ok("project.instrumentors", f"At work: {', '.join(on)}.")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _not_instrumented(module: str, attribute: str) -> str:
    try:
        instrumentor = getattr(import_module(module), attribute)()
        if instrumentor.is_instrumented_by_opentelemetry:
            return ""
        conflict = instrumentor._check_dependency_conflicts()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return str(conflict or "its instrument() has not been called")


# -- The environment of this process and of the others -----------------------------------------------------------------


def _environments() -> Iterator[Finding]:
    if any(os.environ.get(name) for name in MULTIPROC):
        yield warning(
            "project.multiproc_dir",
            "PROMETHEUS_MULTIPROC_DIR is set. The processes count into lanes, so that the files of that mode stay "
            "empty, and so does a page that is made of them.",
            "Unset it and scrape manage.py runmetrics.",
        )
    started = {agent: pid for pid in _live() if (agent := _agent(pid))}
    for agent, pid in started.items():
        yield warning(
            "project.agent",
            f"Process {pid} was started by {agent}, whose tracer provider and instrumentors come first.",
            "Start the server without it: django_obs needs no agent.",
        )


def _live() -> Iterator[int]:
    """Yield the other live processes."""
    from django_obs.metrics.scraper import Scraper

    store = None
    with suppress(OSError):
        store = meeting.store()
    if store is None:
        return
    directory = store
    for lane in Scraper(lambda: directory).lanes():
        if lane.alive and lane.holder not in (0, os.getpid()):
            yield lane.holder


def _agent(pid: int) -> str:
    """Return what has started a process in its own way; both leave but a path, and then become what they start."""
    with suppress(OSError):
        for variable in (meeting.PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if variable.startswith(b"PYTHONPATH="):
                return next((agent for place, agent in AGENTS.items() if place in variable), "")
    return ""

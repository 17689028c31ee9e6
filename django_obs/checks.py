"""The system checks: each mistake that can be seen before anything runs, with the way out.

Errors are for what stands in the project's settings or in our own environment variables: somebody meant something that
does not happen. Warnings are for what surrounds the project: the standard variables belong to the deployment, and the
runtime directory to the user who runs this command; neither may keep ``manage.py migrate`` from running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004

from . import conf
from .conf import Kind, Problem, Settings, TraceSettings, origin_of, place_of
from .runtime import RuntimeDirError, probe_runtime_dir

MIDDLEWARE = "django_obs.middleware.ObservabilityMiddleware"

_ERRORS: Mapping[Kind, tuple[str, str]] = {
    "key": ("E001", "Correct the key or remove it; until then it has no effect."),
    "type": ("E002", "Correct the value; until then the default holds."),
    "choice": ("E003", "Give one of the choices; until then the default holds."),
    "value": ("E004", "Correct the value; until then the default holds."),
    "endpoint": ("E005", "Give the collector's URL; until then spans go to port 4318 (gRPC: 4317) of this machine."),
}
_WARNINGS: Mapping[Kind, tuple[str, str]] = {
    # No error: Kubernetes gives every container such variables when a service is called django-obs.
    "variable": ("W001", "Correct the name or unset it; it has no effect."),
    # No error: so OpenTelemetry's specification has it.
    "otel": ("W002", "Correct the variable or unset it; until then it has no effect."),
}


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check everything that is configured for django_obs."""
    settings = conf.get_settings()
    messages = [_of_problem(problem) for problem in conf.problems()]
    messages += _check_filter(settings)
    messages += _check_middleware()
    messages += _check_excluded_paths(settings)
    if settings.traces.enabled or settings.logs.otlp:
        messages += _check_exporter(settings)
        messages += _check_port(settings)
    if settings.traces.enabled:
        messages += _check_instrument(settings.traces)
    messages += _check_runtime_dir(settings)
    return messages


def _of_problem(problem: Problem) -> CheckMessage:
    if problem.kind in _ERRORS:
        number, hint = _ERRORS[problem.kind]
        return Error(str(problem), hint=hint, id=f"django_obs.{number}")
    number, hint = _WARNINGS[problem.kind]
    return Warning(str(problem), hint=hint, id=f"django_obs.{number}")


def _check_filter(settings: Settings) -> Iterator[CheckMessage]:
    if not settings.logs.enabled:
        return
    from .logs.directives import DirectiveError, parse

    try:
        parse(settings.logs.filter)
    except DirectiveError as error:
        yield Error(
            f"{origin_of('logs', 'filter')} cannot be read. {error}",
            hint="Until it is corrected the parts of it that can be read hold. docs/logs.md has the grammar.",
            id="django_obs.E006",
        )


def _check_middleware() -> Iterator[CheckMessage]:
    from django.conf import settings

    count = list(settings.MIDDLEWARE or ()).count(MIDDLEWARE)
    if count > 1:
        yield Error(
            f"MIDDLEWARE has {MIDDLEWARE} {count} times, so that each request would be counted {count} times.",
            hint="Keep one, at the place you want, or none: then it is put outermost.",
            id="django_obs.E007",
        )


def _check_exporter(settings: Settings) -> Iterator[CheckMessage]:
    kind = "grpc" if settings.traces.protocol == "grpc" else "http"
    if not _installed(f"opentelemetry.exporter.otlp.proto.{kind}"):
        package = f"opentelemetry-exporter-otlp-proto-{kind}"
        yield Error(
            f"{origin_of('traces', 'protocol')} is {settings.traces.protocol!r}, but {package} is not installed.",
            hint=f"Run python -m pip install {package}, or choose the other protocol; until then no span is sent.",
            id="django_obs.E008",
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _check_instrument(traces: TraceSettings) -> Iterator[CheckMessage]:
    if traces.instrument == "auto" or not traces.instrument:
        return
    from .instrumentation.outgoing import unusable_names

    for name, reason, way_out in unusable_names(traces.instrument):
        yield Error(f"{origin_of('traces', 'instrument')} has {name!r}, {reason}.", hint=way_out, id="django_obs.E009")


def _check_port(settings: Settings) -> Iterator[CheckMessage]:
    traces = settings.traces
    url = traces.endpoint if "://" in traces.endpoint else f"//{traces.endpoint}"
    other = {"http/protobuf": 4317, "grpc": 4318}[traces.protocol]
    if urlsplit(url).port == other:
        spoken = "http/protobuf" if traces.protocol == "grpc" else "grpc"
        yield Warning(
            f"The collector is expected to speak {traces.protocol} at port {other}, where by convention it speaks "
            f"{spoken}.",
            hint=f"Set {place_of(('traces', 'protocol'))} to {spoken!r}, or give the other port. "
            "If your collector is different, silence this check.",
            id="django_obs.W003",
        )


def _check_excluded_paths(settings: Settings) -> Iterator[CheckMessage]:
    for glob in settings.excluded_paths:
        if not glob.startswith(("/", "*", "?", "[")):
            yield Warning(
                f"{origin_of('excluded_paths')} has {glob!r}, which matches no path: paths start with a slash.",
                hint=f"Write {'/' + glob!r}.",
                id="django_obs.W004",
            )


def _check_runtime_dir(settings: Settings) -> Iterator[CheckMessage]:
    try:
        probe_runtime_dir(settings)
    except RuntimeDirError as error:
        yield Warning(
            f"Runtime directory {error.path} {error.reason}.",
            hint=f"{error.way_out[:1].upper()}{error.way_out[1:]}. Until then this process shares no metrics, and "
            "manage.py obs does not reach it.",
            id="django_obs.W005",
        )

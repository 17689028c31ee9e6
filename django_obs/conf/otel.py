"""OpenTelemetry's standard variables, which fill what the project does not say.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .problem import Unusable
from .table import Path
from .values import from_text, pairs, split

Environ = Mapping[str, str]

NOT_GIVEN = object()
"""What a variable says that was set and says nothing about the setting in question."""


def as_it_is(hint: Any, text: str, environ: Environ) -> object:
    return from_text(hint, text)


def sdk_enabled(hint: Any, text: str, environ: Environ) -> object:
    if text.lower() not in ("true", "false"):
        raise Unusable("choice", "must be true or false")
    return False if text.lower() == "true" else NOT_GIVEN


def exporter_enabled(hint: Any, text: str, environ: Environ) -> object:
    if set(split(text)) - {"otlp", "none"}:
        raise Unusable("choice", "must be one of: otlp, none (others are not exported)")
    return "none" not in split(text)


def resource_name(hint: Any, text: str, environ: Environ) -> object:
    return dict(pairs(text)).get("service.name") or NOT_GIVEN


# Name, whether it follows the caller's decision, ratio of new traces; None: OTEL_TRACES_SAMPLER_ARG tells.
SAMPLERS: Mapping[str, tuple[bool, float | None]] = {
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}


def sampler(text: str) -> tuple[bool, float | None]:
    try:
        return SAMPLERS[text.lower()]
    except KeyError:
        raise Unusable("choice", "must be one of: " + ", ".join(SAMPLERS)) from None


def sampler_argument(hint: Any, text: str, environ: Environ) -> object:
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    return from_text(hint, text) if SAMPLERS.get(name, (True, 1.0))[1] is None else NOT_GIVEN


def sampler_ratio(hint: Any, text: str, environ: Environ) -> object:
    ratio = sampler(text)[1]
    return 1.0 if ratio is None else ratio


def sampler_follows_parent(hint: Any, text: str, environ: Environ) -> object:
    return sampler(text)[0]


def sampler_keeps_errors(hint: Any, text: str, environ: Environ) -> object:
    # Who says off says off: nothing is kept because it failed or was slow.
    return False if sampler(text)[1] == 0.0 else NOT_GIVEN


def sampler_keeps_slow(hint: Any, text: str, environ: Environ) -> object:
    return None if sampler(text)[1] == 0.0 else NOT_GIVEN


# Path, variable, how its text is read; a row above goes before a row below.
VARIABLES: tuple[tuple[Path, str, Callable[[Any, str, Environ], object]], ...] = (
    (("service_name",), "OTEL_SERVICE_NAME", as_it_is),
    (("service_name",), "OTEL_RESOURCE_ATTRIBUTES", resource_name),
    (("logs", "otlp"), "OTEL_SDK_DISABLED", sdk_enabled),
    (("logs", "otlp"), "OTEL_LOGS_EXPORTER", exporter_enabled),
    (("traces", "enabled"), "OTEL_SDK_DISABLED", sdk_enabled),
    (("traces", "enabled"), "OTEL_TRACES_EXPORTER", exporter_enabled),
    (("traces", "endpoint"), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", as_it_is),
    (("traces", "endpoint"), "OTEL_EXPORTER_OTLP_ENDPOINT", as_it_is),
    (("traces", "protocol"), "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", as_it_is),
    (("traces", "protocol"), "OTEL_EXPORTER_OTLP_PROTOCOL", as_it_is),
    (("traces", "headers"), "OTEL_EXPORTER_OTLP_TRACES_HEADERS", as_it_is),
    (("traces", "headers"), "OTEL_EXPORTER_OTLP_HEADERS", as_it_is),
    (("traces", "sample_ratio"), "OTEL_TRACES_SAMPLER_ARG", sampler_argument),
    (("traces", "sample_ratio"), "OTEL_TRACES_SAMPLER", sampler_ratio),
    (("traces", "parent_based"), "OTEL_TRACES_SAMPLER", sampler_follows_parent),
    (("traces", "keep_errors"), "OTEL_TRACES_SAMPLER", sampler_keeps_errors),
    (("traces", "keep_slower_than"), "OTEL_TRACES_SAMPLER", sampler_keeps_slow),
    (("traces", "queue_size"), "OTEL_BSP_MAX_QUEUE_SIZE", as_it_is),
)


class Collector(NamedTuple):
    """Where a signal is sent over OTLP."""

    endpoint: str
    """The whole URL, the signal's path included where the protocol has paths."""
    protocol: str
    headers: Mapping[str, str]


def full_endpoint(url: str, protocol: str, origin: str, signal: str) -> str:
    """Return the URL to send to; `origin` is where `url` was given.

    A general address is completed by the path of the signal; an address for this signal alone is taken as it is.
    Raises `Unusable`.
    """
    if protocol == "grpc":
        return url or "http://localhost:4317"
    path = f"v1/{signal}"
    if not url:
        return f"http://localhost:4318/{path}"
    if "://" not in url:
        raise Unusable("endpoint", "must start with http:// or https://")
    if origin == "OTEL_EXPORTER_OTLP_ENDPOINT":
        return f"{url.rstrip('/')}/{path}"
    if origin.startswith("OTEL_"):
        return url
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    if parts.path.endswith("/v1/traces"):
        return urlunsplit(parts._replace(path=parts.path.removesuffix("v1/traces") + path))
    # No collector takes anything at its root, so a bare address means the address.
    return url if parts.path.strip("/") else urlunsplit(parts._replace(path=f"/{path}"))

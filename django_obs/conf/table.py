"""The table of settings: each field is a key, with its type, its default and a sentence."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

ROOT = "DJANGO_OBS"

T = TypeVar("T")
Path = tuple[str, ...]


def setting(default: T, **limits: Any) -> T:
    """Give a field its default and the limits `minimum`, `maximum` (inclusive), `above` (exclusive) and `check`."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The section ``LOGS``."""

    enabled: bool = True
    """Whether log records go through our queue; off, ``LOGGING`` alone holds and nothing of logs is imported."""
    filter: str = setting("info", check="text")
    """EnvFilter directives over the built-in noise list, such as ``info,shop=debug``."""
    format: Literal["auto", "json", "console"] = "auto"
    """Shape of a line; ``auto`` is ``console`` (for people, coloured) when ``DEBUG`` is on and the stream is a
    terminal, else ``json``."""
    stream: Literal["auto", "stdout", "stderr"] = "auto"
    """Where lines go; ``auto`` is ``stderr`` in one-off commands, so that ``dumpdata > file`` stays clean, else
    ``stdout``."""
    queue_size: int = setting(10000, minimum=1, maximum=10_000_000)
    """Records that may wait for the listener, per process."""
    overflow: Literal["drop", "block"] = "drop"
    """What happens when the queue is full: ``drop`` sheds the least severe first and counts, ``block`` waits."""
    flush_interval: float = setting(0.1, above=0, maximum=60)
    """Seconds between two rounds of the listener."""
    access: bool = True
    """Whether each request gets one canonical line, in place of the server's own."""
    redact: tuple[str, ...] = (
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "api_key",
        "apikey",
        "private_key",
        "access_key",
        "authorization",
        "credential",
        "credentials",
        "cookie",
        "sessionid",
        "csrfmiddlewaretoken",
        "credit_card",
        "card_number",
        "cvv",
    )
    """Names of fields whose values are masked, in lines and in span attributes."""
    otlp: bool = False
    """Whether the same records also go to the collector, as OTLP logs."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """The section ``TRACES``."""

    enabled: bool = True
    """Whether requests, tasks and commands make spans; off, nothing of traces is imported."""
    endpoint: str = setting("", check="endpoint")
    """URL of the collector; without a path ``/v1/traces`` is added for HTTP. Default: this machine, port 4318 for
    HTTP and 4317 for gRPC."""
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    """How spans are sent."""
    headers: Mapping[str, str] = field(
        default_factory=lambda: types.MappingProxyType({}), hash=False, metadata={"check": "headers"}
    )
    """Headers sent along with each export, such as an API key."""
    sample_ratio: float = setting(1.0, minimum=0, maximum=1)
    """Share of new traces that is exported whatever becomes of them."""
    parent_based: bool = True
    """Whether a caller's own decision (its ``traceparent``) goes before `sample_ratio`; turn it off where strangers
    call."""
    queue_size: int = setting(8192, minimum=1, maximum=10_000_000)
    """Spans that may wait for the exporter, per process; what does not fit is dropped and counted."""
    keep_errors: bool = True
    """Whether a request that the sampler left out is exported all the same when it fails."""
    keep_slower_than: float | None = setting(1.0, minimum=0)
    """Seconds from which a request that the sampler left out is exported all the same; ``None`` for never."""
    database: bool = True
    """Whether each query makes a span."""
    cache: bool = True
    """Whether each cache operation makes a span."""
    templates: bool = False
    """Whether each rendered template makes a span."""
    middleware: bool = False
    """Whether each middleware makes a span."""
    instrument: Literal["auto"] | tuple[str, ...] = "auto"
    """Installed OpenTelemetry instrumentors to switch on, by name (``requests``, ``redis``); ``auto`` for all that fit,
    an empty list for none."""
    response_header: str = setting("X-Trace-Id", check="header")
    """Response header that carries the trace id; empty for none."""


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """The section ``METRICS``."""

    enabled: bool = True
    """Whether metrics are recorded and shared between processes; off, nothing of metrics is imported."""
    buckets: tuple[float, ...] = setting(
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 25.0, 50.0, 75.0), check="buckets"
    )
    """Upper bounds of the latency histograms, in seconds, ascending; the last one, infinity, is implied. The default is
    django-prometheus's."""
    max_series: int = setting(100_000, minimum=1, maximum=10_000_000)
    """Series that the project may have; samples of more go to one overflow series and are counted."""
    addr: str = "127.0.0.1"
    """Address on which ``runmetrics`` listens."""
    port: int = setting(9000, minimum=0, maximum=65535)
    """Port on which ``runmetrics`` listens; 0 for a free one."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole table: ``DJANGO_OBS`` itself and its three sections."""

    service_name: str = setting("", check="text")
    """The resource attribute ``service.name``. Default: the root package of the settings module."""
    excluded_paths: tuple[str, ...] = (
        "/favicon.ico",
        "/health",
        "/health/*",
        "/healthz",
        "/healthz/*",
        "/live",
        "/live/",
        "/livez",
        "/livez/*",
        "/metrics",
        "/metrics/",
        "/ping",
        "/ping/",
        "/ready",
        "/ready/",
        "/readyz",
        "/readyz/*",
        "/-/healthy",
        "/-/ready",
    )
    """Globs of paths without access line, metrics and spans, those of their queries included."""
    runtime_dir: str | None = setting(None, check="absolute")
    """Directory, for this project alone, where its processes share metrics and the control file. Default: found from
    the user and the project."""
    flush_timeout: float = setting(5.0, minimum=0, maximum=3600)
    """Seconds that all signals together may take at exit to deliver what is queued."""
    logs: LogSettings = LogSettings()
    """What becomes of log records."""
    traces: TraceSettings = TraceSettings()
    """What becomes spans, and where they go."""
    metrics: MetricSettings = MetricSettings()
    """What is counted, and where it is served."""


def place_of(path: Path) -> str:
    """Return the place in the settings file, ``DJANGO_OBS['LOGS']['FORMAT']`` for ``("logs", "format")``."""
    return ROOT + "".join(f"[{name.upper()!r}]" for name in path)


def variable_of(path: Path) -> str:
    """Return the environment variable, ``DJANGO_OBS_LOGS_FORMAT`` for ``("logs", "format")``."""
    return "_".join((ROOT, *path)).upper()


def default_of(each: Field[Any]) -> Any:
    """Return the default of one field of the table."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def paths(section: type = Settings, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each setting, in the table's order."""
    hints = hints_of(section)
    for each in fields(section):
        here = (*path, each.name)
        if is_dataclass(hints[each.name]):
            yield from paths(hints[each.name], here)
        else:
            yield here


@functools.cache
def hints_of(section: type) -> dict[str, Any]:
    """Return the types of the fields by name."""
    return typing.get_type_hints(section)

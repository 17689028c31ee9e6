"""For the tests of projects that use this app: what was logged, traced and counted in a block of code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.apps import apps

if TYPE_CHECKING:
    from django_obs.traces.encoder import Group


@dataclass(frozen=True, kw_only=True)
class CapturedSpan:
    """A span as a collector would get it. Ids are hexadecimal digits, times nanoseconds since the epoch."""

    name: str
    kind: str
    """``internal``, ``server``, ``client``, ``producer`` or ``consumer``."""
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: str = "unset"
    """``unset``, ``ok`` or ``error``."""
    scope: str = ""


class _Sink:
    """Takes the encoded spans in place of the exporter."""

    def __init__(self, spans: list[CapturedSpan]) -> None:
        self.spans = spans

    def offer(self, groups: Sequence[Group]) -> None:
        from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

        from django_obs.traces.encoder import delimited

        for scope, _, encoded in groups:
            message = ResourceSpans.FromString(delimited(b"\x12", scope + encoded))
            for scope_spans in message.scope_spans:
                self.spans.extend(_captured(span, scope_spans.scope.name) for span in scope_spans.spans)


def _captured(span: Any, scope: str) -> CapturedSpan:
    return CapturedSpan(
        name=span.name,
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        status=("unset", "ok", "error")[span.status.code],
        scope=scope,
    )


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _plain(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


@contextmanager
def capture_spans() -> Iterator[list[CapturedSpan]]:
    """Collect the spans that end in the block, in the order of their export, instead of sending them.

    They went through the encoder, so they are what a collector would see. A trace appears when its local root ends.
    """
    from opentelemetry import trace

    from django_obs.traces.provider import TracerProvider

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise RuntimeError(
            f"capture_spans() needs the tracer provider of django_obs, and {type(provider).__name__} is installed: set "
            "DJANGO_OBS['TRACES']['ENABLED'] to True, and install no other provider in tests."
        )
    spans: list[CapturedSpan] = []
    before, provider.sink = provider.sink, _Sink(spans)
    try:
        yield spans
    finally:
        provider.sink = before


class _Lines:
    """Takes the lines in place of the sink."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, data: bytes) -> bytes:
        self.lines.extend(map(json.loads, data.splitlines()))
        return b""


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Collect the lines that are logged in the block, parsed, instead of writing them.

    They are in the list when the block has ended, after the queue and the formatter. Under ``manage.py test``, which is
    kept quiet by default, the block has the lines that a process in production would have.
    """
    from django_obs.logs.formatters import JSONFormatter

    config: Any = apps.get_app_config("django_obs")
    pipeline = config.logs
    if pipeline is None:
        raise RuntimeError("capture_logs() needs the logs: set DJANGO_OBS['LOGS']['ENABLED'] to True.")
    if config.quiet:
        pipeline.filter.set("info", source="capture_logs()")
    pipeline.force_flush(5.0)
    listener, lines = pipeline.listener, _Lines()
    before = listener.sink, listener.formatter
    listener.sink, listener.formatter = lines, JSONFormatter(stamper=pipeline.stamper)
    try:
        yield lines.lines
    finally:
        pipeline.force_flush(5.0)
        listener.sink, listener.formatter = before
        if config.quiet:
            pipeline.filter.set(None)


def sample_value(name: str, labels: dict[str, str] | None = None) -> float | None:
    """Return what this process has recorded for a series, such as ``orders_total``; None if there is no such series."""
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(name, labels)

"""Leaves as spans of another provider, which was installed before ours."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace as api
from opentelemetry.trace import SpanKind, Status, StatusCode

from .encoder import LeafSource
from .propagation import get_current, suppressed


class ForeignLeaves:
    """Records leaves as spans of a tracer of that provider."""

    def __init__(self, tracer: api.Tracer) -> None:
        self.tracer = tracer

    def __call__(
        self,
        source: LeafSource,
        statement: Any,
        start_ns: int,
        end_ns: int,
        error: str | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Make a span of what has ended, if the current span records; times are nanoseconds since the epoch."""
        context = get_current()
        if not api.get_current_span(context).is_recording() or suppressed(context):
            return
        name, described = source.describe(statement if type(statement) is str else statement())
        span = self.tracer.start_span(
            name, kind=SpanKind.CLIENT, attributes={**described, **(attributes or {})}, start_time=start_ns
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

"""Our spans as the SDK's, made only where a span processor of the SDK was added: the SDK is imported there anyway."""

from __future__ import annotations

import warnings
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationInfo, InstrumentationScope

from .provider import Tracer
from .span import Span


def readable(span: Span) -> ReadableSpan:
    """Return a snapshot of the span as a ReadableSpan, attributes checked and cut to the limits."""
    limits = span.tracer.provider.limits
    attributes = BoundedAttributes(limits.attributes, span.all_attributes(), True, limits.span_value_length)
    attributes.dropped += span.dropped_attributes
    events: BoundedList[Any] = BoundedList.from_seq(
        limits.events, [Event(event.name, event.attributes, event.timestamp) for event in span.events]
    )
    events.dropped = span.dropped_events
    links: BoundedList[Any] = BoundedList.from_seq(limits.links, span.links)
    links.dropped = span.dropped_links
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        events=events,
        links=links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def sdk_resource(attributes: dict[str, Any]) -> Resource:
    """Return the resource as the SDK's."""
    return Resource(attributes)


def sdk_scope(tracer: Tracer) -> InstrumentationScope:
    """Return the instrumentation scope as the SDK's."""
    return InstrumentationScope(tracer.name, tracer.version or "", tracer.schema_url, tracer.attributes)


def sdk_info(tracer: Tracer) -> InstrumentationInfo:
    """Return what came before the instrumentation scope."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return InstrumentationInfo(tracer.name, tracer.version or "", tracer.schema_url)

"""How much one span may hold: the limits of the OpenTelemetry specification and their environment variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

logger = logging.getLogger("django_obs")

# What the specification sets where no variable does:
# https://opentelemetry.io/docs/specs/otel/common/#configurable-parameters
DEFAULT_COUNT = 128


@dataclass(frozen=True, slots=True)
class SpanLimits:
    """How many attributes, events and links are kept, and how many characters of an attribute; None is no limit."""

    attributes: int | None = DEFAULT_COUNT
    events: int | None = DEFAULT_COUNT
    links: int | None = DEFAULT_COUNT
    event_attributes: int | None = DEFAULT_COUNT
    link_attributes: int | None = DEFAULT_COUNT
    span_value_length: int | None = None
    value_length: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> SpanLimits:
        """Read ``OTEL_*_LIMIT``; an empty value means no limit, a bad one is reported and its default stands."""
        count = _read(environ, "OTEL_ATTRIBUTE_COUNT_LIMIT", DEFAULT_COUNT)
        length = _read(environ, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", None)
        return cls(
            attributes=_read(environ, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", count),
            events=_read(environ, "OTEL_SPAN_EVENT_COUNT_LIMIT", DEFAULT_COUNT),
            links=_read(environ, "OTEL_SPAN_LINK_COUNT_LIMIT", DEFAULT_COUNT),
            event_attributes=_read(environ, "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", count),
            link_attributes=_read(environ, "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", count),
            span_value_length=_read(environ, "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", length),
            value_length=length,
        )


def _read(environ: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = environ.get(name)
    if text is None:
        return default
    text = text.strip()
    # "unset" in the reference implementation: the variable is there and empty.
    if not text:
        return None
    # More digits are no count of anything, and more than Python cares to read.
    if text.isdecimal() and len(text) <= 18:
        return int(text)
    logger.warning("%s=%r is not a number of zero or more, using %s", name, text[:200], default)
    return default

"""The current span, and what a request brings along: ``traceparent`` parsed fast, the rest by the propagators."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress as suppress_errors
from contextvars import ContextVar, Token
from importlib import import_module
from typing import Any, Final

from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags, TraceState, set_span_in_context

# The key under which the API keeps the current span is generated at import; a context with nothing else in it tells it.
SPAN_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, Context())))
# The plain key is older than the generated one; instrumentations honour both.
SUPPRESS_KEYS: Final = tuple(
    key for key in ("suppress_instrumentation", getattr(context_api, "_SUPPRESS_INSTRUMENTATION_KEY", None)) if key
)
SUPPRESS_HTTP_KEY: Final = getattr(context_api, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", None)

# The API reaches its context variable through two calls. Where the runtime context is the default one, the variable
# itself is used; OTEL_PYTHON_CONTEXT may have put something else in its place, then the API is.
_variable = getattr(getattr(context_api, "_RUNTIME_CONTEXT", None), "_current_context", None)
get_current: Callable[[], Context]
attach: Callable[[Context], Token[Context]]
if isinstance(_variable, ContextVar):
    get_current, attach = _variable.get, _variable.set
    _reset: Callable[[Token[Context]], None] = _variable.reset
else:
    get_current, attach, _reset = context_api.get_current, context_api.attach, context_api.detach

FLAGS: Final = tuple(TraceFlags(number) for number in range(256))
# https://www.w3.org/TR/trace-context/#traceparent-header; later versions may add fields.
_TRACEPARENT: Final = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*")
# https://www.w3.org/TR/trace-context/#tracestate-header
_TRACESTATE_MEMBER: Final = re.compile(
    r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
# The length and the number of members that the reference implementation accepts.
_TRACESTATE_LENGTH: Final = 8192
_TRACESTATE_MEMBERS: Final = 32


def detach(token: Token[Context]) -> None:
    """Make the context current that was before ``attach()``.

    A request that is cancelled under ASGI, or finished by another task, ends in another context than it began in; there
    is nothing to restore then.
    """
    try:  # noqa: SIM105, since contextlib.suppress() costs more than all the rest of a detach
        _reset(token)
    except ValueError:
        pass


def suppressed(context: Context) -> bool:
    """Tell whether instrumentation is switched off in this context."""
    return any(context.get(key) for key in SUPPRESS_KEYS)


def suppress() -> Token[Context]:
    """Switch instrumentation off until the token is given to ``detach()``."""
    values: dict[str, object] = dict.fromkeys(SUPPRESS_KEYS, True)
    if SUPPRESS_HTTP_KEY:
        values[SUPPRESS_HTTP_KEY] = True
    return attach(Context({**get_current(), **values}))


def parse_traceparent(header: str, state: str | None) -> SpanContext | None:
    """Return the remote parent that W3C trace context headers name, or None if they are not valid."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    entries = parse_tracestate(state) if state else None
    context = SpanContext(int(trace_id, 16), int(span_id, 16), True, FLAGS[int(flags, 16)], entries)
    return context if context.is_valid else None


def parse_tracestate(header: str) -> TraceState | None:
    """Return the entries of the header, or None if it is not valid.

    ``TraceState.from_header`` logs a warning then: a line for every request that some client likes to send.
    """
    if len(header) > _TRACESTATE_LENGTH:
        return None
    members = [member for part in header.split(",") if (member := part.strip(" \t"))]
    if len(members) > _TRACESTATE_MEMBERS or not all(map(_TRACESTATE_MEMBER.fullmatch, members)):
        return None
    return TraceState.from_header(members)


def uses_default_propagators() -> bool:
    """Tell whether headers are read as the standard has it: trace context and baggage."""
    configured = os.environ.get("OTEL_PROPAGATORS")
    if configured and [name.strip() for name in configured.split(",")] != ["tracecontext", "baggage"]:
        return False
    # Imported here, not above: the module loads the propagators' entry points.
    from opentelemetry import propagate

    textmap: Any = propagate.get_global_textmap()
    names = [type(part).__name__ for part in getattr(textmap, "_propagators", ())]
    return names == ["TraceContextTextMapPropagator", "W3CBaggagePropagator"]


def load_propagators() -> None:
    """Read the entry points that ``OTEL_PROPAGATORS`` names, which else the first request would have to wait for."""
    # A propagator that is not installed is reported where it is needed; the site starts all the same.
    with suppress_errors(Exception):
        import_module("opentelemetry.propagate")


class _MetaGetter:
    """Reads headers from ``request.META`` or a WSGI environ for the propagators."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, Any]) -> Iterable[str]:
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_meta_getter: Any = _MetaGetter()


def extract(meta: Mapping[str, Any], context: Context) -> Context:
    """Return the context with what the configured propagators find in ``request.META``."""
    from opentelemetry import propagate

    return propagate.extract(meta, context, getter=_meta_getter)

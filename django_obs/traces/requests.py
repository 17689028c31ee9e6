"""The server span of a request, in the stable semantic conventions for HTTP.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import perf_counter_ns, time_ns
from typing import Any, TypeAlias

from opentelemetry import trace as api
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_obs.context import Scope
from django_obs.semconv import METHODS, OTHER_METHOD

from . import options
from .propagation import attach, detach, extract, get_current, load_propagators, suppress
from .provider import Tracer
from .sampler import RatioSampler
from .span import STACK, Span, UnrecordedSpan, report_once

ERROR = Status(StatusCode.ERROR)
REDACTED = "REDACTED"
RESPONSE_PROPAGATORS = "opentelemetry.instrumentation.propagators"
REMEMBERED = 1024
# Method, scheme, Host header, name and port of the server, protocol.
Endpoint: TypeAlias = tuple[str, str, str | None, str | None, str | None, str | None]
# Credentials that signed URLs of AWS and Google carry, which the conventions ask to redact.
SIGNATURES = frozenset({"awsaccesskeyid", "signature", "sig", "x-goog-signature"})


class RequestTracing:
    """Opens and closes the server span of a request and keeps it current in between.

    ``redact`` holds lower-case parameter names whose values are masked in ``url.query``.
    """

    def __init__(self, tracer: api.Tracer, *, redact: tuple[str, ...]) -> None:
        self.tracer = tracer
        self.redact = tuple(redact)
        # What requests have in common, by the words it is read from. Clients choose some: what is full is emptied.
        self._endpoints: dict[Endpoint, dict[str, Any]] = {}
        self._names: dict[tuple[str, str], str] = {}
        if options.in_force is None:
            options.use(options.RequestOptions.from_environment())
        load_propagators()

    def open_request(self, scope: Scope, request: Any) -> None:
        """Start the span and make it current; its trace id is noted on the scope."""
        meta = request.META
        chosen = options.in_force
        if chosen is not None and chosen.is_excluded(full_url(request)):
            scope.activation = suppress()
            return
        get = meta.get
        method = scope.method
        protocol = get("SERVER_PROTOCOL")
        asgi = getattr(request, "scope", None) if protocol is None else None
        # What the attributes follow from. They are put together when somebody looks: the worker, most often.
        words = (
            (method, scope.scheme, get("HTTP_HOST"), get("SERVER_NAME"), get("SERVER_PORT"), protocol),
            scope.path,
            get("QUERY_STRING"),
            get("REMOTE_ADDR"),
            get("HTTP_USER_AGENT"),
            None if asgi is None else asgi.get("http_version", "1.1"),
        )
        name = method if method in METHODS else "HTTP"
        now = time_ns() - (perf_counter_ns() - scope.started)
        tracer = self.tracer
        if chosen is not None:
            tracer = chosen.tracer or tracer
        # Whoever looks at spans as they start, or decides by their attributes, finds them all.
        late = (
            chosen is None
            and type(tracer) is Tracer
            and not tracer.provider.processors
            and type(tracer.provider.sampler) is RatioSampler
        )
        attributes = {} if late else self.described(*words)
        if chosen is not None:
            attributes.update(chosen.of_request(request))
        if type(tracer) is Tracer:
            span = scope.span = tracer.start_request(name, meta, attributes, now)
            if late and type(span) is Span:
                span.late = (self.described, *words)
            scope.activation = span.activate()
            ids = scope.ids = span.ids()
            scope.trace_id = ids[0]
            scope.sampled = type(span) is Span and span.trace.flags & 1 == 1
        else:
            self._open_foreign(tracer, scope, name, meta, attributes, now)
        if chosen is not None and chosen.request_hook is not None:
            call(chosen.request_hook, scope.span, request)

    def described(
        self,
        endpoint: Endpoint,
        path: str,
        query: str | None,
        peer: str | None,
        agent: str | None,
        version: str | None,
        outcome: tuple[Any, ...] | None = None,
    ) -> dict[str, Any]:
        """Return the attributes of a request that has come in, or is over; the outcome is what `add_outcome` takes."""
        attributes = (self._endpoints.get(endpoint) or self._endpoint(endpoint)).copy()
        attributes["url.path"] = path
        if query:
            attributes["url.query"] = redacted_query(query, self.redact)
        if peer:
            attributes["client.address"] = peer
        if agent:
            attributes["user_agent.original"] = agent
        if version is not None:
            attributes["network.protocol.version"] = version
        if outcome is not None:
            add_outcome(attributes, *outcome)
        return attributes

    def _endpoint(self, key: Endpoint) -> dict[str, Any]:
        """Return the attributes that follow from these words of a request, and remember them."""
        method, scheme, host, name, port, protocol = key
        attributes: dict[str, Any] = {
            "http.request.method": method if method in METHODS else OTHER_METHOD,
            "url.scheme": scheme,
            "server.address": host_name(host) if host else name or "",
        }
        if port:
            attributes["server.port"] = int(port) if port.isdecimal() else port
        if protocol is not None and protocol[:5] == "HTTP/":
            attributes["network.protocol.version"] = protocol[5:]
        if method not in METHODS:
            attributes["http.request.method_original"] = method
        if len(self._endpoints) >= REMEMBERED:
            self._endpoints.clear()
        self._endpoints[key] = attributes
        return attributes

    def _name(self, method: str, route: str) -> str:
        if len(self._names) >= REMEMBERED:
            self._names.clear()
        name = self._names[method, route] = f"{method} {route}"
        return name

    def _open_foreign(
        self,
        tracer: api.Tracer,
        scope: Scope,
        name: str,
        meta: Mapping[str, Any],
        attributes: dict[str, Any],
        now: int,
    ) -> None:
        """Start the span of another provider, which was installed before ours."""
        context = get_current()
        if api.get_current_span(context).get_span_context().is_valid:
            kind = SpanKind.INTERNAL
        else:
            kind, context = SpanKind.SERVER, extract(meta, context)
        span = scope.span = tracer.start_span(name, context, kind, attributes, start_time=now)
        scope.activation = attach(api.set_span_in_context(span, context))
        span_context = span.get_span_context()
        if span_context.is_valid:
            scope.ids = (f"{span_context.trace_id:032x}", f"{span_context.span_id:016x}")
            scope.trace_id = scope.ids[0]
        scope.sampled = span_context.trace_flags.sampled

    def suppress(self, scope: Scope) -> None:
        """Let nothing below an excluded request make a span."""
        scope.activation = suppress()

    def enter(self, scope: Scope) -> None:
        """Make the span of a request current again, for the next part of its stream."""
        span = scope.span
        if type(span) is Span or type(span) is UnrecordedSpan:
            scope.activation = span.activate()
        elif span is not None:
            scope.activation = attach(api.set_span_in_context(span))

    def leave(self, scope: Scope) -> None:
        """Make current what was so before the request."""
        token, scope.activation = scope.activation, None
        detach(token)

    def close_request(self, scope: Scope, request: Any, response: Any) -> None:
        """Say what became of the request, and end its span."""
        span = scope.span
        if span is None:
            return
        # Ours takes them without being asked one by one, and looks at its limits at the end.
        own = type(span) is Span and span.end_time is None
        error = scope.error
        failed = error is not None or scope.status >= 500
        outcome = (
            0 if response is None else scope.status,
            scope.route,
            scope.size,
            scope.user_id,
            scope.db_count,
            scope.db_ns,
            (str(scope.status) if error is None else type_name(error)) if failed else None,
        )
        if own and span.late is not None and not span.recorded_attributes:
            span.late = (*span.late, outcome)
            attributes: dict[str, Any] = span.recorded_attributes
        else:
            attributes = span.all_attributes() if own else {}
            add_outcome(attributes, *outcome)
        route = scope.route
        if route is not None:
            method = scope.method if scope.method in METHODS else "HTTP"
            # A hook or a view may have found a better name.
            if own:
                if span.name == method:
                    span.name = self._names.get((method, route)) or self._name(method, route)
            elif getattr(span, "name", method) == method:
                span.update_name(self._name(method, route))
        if failed:
            span.set_status(ERROR)
            if error is not None and span.is_recording():
                span.record_exception(error, {STACK: scope.stack()}, escaped=True)
        chosen = options.in_force
        if chosen is not None and response is not None:
            attributes.update(chosen.of_response(response))
        if not own:
            span.set_attributes(attributes)
        if response is not None:
            if chosen is not None and chosen.response_hook is not None:
                call(chosen.response_hook, span, request, response)
            if sys.modules.get(RESPONSE_PROPAGATORS) is not None:
                propagate_back(response)
        # As long as the access line says, whatever has become of the clock meanwhile.
        span.end(span.start_time + scope.ended - scope.started if own else None)


def add_outcome(
    attributes: dict[str, Any],
    status: int,
    route: str | None,
    size: int,
    user_id: str | None,
    queries: int,
    query_ns: int,
    error_type: str | None,
) -> None:
    """Add what became of a request; status 0 and size -1 are unknown."""
    if status:
        attributes["http.response.status_code"] = status
    if route is not None:
        attributes["http.route"] = route
    if size >= 0:
        attributes["http.response.body.size"] = size
    if user_id is not None:
        attributes["user.id"] = user_id
    if queries:
        attributes["django_obs.db.query_count"] = queries
        attributes["django_obs.db.duration"] = query_ns * 1e-9
    if error_type is not None:
        attributes["error.type"] = error_type


def full_url(request: Any) -> str:
    """Return the URL of a request without its query; the host is what the client says it is."""
    host = request.META.get("HTTP_HOST") or request.META.get("SERVER_NAME", "")
    return f"{request.scheme}://{host}{request.path}"


def call(hook: Callable[..., None], *arguments: Any) -> None:
    """Call a hook of the project, which must not fail the request."""
    try:
        hook(*arguments)
    except Exception:
        report_once(f"The hook {hook!r} failed", exc_info=True)


def propagate_back(response: Any) -> None:
    """Let a response propagator of opentelemetry-instrumentation write its headers, if a project has set one."""
    propagator = sys.modules[RESPONSE_PROPAGATORS].get_global_response_propagator()
    if propagator is not None and not response.streaming:
        propagator.inject(response)


def type_name(error: BaseException) -> str:
    """Return the name of an exception's type as ``exception.type`` has it."""
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module in (None, "builtins") else f"{module}.{kind.__qualname__}"


def host_name(host: str) -> str:
    """Return the host of a Host header, which may be forged, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and (":" not in name or name[-1:] == "]") else host


def redacted_query(query: str, redact: tuple[str, ...]) -> str:
    """Return the query string with the values of parameters masked that are credentials by their name."""
    parts = query.split("&")
    for at, part in enumerate(parts):
        name, equals, value = part.partition("=")
        if equals and value:
            lowered = name.lower().replace("-", "_")
            if name.lower() in SIGNATURES or any(word in lowered for word in redact):
                parts[at] = f"{name}={REDACTED}"
    return "&".join(parts)

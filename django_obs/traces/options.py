"""What opentelemetry-instrumentation-django lets its users choose about requests, as plain data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

logger = logging.getLogger("django_obs")

REDACTED = "[REDACTED]"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Hooks, excluded URLs and captured headers. None and () choose nothing.

    The hooks are ``request_hook(span, request)`` and ``response_hook(span, request, response)``.
    """

    request_hook: Callable[..., None] | None = None
    response_hook: Callable[..., None] | None = None
    excluded_urls: re.Pattern[str] | None = None
    """Searched in the URL without its query."""
    request_headers: re.Pattern[str] | None = None
    """Names of headers to capture, matched wholly and whatever their case."""
    response_headers: re.Pattern[str] | None = None
    sanitized_headers: re.Pattern[str] | None = None
    """Searched in the names of captured headers; their values are masked."""
    request_attributes: tuple[str, ...] = ()
    """Attributes of the request object that become attributes of its span."""
    tracer: Any = None
    """A tracer of the API, of the provider that was given or of the global one; None is that of the app."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> RequestOptions:
        """Read the variables of the instrumentation package."""
        capture = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"
        own = "OTEL_PYTHON_DJANGO_EXCLUDED_URLS"
        return cls(
            excluded_urls=_read(environ, own if own in environ else "OTEL_PYTHON_EXCLUDED_URLS"),
            request_headers=_read(environ, capture + "SERVER_REQUEST", re.IGNORECASE),
            response_headers=_read(environ, capture + "SERVER_RESPONSE", re.IGNORECASE),
            # What nobody can read might have meant any header.
            sanitized_headers=_read(environ, capture + "SANITIZE_FIELDS", re.IGNORECASE, otherwise=re.compile("")),
            request_attributes=tuple(_split(environ.get("OTEL_PYTHON_DJANGO_TRACED_REQUEST_ATTRS", ""))),
        )

    def with_arguments(
        self,
        *,
        request_hook: Callable[..., None] | None = None,
        response_hook: Callable[..., None] | None = None,
        excluded_urls: str | None = None,
        tracer: Any = None,
    ) -> RequestOptions:
        """Return these options with what was given to ``DjangoInstrumentor().instrument()``."""
        options = replace(self, request_hook=request_hook, response_hook=response_hook, tracer=tracer)
        return options if excluded_urls is None else replace(options, excluded_urls=any_of(excluded_urls))

    def __bool__(self) -> bool:
        """Tell whether anything was chosen; if not, a request need not look."""
        return self != NOTHING

    def is_excluded(self, url: str) -> bool:
        """Tell whether a URL (scheme, host and path) makes no span."""
        return self.excluded_urls is not None and self.excluded_urls.search(url) is not None

    def of_request(self, request: Any) -> dict[str, Any]:
        """Return the attributes that were asked for, as text, and the captured headers of a Django request."""
        attributes: dict[str, Any] = {}
        for name in self.request_attributes:
            value = getattr(request, name, None)
            if value is not None:
                attributes[name] = str(value)
        if self.request_headers is not None:
            meta = request.META
            headers = ((key[5:].replace("_", "-"), meta[key]) for key in meta if key.startswith("HTTP_"))
            attributes.update(self._captured("http.request.header.", self.request_headers, headers))
        return attributes

    def of_response(self, response: Any) -> dict[str, Any]:
        """Return the captured headers of a Django response."""
        if self.response_headers is None:
            return {}
        return self._captured("http.response.header.", self.response_headers, response.items())

    def _captured(
        self, prefix: str, wanted: re.Pattern[str], headers: Iterable[tuple[str, str]]
    ) -> dict[str, list[str]]:
        captured: dict[str, list[str]] = {}
        for name, value in headers:
            if wanted.fullmatch(name):
                if self.sanitized_headers is not None and self.sanitized_headers.search(name):
                    value = REDACTED
                captured[prefix + name.lower().replace("-", "_")] = [value]
        return captured


def any_of(patterns: str, flags: int = 0) -> re.Pattern[str] | None:
    """Compile a comma-separated list of regular expressions; None if it is empty."""
    found = _split(patterns)
    return re.compile("|".join(found), flags) if found else None


def _read(
    environ: Mapping[str, str], name: str, flags: int = 0, otherwise: re.Pattern[str] | None = None
) -> re.Pattern[str] | None:
    """Return what a variable lists, `otherwise` if it is no list of regular expressions: that is reported."""
    text = environ.get(name, "")
    try:
        return any_of(text, flags)
    except (re.error, RecursionError, OverflowError) as error:
        logger.warning("%s=%r is not a list of regular expressions, ignored: %s", name, text[:200], error)
        return otherwise


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


NOTHING = RequestOptions()

# What requests are traced with, None if nothing was chosen. Read twice for each request, so not by way of a function;
# always as `options.in_force`, since it changes.
in_force: RequestOptions | None = None


def use(options: RequestOptions | None) -> None:
    """Let requests be traced with these options from now on; None for nothing chosen."""
    global in_force
    in_force = options or None

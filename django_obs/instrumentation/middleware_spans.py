"""Each middleware as a span, nested as they are in ``MIDDLEWARE`` (``TRACES.MIDDLEWARE``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

# It makes the span that the others belong to.
OUTERMOST = "django_obs.middleware.ObservabilityMiddleware"


class MiddlewareInstrumentation:
    """Wraps what ``MIDDLEWARE`` names, while the handler loads it.

    ``tracer`` makes the spans; ``current_span`` returns the span that a middleware belongs to, or None for no span.
    """

    def __init__(self, *, tracer: Any, current_span: Callable[[], Any]) -> None:
        self.tracer = tracer
        self.current_span = current_span

    def install(self) -> None:
        """Have handlers that load their middleware from now on load it wrapped."""
        from django.core.handlers import base

        import_string = base.import_string  # type: ignore[attr-defined]
        if hasattr(import_string, "_django_obs"):
            return

        def import_wrapped(dotted_path: str) -> Any:
            # The module has no other use for import_string() than to load MIDDLEWARE.
            factory = import_string(dotted_path)
            return factory if dotted_path == OUTERMOST else self.wrap(factory, dotted_path)

        import_wrapped._django_obs = True  # type: ignore[attr-defined]
        base.import_string = import_wrapped  # type: ignore[attr-defined]

    def wrap(self, factory: Any, path: str) -> Callable[..., Any]:
        """Return a factory that says of sync and async what the other one says, and makes traced middleware."""

        def traced_factory(get_response: Callable[..., Any]) -> Any:
            middleware = factory(get_response)
            return None if middleware is None else TracedMiddleware(middleware, path, self)

        traced_factory.sync_capable = getattr(factory, "sync_capable", True)  # type: ignore[attr-defined]
        traced_factory.async_capable = getattr(factory, "async_capable", False)  # type: ignore[attr-defined]
        return traced_factory


class TracedMiddleware:
    """A middleware with a span around its call; its ``process_*`` hooks are found through it."""

    def __init__(self, middleware: Any, path: str, instrumentation: MiddlewareInstrumentation) -> None:
        self._middleware = middleware
        self._name = path.rpartition(".")[2]
        self._path = path
        self._current_span = instrumentation.current_span
        self._tracer = instrumentation.tracer
        self._is_async = iscoroutinefunction(middleware)
        if self._is_async:
            markcoroutinefunction(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._middleware, name)

    def __call__(self, request: Any) -> Any:
        if self._current_span() is None:
            return self._middleware(request)
        if self._is_async:
            return self._acall(request)
        with self._span():
            return self._middleware(request)

    async def _acall(self, request: Any) -> Any:
        with self._span():
            return await self._middleware(request)

    def _span(self) -> Any:
        return self._tracer.start_as_current_span(self._name, attributes={"django.middleware.name": self._path})

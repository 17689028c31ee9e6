"""opentelemetry-instrumentation-django's instrumentor, with our middleware in place of its own."""

from __future__ import annotations

from typing import Any

from opentelemetry.instrumentation.django import DjangoInstrumentor as OfficialInstrumentor
from opentelemetry.trace import get_tracer

from django_obs import __version__

from . import options
from .options import RequestOptions

MIDDLEWARE = "django_obs.middleware.ObservabilityMiddleware"


class DjangoInstrumentor(OfficialInstrumentor):
    """The official instrumentor: the same keyword arguments, hooks, environment variables and sqlcommenter.

    ``INSTALLED_APPS`` does without it; it is for code that instruments by hand, and needs the app all the same.
    """

    _opentelemetry_middleware = MIDDLEWARE

    # The base class keeps one instance per class, in an attribute that a subclass would inherit.
    _instance = None
    _displaced = False

    def _instrument(self, **kwargs: Any) -> None:
        from django.conf import settings

        chosen = RequestOptions.from_environment().with_arguments(
            request_hook=kwargs.get("request_hook"),
            response_hook=kwargs.get("response_hook"),
            excluded_urls=kwargs.get("excluded_urls"),
            tracer=get_tracer("django_obs", __version__, kwargs.get("tracer_provider")),
        )
        options.use(chosen)
        # The app's ready() has placed the middleware as a rule; twice would make two spans of a request.
        self._displaced = MIDDLEWARE in settings.MIDDLEWARE
        if self._displaced:
            settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if each != MIDDLEWARE]
        super()._instrument(**kwargs)  # type: ignore[no-untyped-call]

    def _uninstrument(self, **kwargs: Any) -> None:
        from django.conf import settings

        # The app goes on with what the environment says.
        options.use(RequestOptions.from_environment())
        super()._uninstrument(**kwargs)  # type: ignore[no-untyped-call]
        if self._displaced:
            settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]

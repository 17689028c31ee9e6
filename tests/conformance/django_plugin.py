"""A pytest plugin that puts our instrumentor where the tests of opentelemetry-instrumentation-django look for theirs.

    pytest -p tests.conformance.django_plugin <checkout>/instrumentation/opentelemetry-instrumentation-django/tests

The tests configure Django themselves; the app, which our middleware needs, is added to what they configure. With
``FOREIGN_PROVIDER`` in the environment spans come from the SDK's provider, as where another one was installed before
ours; else from ours. Semantic conventions are always the stable ones.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import django
from django import conf

if "FOREIGN_PROVIDER" not in os.environ:
    from tests.conformance import sdk_plugin as sdk_plugin

import opentelemetry.instrumentation.django as official

from django_obs.traces import options
from django_obs.traces.instrumentor import DjangoInstrumentor
from django_obs.traces.requests import RequestTracing

os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
official.DjangoInstrumentor = DjangoInstrumentor  # type: ignore[misc]
configure = conf.LazySettings.configure


def configure_with_app(self: Any, *args: Any, **options: Any) -> None:
    configure(
        self,
        *args,
        INSTALLED_APPS=["django_obs"],
        DJANGO_OBS={
            "LOGS": {"ENABLED": False},
            "METRICS": {"ENABLED": False},
            "TRACES": {"INSTRUMENT": []},
            "EXCLUDED_PATHS": [],
        },
        **options,
    )
    django.setup()
    # The tests have the instrumentor place the middleware, and look for it in Django's own default, one list for all.
    self.MIDDLEWARE = conf.global_settings.MIDDLEWARE


open_request = RequestTracing.open_request


def look_and_open(self: RequestTracing, scope: Any, request: Any) -> None:
    """Look again at each request, as the official middleware does: tests change its class and the environment."""
    chosen = options.in_force
    if chosen is not None:
        now = options.RequestOptions.from_environment()
        options.in_force = replace(
            chosen,
            request_headers=now.request_headers,
            response_headers=now.response_headers,
            sanitized_headers=now.sanitized_headers,
            request_hook=official._DjangoMiddleware._otel_request_hook,
            response_hook=official._DjangoMiddleware._otel_response_hook,
        )
    open_request(self, scope, request)


RequestTracing.open_request = look_and_open  # type: ignore[method-assign]
conf.LazySettings.configure = configure_with_app  # type: ignore[method-assign]

OLD = "asserts attribute names that the stable conventions have replaced"
METRICS = "asserts metrics of OpenTelemetry; ours are Prometheus's"
PLACE = "asserts the dotted path of the official middleware"
NAME = "a method that is not known makes the name HTTP and the route, as the conventions have it"
EXCEPTIONS = {
    "test_error": OLD,
    "test_error_both_semconv": OLD,
    "test_templated_route_get": OLD,
    "test_templated_route_get_both_semconv": OLD,
    "test_traced_get": OLD,
    "test_traced_get_both_semconv": OLD,
    "test_traced_post": OLD,
    "test_traced_post_both_semconv": OLD,
    "test_django_with_wsgi_instrumented": OLD,
    "test_wsgi_metrics": METRICS,
    "test_wsgi_metrics_new_semconv": METRICS,
    "test_wsgi_metrics_both_semconv": METRICS,
    "test_metrics_recorded_with_exception": METRICS,
    "test_span_ended_after_metrics_recorded": METRICS,
    "test_middleware_added_at_position": PLACE,
    "test_middleware_added_at_position_if_wrong_position": PLACE,
    "test_nonstandard_http_method_span_name": NAME,
    "test_nonstandard_http_method_span_name_new_semconv": NAME,
    "test_nonstandard_http_method_span_name_both_semconv": NAME,
    "test_empty_path": "a route has its leading slash: GET / where the official middleware says GET empty",
    "test_hooks": "asserts that the hook gets an instance of the SDK's class",
}
# What happened says more than that it became a 500. The tests for ASGI do not look at it.
EXCEPTIONS_OF_WSGI = {"test_error_new_semconv": "error.type is the type of the exception, not 500"}


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    def is_exception(item: Any) -> bool:
        name = item.originalname
        return name in EXCEPTIONS or (name in EXCEPTIONS_OF_WSGI and item.path.name == "test_middleware.py")

    config.hook.pytest_deselected(items=[item for item in items if is_exception(item)])
    items[:] = [item for item in items if not is_exception(item)]

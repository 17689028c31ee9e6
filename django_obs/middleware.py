"""One pass over each request that feeds all three signals: its server span, its metrics and its access line."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from random import getrandbits
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.conf import settings as project
from django.core.signals import got_request_exception

from django_obs import runtime
from django_obs.context import Scope, current
from django_obs.lifecycle import guard
from django_obs.semconv import http_route, is_request_id, loaded_user_id
from django_obs.telemetry import compile_globs

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from django.urls import ResolverMatch

    from django_obs.telemetry import Telemetry

logger = logging.getLogger("django_obs")

Opened = TypeVar("Opened")

# nginx sends seconds ("t=1700000000.123"), Heroku milliseconds, Apache's %t microseconds: told apart by their size.
QUEUE_START = re.compile(r"(?:t=)?([0-9]{10,16})(\.[0-9]{1,9})?").fullmatch
# Routes come from the project's own code.
REMEMBERED = 4096
# nginx's status for a client that went away before it had its answer.
CLIENT_CLOSED_REQUEST = 499


class ObservabilityMiddleware:
    """Times a request once, resolves nothing twice, and never lets telemetry fail it. Natively sync and async."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.failed: set[str] = set()
        telemetry: Telemetry = apps.get_app_config("django_obs").telemetry  # type: ignore[attr-defined]
        # Whether the server's word on http or https holds: asking `scheme` asks the settings each time.
        self.plain_scheme = not project.SECURE_PROXY_SSL_HEADER
        # Tells whether a path shall leave no line, sample or span.
        self.is_excluded = compile_globs(telemetry.settings.excluded_paths)
        self.traces = self._opened("open_tracing", telemetry.open_tracing)
        self.instruments = self._opened("open_instruments", telemetry.open_instruments)
        if self.instruments is not None:
            # Before a server forks its workers, so that each finds the metrics made.
            try:
                self.instruments.prepare()
            except Exception:
                self.swallow("prepare")
        self.access = telemetry.access
        self.routes: dict[str, str] = {}  # by what the resolver calls them
        self.trace_header = telemetry.settings.traces.response_header if self.traces is not None else ""
        self.trace_header_key = self.trace_header.lower()
        if runtime.role() == "process":
            runtime.set_role("web")
        got_request_exception.connect(note_unhandled, dispatch_uid="django_obs")
        self.async_mode = iscoroutinefunction(get_response)
        if self.async_mode:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self.async_mode:
            return self.__acall__(request)
        scope = Scope("request", started=perf_counter_ns())
        token = current.set(scope)
        try:
            self.open(scope, request)
            response: HttpResponseBase = self.get_response(request)
        except BaseException as error:
            scope.error = error
            self.close(scope, request, None)
            raise
        else:
            self.answer(scope, request, response)
            return response
        finally:
            self.leave(scope)
            current.reset(token)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        scope = Scope("request", started=perf_counter_ns())
        token = current.set(scope)
        try:
            self.open(scope, request)
            response: HttpResponseBase = await self.get_response(request)
        except BaseException as error:
            # The task of a client that went away is cancelled.
            scope.error = error
            self.close(scope, request, None)
            raise
        else:
            self.answer(scope, request, response)
            return response
        finally:
            self.leave(scope)
            current.reset(token)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Note what a view raised, whether or not somebody makes a page of it."""
        scope = current.get()
        if scope is not None:
            scope.exception = exception

    def open(self, scope: Scope, request: HttpRequest) -> None:
        """Start the span and count the request."""
        try:
            guard.ensure_process()
            meta = request.META
            scope.request = request
            scope.method = request.method or ""
            scope.path = path = request.path
            scope.scheme = (request._get_scheme() if self.plain_scheme else request.scheme) or ""  # type: ignore[attr-defined]
            if self.is_excluded(path):
                scope.excluded = True
                if self.traces is not None:
                    self.traces.suppress(scope)
                return
            given_id = meta.get("HTTP_X_REQUEST_ID")
            if given_id is not None and is_request_id(given_id):
                scope.request_id = given_id
            queued_since = meta.get("HTTP_X_REQUEST_START")
            if queued_since is not None:
                scope.queue_ns = waited_ns(queued_since)
            if self.traces is not None:
                try:
                    self.traces.open_request(scope, request)
                except Exception:
                    # The others have the request all the same, with an id.
                    self.swallow("open_request")
            if not scope.request_id:
                # The trace id is as unique, and one id less to carry around.
                scope.request_id = scope.trace_id or f"{getrandbits(128):032x}"
            if self.instruments is not None:
                self.instruments.request_started(scope)
        except Exception:
            self.swallow("open")

    def answer(self, scope: Scope, request: HttpRequest, response: HttpResponseBase) -> None:
        """Close the request now, or when the last byte of a stream has gone."""
        if scope.excluded:
            if response.status_code < 500:
                # Else Django itself would log what is excluded, a missing favicon for one.
                request._django_obs_access = True  # type: ignore[attr-defined]
            return
        try:
            if self.trace_header and scope.trace_id:
                # As ``headers[name] = value`` does once it has checked both; this name is checked, the id hexadecimal.
                response.headers._store[self.trace_header_key] = (self.trace_header, scope.trace_id)
            if response.streaming:
                self.follow_stream(scope, request, response)
            else:
                self.close(scope, request, response)
        except Exception:
            self.swallow("answer")

    def enter(self, scope: Scope) -> None:
        """Make the request's span current again, for the next part of its stream."""
        if scope.span is not None and self.traces is not None:
            try:
                self.traces.enter(scope)
            except Exception:
                self.swallow("enter")

    def leave(self, scope: Scope) -> None:
        """Restore the OpenTelemetry context that was there before the request."""
        if scope.activation is not None and self.traces is not None:
            try:
                self.traces.leave(scope)
            except Exception:
                self.swallow("leave")

    def close(self, scope: Scope, request: HttpRequest, response: HttpResponseBase | None, size: int = -1) -> None:
        """Record the finished request in all signals, once; if one fails the others still have it."""
        if scope.ended or scope.excluded:
            return
        scope.ended = perf_counter_ns()
        try:
            if response is None:
                scope.status = CLIENT_CLOSED_REQUEST if isinstance(scope.error, asyncio.CancelledError) else 500
            else:
                scope.status = response.status_code
                if size < 0 and not response.streaming:
                    size = len(cast("Any", response).content)
            scope.size = size
            # Not before: a middleware of the project may have found out who it is behind a proxy.
            scope.client = request.META.get("REMOTE_ADDR")
            match = request.resolver_match
            if match is not None:
                scope.name = match.view_name or ""
                scope.route = self.routes.get(match.route) or self.remember_route(match)
            own = request.__dict__
            if "user" in own or "_acached_user" in own:
                scope.user_id = loaded_user_id(request)
        except Exception:
            self.swallow("describe")
        if self.instruments is not None:
            try:
                self.instruments.request_finished(scope, request, response)
            except Exception:
                self.swallow("metrics")
        if self.access is not None:
            try:
                self.access.emit(scope)
            except Exception:
                self.swallow("access")
        if self.traces is not None:
            try:
                self.traces.close_request(scope, request, response)
            except Exception:
                self.swallow("traces")
        # The access line waits with its scope, and shall not keep these until it is written.
        scope.request = scope.span = scope.exception = scope.error = None

    def remember_route(self, match: ResolverMatch) -> str | None:
        """Return the route of a resolved request, and keep it: the same text each time is found faster in tables."""
        route = http_route(match)
        if route is not None:
            if len(self.routes) >= REMEMBERED:
                self.routes.clear()
            self.routes[match.route] = route
        return route

    def follow_stream(self, scope: Scope, request: HttpRequest, response: HttpResponseBase) -> None:
        """Keep the request current while its stream is read, and close it after the last byte."""
        stream = cast("Any", response)
        # Whatever happens to the stream (never read, sent by sendfile), a server calls close() at its end.
        stream._resource_closers.append(lambda: self.close_stream(scope, request, response))
        if getattr(response, "file_to_stream", None) is not None:
            return  # a server that can send the file itself must still find it
        if stream.is_async:
            stream.streaming_content = self.watch_async(stream.streaming_content, scope, request, response)
        else:
            stream.streaming_content = self.watch(stream.streaming_content, scope, request, response)

    def watch(
        self, parts: Iterator[bytes], scope: Scope, request: HttpRequest, response: HttpResponseBase
    ) -> Iterator[bytes]:
        """Yield the parts; the server reads them after the middleware has returned, in a context without scope."""
        scope.size = 0
        try:
            while True:
                with self.resumed(scope):
                    part = next(parts, None)
                if part is None:
                    break
                scope.size += len(part)
                yield part
        except GeneratorExit:
            raise
        except BaseException as error:
            scope.error = error
            raise
        finally:
            self.close_stream(scope, request, response)

    async def watch_async(
        self, parts: AsyncIterator[bytes], scope: Scope, request: HttpRequest, response: HttpResponseBase
    ) -> AsyncIterator[bytes]:
        """Yield the parts; nothing is left in a context that may be a thread's, since WSGI reads the stream too."""
        scope.size = 0
        try:
            while True:
                with self.resumed(scope):
                    part = await anext(parts, None)
                if part is None:
                    break
                scope.size += len(part)
                yield part
        except GeneratorExit:
            raise
        except BaseException as error:
            scope.error = error
            raise
        finally:
            self.close_stream(scope, request, response)

    def close_stream(self, scope: Scope, request: HttpRequest, response: HttpResponseBase) -> None:
        """Close a request whose stream is over, as the current one again: its access line shall have its ids."""
        if scope.ended:
            return
        with self.resumed(scope):
            self.close(scope, request, response, scope.size)

    @contextmanager
    def resumed(self, scope: Scope) -> Iterator[None]:
        """Make a request whose middleware has returned the current one again."""
        outer = current.get()
        current.set(scope)
        self.enter(scope)
        try:
            yield
        finally:
            self.leave(scope)
            # By value: a token is of no use where the stream goes on in another context.
            current.set(outer)

    def _opened(self, step: str, door: Callable[[], Opened] | None) -> Opened | None:
        """Open a door, which imports what is behind it: a site whose libraries do not fit is served without them."""
        try:
            return door() if door is not None else None
        except Exception:
            self.swallow(step)
            return None

    def swallow(self, step: str) -> None:
        """Report a failure of ours once per step; the request goes on."""
        if step not in self.failed:
            self.failed.add(step)
            logger.warning("ObservabilityMiddleware.%s failed; reported once", step, exc_info=True)


def note_unhandled(sender: Any, request: HttpRequest | None = None, **kwargs: Any) -> None:
    """Keep the exception that becomes a 500 page, for the span and the access line."""
    scope = current.get()
    if scope is not None:
        scope.error = sys.exc_info()[1]


def waited_ns(queued_since: str) -> int | None:
    """Return the nanoseconds since the time in an ``X-Request-Start`` header, or None if it makes no sense."""
    match = QUEUE_START(queued_since)
    if match is None:
        return None
    whole, fraction = match.groups("")
    since = float(whole + fraction)
    for nanoseconds, above in ((1_000, 1e14), (1_000_000, 1e11), (1_000_000_000, 0.0)):
        if since > above:
            waited = time_ns() - int(since * nanoseconds)
            # Clocks of two machines differ a little; a difference of hours is not a queue.
            return max(0, waited) if waited < 3600 * 10**9 else None
    return None

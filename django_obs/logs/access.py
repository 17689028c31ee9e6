"""One canonical line for each request: all that is known about it once it is done."""

from __future__ import annotations

import logging
from time import time
from typing import Any

from django_obs.context import Scope
from django_obs.logs.console import ACCESS
from django_obs.logs.entry import AccessValues, Stamper, access_fields, failure
from django_obs.logs.handlers import NonBlockingHandler
from django_obs.logs.values import MAX_TEXT

LOGGER = ACCESS


class AccessLog:
    """Writes the access line, logger ``django_obs.access``.

    5xx are errors and carry the exception, 4xx are warnings, as in ``django.utils.log.log_response()``; the rest is
    information.

    Like the access lines of servers it goes to no handler of the project's root logger: mail, Sentry and files have
    Django's own report of a failure already. Handlers on the logger itself get it.
    """

    def __init__(self, handler: NonBlockingHandler, stamper: Stamper) -> None:
        self.handler = handler
        self.stamper = stamper
        self.logger = logging.getLogger(LOGGER)

    def emit(
        self,
        scope: Scope,
        *,
        status: int,
        duration_ns: int,
        size: int | None = None,
        exc_info: Any = None,
        client: str | None = None,
        queue_ns: int | None = None,
    ) -> None:
        """Log a request that is done.

        ``duration_ns`` and ``queue_ns`` (the time it waited for us) are nanoseconds, ``size`` is bytes of the response,
        None if unknown. Never raises.
        """
        try:
            level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
            if scope.request is not None:
                # Django logs the same response once more after the middleware has returned it.
                scope.request._django_obs_access = True
            if not self.logger.isEnabledFor(level):
                return
            # Values alone, in the order of their names: whoever writes the line puts them together.
            values = (
                scope.method,
                scope.route,
                scope.path,
                status,
                duration_ns // 1000,
                None if queue_ns is None else queue_ns // 1000,
                size,
                scope.db_count,
                scope.db_ns // 1000,
                scope.cache_hits,
                scope.cache_misses,
                scope.user_id,
                client,
            )
            message = f"{scope.method} {scope.path} {status}"
            if self._is_direct() and len(message) <= MAX_TEXT:
                self._put(scope, level, message, values, exc_info)
            else:
                self._log(scope, level, message, access_fields(values), exc_info)
        except Exception:
            self.handler.listener.swallow()

    def _is_direct(self) -> bool:
        """Tell whether our handler is the only one that gets the record, unfiltered: then no record is needed."""
        return not (self.logger.handlers or self.logger.filters or self.handler.filters)

    def _put(self, scope: Scope, level: int, message: str, values: AccessValues, exc_info: Any) -> None:
        stamper = self.stamper
        self.handler.listener.put(
            (
                time(),
                level,
                logging.getLevelName(level),
                LOGGER,
                message,
                scope.ids or stamper.ids() or (scope.trace_id, ""),
                scope.request_id,
                stamper.snapshot(scope.bound) if scope.bound else None,
                values,
                failure(exc_info, stack=scope.stack() if exc_info is scope.error else None) if exc_info else None,
                None,
            )
        )

    def _log(self, scope: Scope, level: int, message: str, fields: dict[str, Any], exc_info: Any) -> None:
        if exc_info and not isinstance(exc_info, tuple):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        record = self.logger.makeRecord(LOGGER, level, __file__, 0, message, (), exc_info or None, "emit", fields)
        if not self.logger.filter(record):
            return
        for handler in (self.handler, *self.logger.handlers):
            if level >= handler.level:
                handler.handle(record)

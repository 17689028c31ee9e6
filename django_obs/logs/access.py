"""One canonical line for each request: all that is known about it once it is done."""

from __future__ import annotations

import logging
from time import time

from django_obs.context import Scope
from django_obs.logs.console import ACCESS
from django_obs.logs.entry import (
    LEVEL,
    SCOPE,
    AccessStamp,
    Stamper,
    access_fields,
    access_message,
    failure,
)
from django_obs.logs.handlers import NonBlockingHandler

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

    def emit(self, scope: Scope) -> None:
        """Log a request that is done, as its scope has it. Never raises."""
        try:
            status = scope.status
            level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
            if scope.request is not None:
                # Django logs the same response once more after the middleware has returned it.
                scope.request._django_obs_access = True
            logger = self.logger
            if not logger.isEnabledFor(level):
                return
            if scope.ids is None:
                scope.ids = self.stamper.ids()
            error, bound = scope.error, scope.bound
            stamp: AccessStamp = (
                time(),
                level,
                scope.told() if bound else scope,
                scope.db_count,
                scope.db_ns,
                scope.cache_hits,
                scope.cache_misses,
                self.stamper.snapshot(bound) if bound else None,
                None if error is None else failure(error, stack=scope.stack()),
            )
            # If our handler is the only one that gets the record, unfiltered, then no record is needed.
            if logger.handlers or logger.filters or self.handler.filters:
                self._log(stamp)
            else:
                self.handler.listener.put(stamp)
        except Exception:
            self.handler.listener.swallow()

    def _log(self, stamp: AccessStamp) -> None:
        level, error = stamp[LEVEL], stamp[SCOPE].error
        record = self.logger.makeRecord(
            LOGGER,
            level,
            __file__,
            0,
            access_message(stamp[SCOPE]),
            (),
            None if error is None else (type(error), error, error.__traceback__),
            "emit",
            access_fields(stamp),
        )
        if not self.logger.filter(record):
            return
        for handler in (self.handler, *self.logger.handlers):
            if level >= handler.level:
                handler.handle(record)

"""The caller's part: make an entry of the record, put it into the queue, return."""

from __future__ import annotations

import logging
from logging.handlers import QueueHandler
from typing import Any

from django_obs.logs.entry import Stamp, Stamper
from django_obs.logs.listener import LogListener

# Reports about ourselves. They never enter our own queue: a report about the queue would need the queue.
OWN_LOGGER = "django_obs"


class NonBlockingHandler(QueueHandler):
    """A `logging.handlers.QueueHandler` that never waits for a sink and never raises.

    Several handlers may feed one listener: one stands on the root logger, one on each logger that does not propagate.
    """

    def __init__(self, listener: LogListener, stamper: Stamper, *, duplicates: DuplicateFilter | None = None) -> None:
        super().__init__(listener.backlog)  # type: ignore[arg-type]
        self.listener: Any = listener
        self.stamper = stamper
        self.duplicates = duplicates

    def createLock(self) -> None:
        # Appending to the queue is atomic. A lock would be one more that a fork can leave locked.
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        if self.filters:
            found: Any = self.filter(record)
            if not found:
                return False
            if isinstance(found, logging.LogRecord):
                record = found
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            name = record.name
            if name[:6] == "django" and self._is_special(name, record):
                return
            self.listener.put(self.stamper.stamp(record))
        except Exception:
            self.listener.swallow()

    def _is_special(self, name: str, record: logging.LogRecord) -> bool:
        if name == OWN_LOGGER:
            self.listener.report(self.stamper.stamp(record))
            return True
        return self.duplicates is not None and self.duplicates.repeats(record)

    def prepare(self, record: logging.LogRecord) -> Stamp:
        """Return what is queued: a `Stamp` in place of the record, which stays as it is for other handlers."""
        return self.stamper.stamp(record)

    def enqueue(self, record: Any) -> None:
        """Queue a stamp."""
        self.listener.put(record)

    def handleError(self, record: logging.LogRecord) -> None:
        self.listener.swallow()

    def close(self) -> None:
        # logging.config.dictConfig() closes every handler there is; the pipeline outlives it and attaches anew.
        super().close()
        self.listener.disturbed = True


class DuplicateFilter:
    """Knows which lines of Django's say again what an access line of ours says.

    ``django.server``'s line for each request, and ``django.request``'s line for a 5xx (its traceback is in the access
    line) or for a 4xx that names no reason. Other handlers, such as ``mail_admins`` and Sentry's, still get them.
    """

    def __init__(self, scope: Any, static_url: str = "") -> None:
        self.scope = scope
        self.static_url = static_url if static_url != "/" else ""

    def repeats(self, record: logging.LogRecord) -> bool:
        status = record.__dict__.get("status_code")
        if status is None:
            return False
        if record.name == "django.server":
            # The same call reports a browser that speaks TLS to it, without arguments.
            return bool(record.args) and not self._is_static(record.args)
        if record.name != "django.request":
            return False
        if status < 500 and record.exc_info:
            return False
        return self._has_access_line(record.__dict__.get("request"))

    def _is_static(self, arguments: Any) -> bool:
        # runserver serves static files before any middleware: a missing one is told by nobody else.
        _, _, path = str(arguments[0]).partition(" ")
        return bool(self.static_url) and path.startswith(self.static_url)

    def _has_access_line(self, request: Any) -> bool:
        if request is None:
            return False
        if getattr(request, "_django_obs_access", False):
            return True
        scope = self.scope.get()
        return scope is not None and not scope.excluded and scope.request is request

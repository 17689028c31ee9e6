"""The logs signal, assembled: from the root logger to the sink."""

from __future__ import annotations

import logging
import logging.config
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from django_obs.conf import LogSettings
from django_obs.context import Scope, current
from django_obs.lifecycle import Worker
from django_obs.logs.access import AccessLog
from django_obs.logs.backlog import Backlog
from django_obs.logs.console import ConsoleHandlers, ConsoleLevels, existing_loggers, is_console
from django_obs.logs.directives import level_number
from django_obs.logs.entry import Entry, Stamper
from django_obs.logs.filters import EnvFilter
from django_obs.logs.formatters import ConsoleFormatter, JSONFormatter
from django_obs.logs.handlers import DuplicateFilter, NonBlockingHandler
from django_obs.logs.listener import LogListener
from django_obs.logs.redaction import Redaction
from django_obs.logs.sink import Sink
from django_obs.semconv import SERVING_COMMANDS

logger = logging.getLogger("django_obs")

OWN_LOGGERS = ("django_obs", "django_obs.access")
# Seconds between two looks at whether somebody has removed our handlers.
LOOK_INTERVAL = 1.0


class LogPipeline:
    """logger -> EnvFilter -> NonBlockingHandler -> Backlog -> LogListener -> formatter -> Sink."""

    name = "logs"

    def __init__(
        self,
        settings: LogSettings,
        *,
        worker: Worker,
        service_name: str = "",
        ids: Callable[[], tuple[str, str] | None] = lambda: None,
        scope: ContextVar[Scope | None] = current,
        debug: bool = False,
        one_off: bool | None = None,
        exporter: Callable[[list[Entry]], None] | None = None,
        filter_is_default: bool | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.settings = settings
        # Whether nobody has set LOGS.FILTER, so that what LOGGING says of the root logger holds.
        self.filter_is_default = (
            settings.filter == LogSettings().filter if filter_is_default is None else filter_is_default
        )
        self.service_name = service_name
        self.worker = worker
        self.filter = EnvFilter(settings.filter, scope=scope, on_change=self._filter_changed)
        self.stamper = Stamper(ids, scope, Redaction(settings.redact))
        self.backlog = Backlog(settings.queue_size)
        self.sink = sink or Sink(stream_name(settings.stream, one_off))
        self.formatter = make_formatter(settings.format, self.sink, service_name, self.stamper, debug=debug)
        self.listener = LogListener(
            self.backlog,
            self.sink,
            self.formatter,
            self.stamper,
            worker=worker,
            block=settings.overflow == "block",
            exporter=exporter,
        )
        self.duplicates = DuplicateFilter(scope, project_static_url()) if settings.access else None
        self.handler = self._make_handler()
        self.access = AccessLog(self.handler, self.stamper) if settings.access else None
        self._placed: dict[logging.Logger, NonBlockingHandler] = {}
        self.console = ConsoleHandlers()
        self.console_levels = ConsoleLevels(lambda: self.filter.directives)
        self._filtered: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
        # The clock and a dictConfig() may both find that we have to attach anew.
        self._attaching = threading.RLock()
        self._installed = False
        self._scheduled = False

    def _make_handler(self) -> NonBlockingHandler:
        return NonBlockingHandler(self.listener, self.stamper, duplicates=self.duplicates)

    # -- Installing ----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Take over the console handlers that stand, and the levels. Starts no thread, opens nothing."""
        self._installed = True
        if not self._scheduled:
            self._scheduled = True
            self.worker.every(self.settings.flush_interval, self._drain)
            self.worker.every(LOOK_INTERVAL, self.look)
            watch_configuration(self)
        self.attach()
        for error in self.filter.errors:
            logger.warning("Ignored in the filter: %s", error)

    def stamp_ids(self, ids: Callable[[], tuple[str, str] | None]) -> None:
        """Put the ids that this returns on what is logged from now on."""
        self.stamper.ids = ids

    def attach(self) -> None:
        """Stand on the root logger, and wherever a console handler stands whose records do not get there."""
        with self._attaching:
            self._attach()

    def _attach(self) -> None:
        self.listener.disturbed = False
        for name in OWN_LOGGERS:
            # A dictConfig() disables what it does not name, unless told otherwise.
            logging.getLogger(name).disabled = False
        root = logging.getLogger()
        self.console.take(root)
        self._place(root, self.handler)
        for each in existing_loggers():
            if self.console.take(each) and not self._is_reached_from(each):
                self._place(each, self._placed.get(each) or self._make_handler())
        self._respect(project_logging())
        self.filter.install()
        self._use_project_filters()
        self._filter_handlers()

    def _respect(self, project: Mapping[str, Any]) -> None:
        """Take what ``LOGGING`` says for what our own settings do not say."""
        levels = {name: each["level"] for name, each in (project.get("loggers") or {}).items() if each.get("level")}
        self.filter.spare(levels)
        level = (project.get("root") or {}).get("level")
        if level and self.filter_is_default:
            number = level if isinstance(level, int) else level_number(level)
            if number is not None:
                self.filter.default_to(number)
        for each in (logging.getLogger(), *existing_loggers()):
            for handler in each.handlers:
                # A file that gets our layout gets the ids too, and no secrets.
                if isinstance(handler.formatter, JSONFormatter | ConsoleFormatter):
                    handler.formatter.stamper = self.stamper
        formatter = self.console.formatter((JSONFormatter, ConsoleFormatter))
        if isinstance(formatter, JSONFormatter | ConsoleFormatter):
            formatter.stamper = self.stamper
            if isinstance(formatter, JSONFormatter) and formatter.service is None:
                formatter.service = self.service_name
            self.listener.formatter = formatter

    def _use_project_filters(self) -> None:
        learned = self.console_levels.learn(self.console, self.filter.gives)
        for each, handler in self._placed.items():
            kept = self.console.filters(each) + ([self.console_levels] if learned else [])
            handler.filters[:] = [*kept, *(each for each in handler.filters if each is self.filter)]

    def _place(self, each: logging.Logger, handler: NonBlockingHandler) -> None:
        if handler not in each.handlers:
            each.addHandler(handler)
        self._placed[each] = handler

    def _is_reached_from(self, each: logging.Logger) -> bool:
        """Tell whether one of our handlers gets what this logger logs."""
        current_logger: logging.Logger | None = each
        while current_logger is not None:
            if any(isinstance(handler, NonBlockingHandler) for handler in current_logger.handlers):
                return True
            if not current_logger.propagate:
                return False
            current_logger = current_logger.parent
        return False

    def look(self) -> None:
        """Attach anew if somebody has configured logging since."""
        if not self._installed:
            return
        root = logging.getLogger()
        if self.listener.disturbed or self.handler not in root.handlers or any(map(is_console, root.handlers)):
            self.attach()

    def uninstall(self) -> None:
        """Put everything back as it stood."""
        self._installed = False
        for each, handler in self._placed.items():
            each.removeHandler(handler)
        self._placed.clear()
        self.console.put_back()
        self._filter_changed()
        self.filter.uninstall()

    def _filter_changed(self) -> None:
        if hasattr(self, "_filtered"):
            self._filter_handlers()

    def _filter_handlers(self) -> None:
        """Let the filter look at each record only while a directive asks for it.

        Also before the handlers of others: their loggers make records then that nobody else has asked for.
        """
        handlers = {handler for each in (logging.getLogger(), *existing_loggers()) for handler in each.handlers}
        wanted = handlers if self.filter.is_dynamic and self._installed else set()
        for handler in set(self._filtered) - wanted:
            handler.removeFilter(self.filter)
            self._filtered.discard(handler)
        for handler in wanted:
            handler.addFilter(self.filter)
            self._filtered.add(handler)

    # -- Running -------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self.filter.state.until is not None:
            self.filter.expire()
        self.listener.drain()

    def after_fork(self) -> None:
        """Forget what the parent has queued; it writes that itself."""
        self._attaching = threading.RLock()
        self.filter.after_fork()
        self.listener.after_fork()

    def force_flush(self, timeout: float) -> bool:
        """Write what is queued, within so many seconds; tell whether all of it was."""
        return self.listener.flush(timeout)

    def shutdown(self, timeout: float) -> bool:
        """Write what is queued and stop; later records are written by the thread that logs them."""
        complete = self.listener.stop(timeout)
        self.worker.stop(0.1)
        # What other threads have queued between the last round and the end of the worker.
        return self.listener.drain() and complete

    def stats(self) -> dict[str, int]:
        """Return what this process has counted: lines written, dropped (also by level), failed; and those queued."""
        return self.listener.stats()


def project_logging() -> Mapping[str, Any]:
    """Return the project's ``LOGGING``, empty where there is none."""
    from django.conf import settings

    return (getattr(settings, "LOGGING", None) or {}) if settings.configured else {}


def project_static_url() -> str:
    from django.conf import settings

    return str(getattr(settings, "STATIC_URL", None) or "") if settings.configured else ""


def stream_name(wanted: str, one_off: bool | None) -> str:
    if wanted != "auto":
        return wanted
    return "stderr" if (is_one_off_command() if one_off is None else one_off) else "stdout"


def is_one_off_command() -> bool:
    """Tell whether this process is a management command that does its work and ends."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    if program not in ("manage.py", "django-admin", "django-admin.py", "django"):
        return False
    return len(sys.argv) < 2 or sys.argv[1] not in SERVING_COMMANDS


def make_formatter(
    wanted: str, sink: Sink, service_name: str, stamper: Stamper, *, debug: bool
) -> JSONFormatter | ConsoleFormatter:
    if wanted == "auto":
        wanted = "console" if debug and sink.is_terminal else "json"
    if wanted == "console":
        # https://no-color.org
        return ConsoleFormatter(colours=sink.is_terminal and not os.environ.get("NO_COLOR"), stamper=stamper)
    return JSONFormatter(service=service_name, stamper=stamper)


# -- Configurations that come later ------------------------------------------------------------------------------------

_watching: weakref.WeakSet[LogPipeline] = weakref.WeakSet()


def watch_configuration(pipeline: LogPipeline) -> None:
    """Attach the pipeline anew right after each ``logging.config.dictConfig()``."""
    _watching.add(pipeline)
    configurator: Any = logging.config.dictConfigClass
    if getattr(configurator, "is_watched", False):
        return

    class WatchedConfigurator(configurator):  # type: ignore[misc]
        is_watched = True

        def configure(self) -> None:
            super().configure()
            for each in list(_watching):
                each.look()

    logging.config.dictConfigClass = WatchedConfigurator

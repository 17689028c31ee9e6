"""A line, from the logger to the stream's door; and what in ``LOGGING`` takes lines away or doubles them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from django_obs.conf import get_settings, origin_of
from django_obs.logs.console import existing_loggers
from django_obs.logs.handlers import NonBlockingHandler
from django_obs.logs.pipeline import LogPipeline
from django_obs.logs.sink import Sink

from .collector import MARK, TEST
from .finding import Finding, off, ok, warning
from .finding import broken as is_broken

CONSOLES = ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/proc/self/fd/2", "/dev/fd/1", "/dev/fd/2", "/dev/tty")


class Catch(Sink):
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("stderr")
        self.content = b""

    def write(self, data: bytes) -> bytes:
        """Keep it; there is always room."""
        self.content += data
        return b""


def examine(pipeline: LogPipeline | None, timeout: float) -> Iterator[Finding]:
    """Log a line and see it come out; look at what else prints, and at loggers that do not get through."""
    if pipeline is None:
        yield off("line.written", f"{origin_of('logs', 'enabled')} switches the logs off; LOGGING alone holds.")
        return
    yield from _send(pipeline, timeout)
    second = sorted({name for name, handler in _handlers() if prints(handler)})
    if second:
        yield warning(
            "line.once",
            f"Lines are printed a second time by {', '.join(second)}.",
            "Remove that handler from LOGGING (or from what adds it): django_obs prints what reaches the root logger.",
        )
    else:
        yield ok("line.once", "No other handler prints to the console.")
    names = [repr(each.name) for each in existing_loggers() if each.disabled and each.name.partition(".")[0] in roots()]
    if names:
        yield warning(
            "line.disabled_loggers",
            f"LOGGING has disabled the loggers {', '.join(names[:5])}{' and others' if names[5:] else ''}.",
            'Set "disable_existing_loggers": False in LOGGING; its default is True.',
        )
    lost = [repr(each.name) for each in existing_loggers() if goes_nowhere(each)]
    if lost:
        yield warning(
            "line.lost_loggers",
            f"What the loggers {', '.join(lost[:5])}{' and others' if lost[5:] else ''} log is seen by nobody: they "
            "propagate nothing and have no handler.",
            'Remove "propagate": False from LOGGING, or give them a handler.',
        )


def _send(pipeline: LogPipeline, timeout: float) -> Iterator[Finding]:
    logger = logging.getLogger(MARK)
    if logger.manager.disable >= logging.WARNING:
        yield is_broken(
            "line.written",
            f"logging.disable({logging.getLevelName(logger.manager.disable)}) silences all loggers.",
            "Remove that call from the project.",
        )
        return
    level = next((each for each in (logging.INFO, logging.WARNING) if logger.isEnabledFor(each)), None)
    filter_text = get_settings().logs.filter
    if level is None:
        yield warning(
            "line.written",
            f"No test line was sent: the filter {filter_text!r} lets nothing below ERROR through.",
            f"If you want more, change {origin_of('logs', 'filter')}, or manage.py obs filter info --for 10m.",
        )
        return
    listener: Any = pipeline.listener
    pipeline.force_flush(timeout)
    catch = Catch()
    kept, listener.sink = listener.sink, catch
    exporter, listener.exporter = listener.exporter, None
    try:
        logger.log(level, TEST, extra={MARK: True})
        pipeline.force_flush(timeout)
    finally:
        listener.sink, listener.exporter = kept, exporter
    count = catch.content.count(TEST.encode())
    if count == 1:
        yield ok("line.written", "A test line came out of the pipeline once.")
    elif count:
        yield is_broken("line.written", f"A test line came out {count} times.", "Report it: this should not be.")
    else:
        yield is_broken(
            "line.written",
            "A test line did not come out of the pipeline.",
            f"Something has removed our handler from the root logger, or keeps {MARK!r} from it: look for "
            "logging.config, logging.disable() and filters on the root logger's handlers.",
        )


def roots() -> frozenset[str]:
    """Return the names of packages whose lines somebody wants to see."""
    from django.apps import apps

    return frozenset({"django", *(config.name.partition(".")[0] for config in apps.get_app_configs())})


def _handlers() -> Iterator[tuple[str, logging.Handler]]:
    for each in (logging.getLogger(), *existing_loggers()):
        for handler in each.handlers:
            yield f"{type(handler).__name__} of the logger {each.name!r}", handler


def prints(handler: logging.Handler) -> bool:
    """Tell whether a handler that is not ours writes to the standard output or error, by whatever way."""
    if isinstance(handler, NonBlockingHandler):
        return False
    if isinstance(handler, logging.FileHandler):
        return handler.baseFilename in CONSOLES or os.path.realpath(handler.baseFilename).startswith("/dev/pts/")
    # rich has a console with a file.
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    try:
        return stream is not None and stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False


def goes_nowhere(each: logging.Logger) -> bool:
    """Tell whether nobody gets what a logger logs, although nobody said NullHandler."""
    if each.disabled or each.level > logging.CRITICAL:
        return False
    current: logging.Logger | None = each
    while current is not None:
        if current.handlers:
            return False
        if not current.propagate:
            return True
        current = current.parent
    return False

"""The console handlers that a project's ``LOGGING`` has set up: taken over, with what they were asked to keep out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable

from django_obs.logs.directives import Directive

ACCESS = "django_obs.access"


def is_console(handler: logging.Handler) -> bool:
    """Tell whether a handler prints to the standard output or error of this process."""
    if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return False
    stream = getattr(handler, "stream", None)
    return stream is not None and any(
        stream is known for known in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    )


def existing_loggers() -> Iterable[logging.Logger]:
    return [each for each in list(logging.Logger.manager.loggerDict.values()) if isinstance(each, logging.Logger)]


class ConsoleHandlers:
    """What stood where before we came."""

    def __init__(self) -> None:
        self._taken: dict[logging.Logger, list[logging.Handler]] = {}

    def take(self, each: logging.Logger) -> list[logging.Handler]:
        """Remove a logger's console handlers and return them."""
        found = [handler for handler in each.handlers if is_console(handler)]
        for handler in found:
            each.removeHandler(handler)
        if found:
            self._taken[each] = found
        return found

    def put_back(self) -> None:
        """Let everything stand as it stood."""
        for each, handlers in self._taken.items():
            for handler in handlers:
                each.addHandler(handler)
        self._taken.clear()

    def filters(self, each: logging.Logger) -> list[logging.Filter]:
        """Return the project's filters on the handlers that were taken from a logger."""
        # Django's own keep the console silent in production, which is where lines are wanted most.
        return [
            each_filter
            for handler in self._taken.get(each, ())
            for each_filter in handler.filters
            if isinstance(each_filter, logging.Filter)
            and type(each_filter).__name__ not in ("RequireDebugTrue", "RequireDebugFalse")
        ]

    def formatter(self, kinds: tuple[type[logging.Formatter], ...]) -> logging.Formatter | None:
        """Return a formatter of one of these kinds, if a handler that was taken had one."""
        for handlers in self._taken.values():
            for handler in handlers:
                if isinstance(handler.formatter, kinds):
                    return handler.formatter
        return None

    def has(self, each: logging.Logger) -> bool:
        """Tell whether a console handler stood on this logger."""
        return bool(self._taken.get(each))

    def level(self, each: logging.Logger) -> int:
        """Return the level from which on the console got what this logger logs, 0 if there was none."""
        levels: list[int] = []
        logger: logging.Logger | None = each
        while logger is not None:
            levels += [handler.level for handler in self._taken.get(logger, ())]
            logger = logger.parent if logger.propagate else None
        return min(levels, default=0)


class ConsoleLevels(logging.Filter):
    """Keeps from our lines what ``LOGGING`` asks loggers for on behalf of other handlers.

    ``{"level": "DEBUG", "handlers": ["file", "console"]}`` with a console handler of level INFO means debug lines in
    the file alone. A directive that names the logger is a later word and wins.
    """

    def __init__(self, directives: Callable[[], tuple[Directive, ...]]) -> None:
        super().__init__()
        self.directives = directives
        self.levels: dict[str, int] = {}

    def learn(self, console: ConsoleHandlers, is_given: Callable[[str], bool]) -> bool:
        """Look which loggers log more than the console was to get; tell whether there are any."""
        self.levels = {}
        root = logging.getLogger()
        level = console.level(root) if console.has(root) else logging.INFO
        if level > root.level:
            # Also where there was no console handler: what is asked for on behalf of a file is for the file.
            self.levels[""] = level
        for each in existing_loggers():
            level = console.level(each)
            if each.level and not is_given(each.name) and level > each.level:
                self.levels[each.name] = level
        return bool(self.levels)

    def filter(self, record: logging.LogRecord) -> bool:
        name = record.name
        if name == ACCESS:
            # Nobody has asked a console for what stands in place of the server's own lines.
            return True
        while name:
            if name in self.levels:
                return record.levelno >= self.levels[name] or any(
                    len(directive.target) >= len(name) and directive.covers(record.name)
                    for directive in self.directives()
                )
            name = name.rpartition(".")[0]
        return record.levelno >= self.levels.get("", 0) or any(
            directive.covers(record.name) for directive in self.directives()
        )

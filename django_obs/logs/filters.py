"""Which records pass: directives as levels of loggers where that is enough, as a filter where it is not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

from django_obs.context import Scope, current, unscoped
from django_obs.logs.console import ACCESS
from django_obs.logs.directives import (
    OFF,
    Directive,
    DirectiveError,
    latest,
    level_name,
    most_specific_first,
    parse,
    parse_lenient,
)
from django_obs.logs.entry import STANDARD
from django_obs.semconv import loaded_user_id

# Loggers whose everyday lines say what our own lines say better, or speak of the machinery that runs us. Warnings pass.
NOISE = (
    # Servers' access lines: there is one of ours for each request.
    "aiohttp.access",
    "daphne.server",
    "django.channels.server",
    "django.server",
    "granian.access",
    "gunicorn.access",
    "hypercorn.access",
    "uvicorn.access",
    "werkzeug",
    # Watching files and templates.
    "django.template",
    "django.utils.autoreload",
    "fsevents",
    "watchdog",
    "watchfiles",
    # Clients of HTTP, gRPC, cloud services, databases and brokers, a line or more for each call.
    "amqp",
    "azure.core.pipeline.policies.http_logging_policy",
    "boto3",
    "botocore",
    "docker",
    "elastic_transport",
    "elasticsearch",
    "google.auth",
    "grpc",
    "h11",
    "h2",
    "hpack",
    "httpcore",
    "httpx",
    "kombu",
    "openai",
    "pika",
    "psycopg.pool",
    "pymongo",
    "requests",
    "s3transfer",
    "stripe",
    "urllib3",
    "websockets",
    # Telemetry about telemetry.
    "ddtrace",
    "opentelemetry",
    "sentry_sdk",
    # Libraries that tell what they think.
    "asyncio",
    "chardet",
    "charset_normalizer",
    "factory",
    "faker",
    "fontTools",
    "MARKDOWN",
    "matplotlib",
    "multipart",
    "numba",
    "parso",
    "PIL",
    "python_multipart",
)

DEFAULT_LEVEL = logging.INFO


class FilterState(NamedTuple):
    """What holds, from where, until when."""

    text: str
    source: str
    until: float | None
    """Seconds since the epoch; None for no end."""


class EnvFilter(logging.Filter):
    """Directives in force.

    Directives that depend on the logger alone become levels of stdlib loggers: a disabled call costs what it costs
    without us. Only while a directive with a span or a field stands, records are looked at one by one, on the thread
    that logs.
    """

    def __init__(
        self,
        text: str = "info",
        *,
        scope: ContextVar[Scope | None] = current,
        source: str = "settings",
        noise: Iterable[str] = NOISE,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.scope = scope
        self.noise = tuple(noise)
        self._spared: frozenset[str] = frozenset()
        self._default = DEFAULT_LEVEL
        self.on_change = on_change
        self.base = FilterState(text, source, None)
        self.state = self.base
        self.errors: list[DirectiveError] = []
        self._base_directives = parse_lenient(text, self.errors.append)
        self._lock = threading.RLock()
        self._installed = False
        # Logger name -> (the level we gave it, the level it had).
        self._given: dict[str, tuple[int, int]] = {}
        self._lowered: dict[str, int] = {}
        self._thresholds: dict[str, int] = {}
        self._dynamic: tuple[tuple[Directive, Callable[[str], object] | None], ...] = ()
        self._use(self._base_directives)

    @property
    def is_dynamic(self) -> bool:
        """Whether records have to be looked at one by one."""
        return bool(self._dynamic)

    # -- Changing ------------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Give the loggers their levels; again, when something else has given them others."""
        with self._lock:
            self._installed = True
            self._give_levels()

    def uninstall(self) -> None:
        """Give the loggers back the levels they had."""
        with self._lock:
            self._installed = False
            self._take_levels_back()

    def spare(self, names: Iterable[str]) -> None:
        """Take loggers off the noise list that the project has given a level; in force with the next `install`."""
        self._spared = frozenset(names)

    def default_to(self, level: int) -> None:
        """Let the settings' directives be those of the project's root logger, as they have none of their own."""
        self._default = level
        self._base_directives = ()
        if self.state is self.base:
            self.base = self.state = FilterState(level_name(level), "LOGGING", None)
            self._use(())

    def after_fork(self) -> None:
        """Forget that another thread of the parent may have been changing the filter."""
        self._lock = threading.RLock()

    def gives(self, name: str) -> bool:
        """Tell whether the level of a logger is our word."""
        return name in self._given

    def set(self, text: str | None, until: float | None = None, source: str = "") -> None:
        """Put other directives in force, until a time (seconds since the epoch) if one is given.

        ``None`` goes back to those of the settings. Raises `DirectiveError` and changes nothing if the text cannot be
        read.
        """
        directives = self._base_directives if text is None else parse(text)
        with self._lock:
            self.state = self.base if text is None else FilterState(text, source, until)
            self._use(directives)
            if self._installed:
                self._give_levels()
        if self.on_change is not None:
            self.on_change()

    def expire(self, now: float | None = None) -> bool:
        """Go back to the settings' directives if the time of the present ones is over; tell whether it was."""
        until = self.state.until
        if until is None or (time.time() if now is None else now) < until:
            return False
        self.set(None)
        return True

    def _use(self, directives: tuple[Directive, ...]) -> None:
        self.directives = directives
        self._dynamic = tuple(
            (directive, directive.span_pattern() if directive.span is not None else None)
            for directive in most_specific_first([each for each in directives if each.is_dynamic])
        )

    def _levels(self) -> dict[str, int]:
        """Return the level of each logger that a directive or the noise list names; "" is the root."""
        static = [directive for directive in self.directives if not directive.is_dynamic]
        named = [directive for directive in static if directive.target]
        levels = {"": self._default if not self.directives else DEFAULT_LEVEL}
        if not self.directives:
            # The project's root level is no word about what stands in place of the server's access lines.
            levels[ACCESS] = min(self._default, DEFAULT_LEVEL)
        for name in self.noise:
            # Who names a logger, or one above it, wants to hear it.
            if name not in self._spared and not any(directive.covers(name) for directive in named):
                levels[name] = logging.WARNING
        levels.update((directive.target, directive.level) for directive in latest(static))
        # A bare "error" means everybody, those included whom the list would allow warnings.
        for name in self.noise:
            if name in levels and levels[""] > levels[name] and not any(each.target == name for each in static):
                levels[name] = levels[""]
        return levels

    def _give_levels(self) -> None:
        self._take_levels_back()
        for name, level in self._levels().items():
            self._give(name, level)
        self._lowered = {}
        self._thresholds = {}
        for directive, _ in self._dynamic:
            self._lower(directive)

    def _give(self, name: str, level: int) -> None:
        logger = logging.getLogger(name) if name else logging.getLogger()
        original = self._given[name][1] if name in self._given else logger.level
        self._given[name] = (level, original)
        logger.setLevel(level)

    def _take_levels_back(self) -> None:
        for name, (given, original) in self._given.items():
            logger = logging.getLogger(name) if name else logging.getLogger()
            # Somebody else's later word stands.
            if logger.level == given:
                logger.setLevel(original)
        self._given.clear()

    def _lower(self, directive: Directive) -> None:
        """Let the loggers under the target make the records that the directive may want."""
        target = logging.getLogger(directive.target) if directive.target else logging.getLogger()
        candidates = [(directive.target, target)]
        for name, logger in list(logging.Logger.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and logger.level and directive.covers(name) and logger is not target:
                if not directive.target and name in self.noise and name in self._given:
                    continue
                candidates.append((name, logger))
        for name, logger in candidates:
            threshold = logger.getEffectiveLevel()
            if threshold > directive.level:
                self._lowered.setdefault(name, threshold)
                self._give(name, max(directive.level, 1))

    # -- Deciding ------------------------------------------------------------------------------------------------------

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record passes that its logger's level has let through."""
        if not self._dynamic:
            return True
        directive = self._matching(record)
        if directive is not None:
            return record.levelno >= directive.level
        return record.levelno >= self._threshold(record.name)

    def _threshold(self, name: str) -> int:
        """Return the level that the logger would have without directives that depend on what is going on."""
        try:
            return self._thresholds[name]
        except KeyError:
            pass
        threshold = 0
        each: logging.Logger | None = logging.getLogger(name)
        while each is not None:
            own = "" if each.parent is None else each.name
            if own in self._lowered:
                threshold = self._lowered[own]
                break
            if each.level:
                break
            each = each.parent
        self._thresholds[name] = threshold
        return threshold

    def _matching(self, record: logging.LogRecord) -> Directive | None:
        scope = self.scope.get()
        for directive, span_matches in self._dynamic:
            if not directive.covers(record.name):
                continue
            if span_matches is not None and (scope is None or not any(map(span_matches, spans_of(scope)))):
                continue
            if all(self._field_matches(field.name, field.matches, scope, record) for field in directive.fields):
                return directive
        return None

    def _field_matches(
        self, name: str, matches: Callable[[Any], bool], scope: Scope | None, record: logging.LogRecord
    ) -> bool:
        try:
            value = field_of(scope, record, name)
            return value is not MISSING and matches(value)
        except Exception:
            # A __str__ or a property of the project that fails: then it does not match.
            return False


MISSING = object()


def spans_of(scope: Scope) -> list[str]:
    """Return the names by which a directive may call a request, a task or a command."""
    names = [scope.name, scope.kind]
    if scope.path:
        names += [scope.path, f"{scope.method} {scope.path}", scope.method]
    if scope.route is not None:
        route = scope.route.lstrip("/")
        names += [f"/{route}", route, f"{scope.method} /{route}", f"{scope.method} {route}"]
    return names


SCOPE_FIELDS: dict[str, Callable[[Scope], Any]] = {
    "cache.hits": lambda scope: scope.cache_hits,
    "cache.misses": lambda scope: scope.cache_misses,
    "db.queries": lambda scope: scope.db_count,
    "kind": lambda scope: scope.kind,
    "method": lambda scope: scope.method,
    "name": lambda scope: scope.name,
    "path": lambda scope: scope.path,
    "request_id": lambda scope: scope.request_id,
    "route": lambda scope: scope.route,
    "trace_id": lambda scope: scope.trace_id,
    "user.id": lambda scope: user_id_of(scope),
    "user_id": lambda scope: user_id_of(scope),
    "view": lambda scope: scope.name,
}


def field_of(scope: Scope | None, record: logging.LogRecord, name: str) -> Any:
    """Return the value of a field of the record, of what is bound, or of the request or task; or `MISSING`."""
    if name not in STANDARD and name in record.__dict__:
        return record.__dict__[name]
    bound = scope.bound if scope is not None else unscoped.get()
    if bound and name in bound:
        return bound[name]
    if scope is None or name not in SCOPE_FIELDS:
        return MISSING
    value = SCOPE_FIELDS[name](scope)
    return MISSING if value is None or value == "" else value


def user_id_of(scope: Scope) -> str | None:
    """Return the id of the user, if the request or task has loaded them anyway."""
    if scope.user_id is not None or scope.request is None:
        return scope.user_id
    return loaded_user_id(scope.request)


__all__ = ["NOISE", "OFF", "EnvFilter", "FilterState"]

"""Every operation of every cache backend, measured once, with no BACKEND swap."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import wraps
from time import perf_counter_ns, time_ns
from typing import Any

from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache

from django_obs.context import Scope, current

logger = logging.getLogger("django_obs")

# What a backend may implement itself. What BaseCache composes of these (get_or_set, incr_version, the async twins) is
# seen through its parts.
OPERATIONS = (
    "add",
    "clear",
    "decr",
    "delete",
    "delete_many",
    "get",
    "get_many",
    "has_key",
    "incr",
    "set",
    "set_many",
    "touch",
)
MISSING = object()
HIT = {"django_obs.cache.hit": True}
MISS = {"django_obs.cache.hit": False}


def describe(alias: str, backend: str) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """Return the function that gives the span name and attributes of an operation on this cache."""
    return lambda operation: (
        f"cache {operation}",
        {
            "django_obs.cache.alias": alias,
            "django_obs.cache.backend": backend,
            "django_obs.cache.operation": operation,
        },
    )


class CacheInstrumentation:
    """Wrappers around the operations that a cache backend implements.

    ``record_leaf`` records an operation below the current span, if any; ``leaf_source`` makes what the spans of one
    cache have in common from a function that describes an operation; ``instruments`` returns what keeps the metrics,
    and is called with the first operation. Each may be None, where its signal is off. Keys are nowhere noted: they are
    data of users.
    """

    def __init__(
        self,
        *,
        record_leaf: Callable[..., None] | None = None,
        leaf_source: Callable[..., Any] | None = None,
        instruments: Callable[[], Any] | None = None,
    ) -> None:
        self.record_leaf = record_leaf
        self.leaf_source = leaf_source
        self.instruments = instruments
        self.record_cache: Callable[..., None] | None = None if instruments is None else self._record_first
        # Some backends implement one operation by another (locmem's incr, file's add): the outermost counts.
        self.inside = threading.local()
        self.backends: set[type[BaseCache]] = set()
        self.sources: dict[tuple[str, str], Any] = {}
        self.failed = False

    def install(self) -> None:
        """Wrap every cache that is or will be made in this process."""
        create_connection = CacheHandler.create_connection

        def create_wrapped(handler: CacheHandler, alias: str) -> BaseCache:
            return self.wrap(create_connection(handler, alias), alias)

        CacheHandler.create_connection = create_wrapped  # type: ignore[assignment, method-assign]
        for alias in caches.settings:
            cache = getattr(caches._connections, alias, None)  # type: ignore[attr-defined]
            if cache is not None:
                self.wrap(cache, alias)

    def trace(self, record_leaf: Callable[..., None], leaf_source: Callable[..., Any]) -> None:
        """Make a span of each operation from now on."""
        self.leaf_source = leaf_source
        self.record_leaf = record_leaf

    def _record_first(self, *observed: Any) -> None:
        assert self.instruments is not None
        # From now on it is called directly.
        self.record_cache = record = self.instruments().record_cache
        record(*observed)

    def wrap(self, cache: BaseCache, alias: str) -> BaseCache:
        """Measure the operations of a cache object. Under ASGI each request has one of its own: all is on its class."""
        try:
            backend = type(cache)
            if backend not in self.backends:
                self.backends.add(backend)
                self.measure(backend)
            cache._django_obs_alias = alias  # type: ignore[attr-defined]
        except Exception:
            # A backend that lets nobody set anything goes unmeasured.
            self.swallow()
        return cache

    def measure(self, backend: type[BaseCache]) -> None:
        """Replace the operations that a backend implements by measured ones."""
        for operation in OPERATIONS:
            native = getattr(backend, operation, None)
            if native is None or native is getattr(BaseCache, operation, None) or hasattr(native, "_django_obs"):
                continue
            setattr(backend, operation, self._measured(native, operation))

    def source(self, alias: str, backend: str) -> Any:
        """Return what all spans of one cache have in common."""
        assert self.leaf_source is not None
        source = self.sources[alias, backend] = self.leaf_source(describe(alias, backend))
        return source

    def _measured(self, native: Callable[..., Any], operation: str) -> Callable[..., Any]:
        inside = self.inside
        reads_one, reads_many = operation == "get", operation == "get_many"

        @wraps(native)
        def measured(cache: BaseCache, *args: Any, **kwargs: Any) -> Any:
            scope = current.get()
            alias = getattr(cache, "_django_obs_alias", None)
            if alias is None or getattr(inside, "operation", False) or (scope is not None and scope.excluded):
                return native(cache, *args, **kwargs)
            inside.operation = True
            hits = misses = 0
            error: BaseException | None = None
            started = perf_counter_ns()
            try:
                if reads_one:
                    # A stored None is a hit: ask with a default that cannot be stored.
                    default = kwargs.pop("default", args[1] if len(args) > 1 else None)
                    found = native(cache, args[0] if args else kwargs.pop("key"), MISSING, *args[2:], **kwargs)
                    if found is MISSING:
                        misses = 1
                        return default
                    hits = 1
                    return found
                result = native(cache, *args, **kwargs)
                if reads_many:
                    hits = len(result)
                    keys = args[0] if args else kwargs["keys"]
                    misses = len(keys) - hits if hasattr(keys, "__len__") else 0
                return result
            except BaseException as raised:
                error = raised
                raise
            finally:
                ended = perf_counter_ns()
                inside.operation = False
                try:
                    note(scope, alias, type(cache).__name__, started, ended, hits, misses, error)
                except Exception:
                    self.swallow()

        def note(
            scope: Scope | None,
            alias: str,
            backend: str,
            started: int,
            ended: int,
            hits: int,
            misses: int,
            error: BaseException | None,
        ) -> None:
            if scope is not None:
                scope.cache_hits += hits
                scope.cache_misses += misses
            if self.record_leaf is not None:
                now = time_ns()
                self.record_leaf(
                    self.sources.get((alias, backend)) or self.source(alias, backend),
                    operation,
                    now - ended + started,
                    now,
                    None if error is None else type(error).__name__,
                    HIT if hits else MISS if misses else None,
                )
            if self.record_cache is not None:
                self.record_cache(alias, backend, operation, hits, misses, (ended - started) * 1e-9, error)

        measured._django_obs = True  # type: ignore[attr-defined]
        return measured

    def swallow(self) -> None:
        """Report a failure of ours once; the operation goes on."""
        if not self.failed:
            self.failed = True
            logger.warning("A cache operation could not be noted; reported once", exc_info=True)

"""django-prometheus in the same project: what it counts itself, so that nothing is counted twice.

Whatever it has registered is used and never registered again, which would fail its import. It is not imported unless
the project itself uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from django.utils.connection import ConnectionDoesNotExist

from django_obs.metrics.arrival import Arrival

PACKAGE = "django_prometheus"
# What registers the names that other parts of it share.
REGISTERING = ("django_prometheus.db.metrics", "django_prometheus.cache.metrics", "django_prometheus.models")
SHARED_PREFIXES = ("django_db_", "django_cache_get_", "django_model_")
REQUEST_PREFIXES = ("django_http_",)
# Its words for the backends that it has wrapped; the class of ours that they stand for.
BACKEND_LABELS = {
    "django.core.cache.backends.redis.RedisCache": "native_redis",
    "django_redis.cache.RedisCache": "redis",
    "django.core.cache.backends.locmem.LocMemCache": "locmem",
    "django.core.cache.backends.filebased.FileBasedCache": "filebased",
    "django.core.cache.backends.memcached.BaseMemcachedCache": "memcached",
    "django.core.cache.backends.db.DatabaseCache": "database",
    "django.core.cache.backends.dummy.DummyCache": "dummy",
}


def is_used() -> bool:
    """Tell whether the project uses django-prometheus, or will when its backends and middleware are loaded."""
    if PACKAGE in sys.modules:
        return True
    from django.conf import settings

    paths = [
        *settings.INSTALLED_APPS,
        *settings.MIDDLEWARE,
        *(database.get("ENGINE", "") for database in settings.DATABASES.values()),
        *(cache.get("BACKEND", "") for cache in settings.CACHES.values()),
    ]
    return any(path.partition(".")[0] == PACKAGE for path in paths)


def register_first() -> None:
    """Let django-prometheus register the metrics that it and we know, if the project uses it."""
    if is_used():
        for module in REGISTERING:
            with suppress(ImportError):
                import_module(module)


def make_way(release: Callable[[tuple[str, ...]], None], rejoin: Callable[[], None]) -> None:
    """Let django-prometheus register its names although ours stand there, should it be imported late.

    A URLconf that still has its page is read with the first request. ``release`` takes prefixes of names, ``rejoin``
    is called when they are registered.
    """
    if PACKAGE in sys.modules:
        _make_way_for_requests(release, rejoin)
        return

    def after() -> None:
        register_first()
        rejoin()
        _make_way_for_requests(release, rejoin)

    sys.meta_path.insert(0, Arrival(PACKAGE, before=lambda: release(SHARED_PREFIXES), after=after))


def _make_way_for_requests(release: Callable[[tuple[str, ...]], None], rejoin: Callable[[], None]) -> None:
    # The metrics of requests are made with its middleware, not with its module.
    metrics: Any = getattr(sys.modules.get(f"{PACKAGE}.middleware"), "Metrics", None)
    if metrics is None or getattr(metrics.register, "makes_way", False):
        return
    register = metrics.register

    def register_in_our_place(self: Any) -> None:
        release(REQUEST_PREFIXES)
        register(self)
        rejoin()

    register_in_our_place.makes_way = True  # type: ignore[attr-defined]
    metrics.register = register_in_our_place


def counts_requests() -> bool:
    """Tell whether its middleware, or a subclass of it, is among the project's."""
    if not is_used():
        return False
    from django.conf import settings
    from django.utils.module_loading import import_string

    for path in settings.MIDDLEWARE:
        if path.startswith(f"{PACKAGE}."):
            return True
        with suppress(ImportError):
            if _comes_from_it(import_string(path)):
                return True
    return False


def counts_queries(alias: str) -> bool:
    """Tell whether the database of this alias has one of its backends."""
    from django.db import connections

    return _comes_from_it(type(_existing(connections, alias)))


def counts_cache(alias: str) -> bool:
    """Tell whether the cache of this alias has one of its backends."""
    from django.core.cache import caches

    return _comes_from_it(type(_existing(caches, alias)))


def backend_label(alias: str, backend: str) -> str:
    """Return its word for a cache backend; for one that it does not know, the name of the class without "Cache"."""
    from django.core.cache import caches

    # The class of the cache, not its name alone: django-redis's has the same as Django's.
    for ancestor in type(_existing(caches, alias)).__mro__:
        label = BACKEND_LABELS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if label is not None:
            return label
    return backend.removesuffix("Cache").lower() or backend.lower()


def _existing(handler: Any, alias: str) -> Any:
    # Django itself makes connections that have an alias and no place in the settings: "__no_db__" makes test databases.
    try:
        return handler[alias]
    except ConnectionDoesNotExist:
        return None


def _comes_from_it(cls: Any) -> bool:
    return any(ancestor.__module__.partition(".")[0] == PACKAGE for ancestor in getattr(cls, "__mro__", ()))

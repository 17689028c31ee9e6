"""Every query of every backend, measured once through ``connection.execute_wrappers``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns, time_ns
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_obs.context import current

logger = logging.getLogger("django_obs")

# The driver's word for the system, as the semantic conventions spell it.
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/db/#db-system-name
SYSTEMS = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite", "oracle": "oracle.db"}

# The first table that a statement names, quoted as the backends of Django quote; what is more complicated has none.
TARGET = r"""\b(?:FROM|INTO|UPDATE|TABLE)\s+["`]?([\w.$]+)["`]?"""


def text_of(statement: Any, connection: BaseDatabaseWrapper) -> str:
    """Return the SQL of a statement that is no text: bytes, or one of psycopg's Composable objects."""
    try:
        if hasattr(statement, "as_string"):
            return str(statement.as_string(connection.connection))
        return statement.decode() if isinstance(statement, bytes) else str(statement)
    except Exception:
        return type(statement).__name__


def is_traced(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether an instrumentor of OpenTelemetry makes spans of the driver's calls; ours would be second ones."""
    driver = connection.connection
    kinds = (type(driver), getattr(driver, "cursor_factory", None))
    return any(getattr(kind, "__module__", "").startswith("opentelemetry.instrumentation.") for kind in kinds)


class MeasuredConnection:
    """The execute wrapper of one connection. What it looks at is its own: on the way from a query it is all cold."""

    __slots__ = ("alias", "count", "owner", "source", "traced_elsewhere", "vendor")

    def __init__(self, owner: DatabaseInstrumentation, connection: BaseDatabaseWrapper) -> None:
        self.owner = owner
        self.alias = connection.alias
        self.vendor = connection.vendor
        self.traced_elsewhere = is_traced(connection)
        self.source: Any = None  # what all spans of this database have in common
        self.count: Callable[..., None] | None = None

    def execute(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Run the query; note its time on the scope, the current span and the metrics."""
        scope = current.get()
        if scope is not None and scope.excluded:
            return execute(sql, params, many, context)
        error: BaseException | None = None
        started = perf_counter_ns()
        try:
            return execute(sql, params, many, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            took = perf_counter_ns() - started
            owner = self.owner
            try:
                if scope is not None:
                    scope.db_count += 1
                    scope.db_ns += took
                if owner.record_leaf is not None and not self.traced_elsewhere:
                    # The wall clock is read once: set back in between, it could end a span before its start.
                    now = time_ns()
                    owner.record_leaf(
                        self.source or self._source(context["connection"]),
                        sql if type(sql) is str else partial(text_of, sql, context["connection"]),
                        now - took,
                        now,
                        None if error is None else type(error).__name__,
                    )
                if owner.instruments is not None:
                    # Each parameter set of an executemany() is a statement.
                    statements = 0 if not many else len(params) if hasattr(params, "__len__") else 1
                    (self.count or self._first())(took * 1e-9, statements, error)
            except Exception:
                owner.swallow()

    def _source(self, connection: BaseDatabaseWrapper) -> Any:
        # One for all connections of a database, which a server may make by the thread.
        self.source = source = self.owner.sources.get(self.alias) or self.owner.source(connection)
        return source

    def _first(self) -> Callable[..., None]:
        assert self.owner.instruments is not None
        tally = self.owner.instruments().tally(self.alias, self.vendor)
        self.count = tally.add if tally is not None else ignore
        return self.count


def ignore(seconds: float, many: int, error: BaseException | None) -> None:
    """Leave it to who counts the queries of this connection already."""


class DatabaseInstrumentation:
    """One execute wrapper for each connection.

    ``record_leaf`` records a query below the current span, if there is one; ``leaf_source`` makes what the spans of one
    database have in common from a function that describes a statement; ``instruments`` returns what keeps the metrics,
    and is not called before there is something to count. Each may be None, where its signal is off.
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
        self.sources: dict[str, Any] = {}  # by alias
        self.failed = False

    def install(self) -> None:
        """Wrap every connection that is or will be made in this process."""
        from django.db import connections

        connection_created.connect(self.connected, weak=False, dispatch_uid="django_obs")
        for connection in connections.all(initialized_only=True):
            self.wrap(connection)
        if self.instruments is not None:
            self._count_failed_connections()

    def trace(self, record_leaf: Callable[..., None], leaf_source: Callable[..., Any]) -> None:
        """Make a span of each query from now on."""
        self.leaf_source = leaf_source
        self.record_leaf = record_leaf

    def connected(self, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        """Wrap a connection that was made just now."""
        self.wrap(connection).traced_elsewhere = is_traced(connection)
        scope = current.get()
        if self.instruments is not None and (scope is None or not scope.excluded):
            self._count_connection(connection, None)

    def wrap(self, connection: BaseDatabaseWrapper) -> MeasuredConnection:
        """Put a wrapper outermost, once: the signal comes again at each reconnect of the same connection object."""
        for wrapper in connection.execute_wrappers:
            measured = getattr(wrapper, "__self__", None)
            if type(measured) is MeasuredConnection and (measured.owner, measured.alias) == (self, connection.alias):
                return measured
        measured = MeasuredConnection(self, connection)
        connection.execute_wrappers.insert(0, measured.execute)
        return measured

    def _count_connection(self, connection: BaseDatabaseWrapper, error: BaseException | None) -> None:
        assert self.instruments is not None
        try:
            self.instruments().record_connection(connection.alias, connection.vendor, error)
        except Exception:
            self.swallow()

    def swallow(self) -> None:
        """Report a failure of ours once; the query goes on."""
        if not self.failed:
            self.failed = True
            logger.warning("A query could not be noted; reported once", exc_info=True)

    def source(self, connection: BaseDatabaseWrapper) -> Any:
        """Return what all spans of this database have in common."""
        assert self.leaf_source is not None
        settings = connection.settings_dict
        common: dict[str, Any] = {"db.system.name": SYSTEMS.get(connection.vendor, "other_sql")}
        if settings.get("NAME"):
            common["db.namespace"] = str(settings["NAME"])
        host, port = settings.get("HOST"), str(settings.get("PORT") or "")
        if host:
            common["server.address"] = host
        if port.isdecimal():
            common["server.port"] = int(port)
        common["django_obs.db.alias"] = connection.alias
        find_target = re.compile(TARGET, re.IGNORECASE).search

        def describe(sql: str) -> tuple[str, dict[str, Any]]:
            operation = sql.split(None, 1)[0].upper() if sql.strip() else "QUERY"
            target = find_target(sql)
            attributes = {**common, "db.operation.name": operation, "db.query.text": sql}
            if target is None:
                return operation, attributes
            attributes["db.collection.name"] = target[1]
            return f"{operation} {target[1]}", attributes

        source = self.sources[connection.alias] = self.leaf_source(describe, repeats=True)
        return source

    def _count_failed_connections(self) -> None:
        # Django has a signal for a connection that was made, none for one that was not.
        connect = BaseDatabaseWrapper.connect

        def counted_connect(connection: BaseDatabaseWrapper) -> None:
            try:
                connect(connection)
            except Exception as error:
                self._count_connection(connection, error)
                raise

        BaseDatabaseWrapper.connect = counted_connect  # type: ignore[assignment, method-assign]

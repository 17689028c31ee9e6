"""Applied and unapplied migrations, looked up when somebody scrapes: one series per database, true at that moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from django_obs.metrics.catalogue import MIGRATIONS_APPLIED, MIGRATIONS_UNAPPLIED

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger("django_obs")

# Building the graph of all migrations costs tens of milliseconds and a query per database.
FRESH_SECONDS = 30.0


class MigrationCollector:
    """Asks every database which migrations it has."""

    def __init__(self, *, namespace: str = "", fresh_seconds: float = FRESH_SECONDS) -> None:
        self.prefix = f"{namespace}_" if namespace else ""
        self.fresh_seconds = fresh_seconds
        self._counts: dict[str, tuple[int, int]] = {}
        self._due = 0.0
        self._failed: set[str] = set()

    def __call__(self) -> Iterator[Metric]:
        """Yield the two families, of the databases that answer."""
        from prometheus_client.metrics_core import UntypedMetricFamily

        now = monotonic()
        if now >= self._due:
            self._counts = self._look()
            self._due = now + self.fresh_seconds
        for place, declaration in enumerate((MIGRATIONS_APPLIED, MIGRATIONS_UNAPPLIED)):
            # Gauges, but by names that end like a counter's: linters of pages accept those of no type only.
            family = UntypedMetricFamily(
                self.prefix + declaration.name, declaration.documentation, labels=("connection",)
            )
            for alias, counts in self._counts.items():
                family.add_metric((alias,), counts[place])
            yield family

    def _look(self) -> dict[str, tuple[int, int]]:
        from django.db import connections
        from django.db.migrations.executor import MigrationExecutor

        counts = {}
        for alias in connections:
            connection = connections[alias]
            if connection.vendor == "unknown":
                continue  # the dummy that stands for "no database"
            try:
                executor = MigrationExecutor(connection)
                plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
            except Exception:
                # One database that is down must not hide the others.
                if alias not in self._failed:
                    self._failed.add(alias)
                    logger.warning("The migrations of %r cannot be looked up.", alias, exc_info=True)
                continue
            self._failed.discard(alias)
            counts[alias] = (len(executor.loader.applied_migrations), len(plan))
        return counts

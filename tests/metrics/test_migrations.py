from __future__ import annotations

import logging
from typing import Any

import pytest
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from django_obs.metrics.migrations import MigrationCollector


def counts(collector: MigrationCollector) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in collector()
        for sample in family.samples
        if sample.labels == {"connection": "default"}
    }


@pytest.mark.django_db
def test_migrations_are_counted_as_they_are_now() -> None:
    collector = MigrationCollector(namespace="shop", fresh_seconds=0)
    before = counts(collector)
    assert before["shop_django_migrations_unapplied_total"] == 0
    assert before["shop_django_migrations_applied_total"] > 5
    MigrationRecorder(connections["default"]).record_unapplied("auth", "0012_alter_user_first_name_max_length")
    after = counts(collector)
    assert after["shop_django_migrations_unapplied_total"] == 1
    assert after["shop_django_migrations_applied_total"] == before["shop_django_migrations_applied_total"] - 1


@pytest.mark.django_db
def test_answer_is_kept_for_a_while() -> None:
    collector = MigrationCollector()
    before = counts(collector)
    MigrationRecorder(connections["default"]).record_unapplied("auth", "0012_alter_user_first_name_max_length")
    assert counts(collector) == before


def test_database_that_is_down_hides_no_other(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    # pytest-django refuses database access to a test that has not asked for it, as a database that is down would.
    collector = MigrationCollector(fresh_seconds=0)
    with caplog.at_level(logging.WARNING, "django_obs"):
        for _ in range(2):
            assert [list(family.samples) for family in collector()] == [[], []]

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import models

from django_obs.conf import get_settings
from django_obs.metrics.models import ExportModelOperationsMixin
from django_obs.testing import sample_value


class Cart(ExportModelOperationsMixin("cart"), ContentType):  # type: ignore[misc]
    """A proxy, so that the tests need no table of their own."""

    class Meta:
        proxy = True
        app_label = "contenttypes"


def counted() -> list[float | None]:
    return [sample_value(f"django_model_{what}_total", {"model": "cart"}) for what in ("inserts", "updates", "deletes")]


@pytest.mark.django_db
def test_inserts_updates_and_deletes_are_counted() -> None:
    before = counted()
    assert None not in before  # the series are there before anything has happened
    cart = Cart(app_label="a", model="b")
    cart.save()
    cart.model = "c"
    cart.save()
    cart.delete()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]  # type: ignore[operator]


def test_name_is_that_of_django_prometheus() -> None:
    mixin = ExportModelOperationsMixin("cart")
    assert mixin.__qualname__ == "ExportModelOperationsMixin('cart')"
    assert not issubclass(mixin, models.Model)


def test_nothing_is_counted_where_metrics_are_off(settings: Any) -> None:
    settings.DJANGO_OBS = {"METRICS": {"ENABLED": False}}
    assert not get_settings().metrics.enabled
    assert not hasattr(ExportModelOperationsMixin("quiet"), "_do_insert")
    assert sample_value("django_model_inserts_total", {"model": "quiet"}) is None

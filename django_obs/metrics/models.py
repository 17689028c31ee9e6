"""A mixin that counts what happens to a model; its name and metrics are django-prometheus's."""

from __future__ import annotations

from typing import Any

from django.conf import settings as project

from django_obs.conf import get_settings
from django_obs.metrics import catalogue as declared
from django_obs.metrics import peers
from django_obs.metrics.catalogue import Catalogue

_catalogue: Catalogue | None = None


def _counters(model_name: str) -> tuple[Any, Any, Any]:
    """Return the counters of one model; the series exist from the start, so that their first increase is seen."""
    global _catalogue
    if _catalogue is None:
        _catalogue = Catalogue(
            latency_buckets=(),
            namespace=getattr(project, "PROMETHEUS_METRIC_NAMESPACE", ""),
            prepare=peers.register_first,
        )
    inserts, updates, deletes = (
        _catalogue.collector(declaration).labels(model_name)
        for declaration in (declared.MODEL_INSERTS, declared.MODEL_UPDATES, declared.MODEL_DELETES)
    )
    return inserts, updates, deletes


def ExportModelOperationsMixin(model_name: str) -> type:
    """Return a base class for a model that counts its inserts, updates and deletes under this name.

    ``class Cart(ExportModelOperationsMixin("cart"), models.Model)``. What goes past ``save()`` and ``delete()`` of an
    object (``bulk_create``, ``QuerySet.update``, a cascade) is not counted, as with django-prometheus.
    """
    if not get_settings().metrics.enabled:
        return type("ExportModelOperationsMixin", (), {"__qualname__": _qualname(model_name)})
    inserts, updates, deletes = _counters(model_name)

    class Mixin:
        def _do_insert(self, *args: Any, **kwargs: Any) -> Any:
            inserts.inc()
            return super()._do_insert(*args, **kwargs)  # type: ignore[misc]

        def _do_update(self, *args: Any, **kwargs: Any) -> Any:
            updates.inc()
            return super()._do_update(*args, **kwargs)  # type: ignore[misc]

        def delete(self, *args: Any, **kwargs: Any) -> Any:
            deletes.inc()
            return super().delete(*args, **kwargs)  # type: ignore[misc]

    Mixin.__qualname__ = _qualname(model_name)
    return Mixin


def _qualname(model_name: str) -> str:
    # Migrations name the bases of a model: django-prometheus's name keeps theirs from changing.
    return f"ExportModelOperationsMixin({model_name!r})"

"""Adoption: prometheus_client's own metrics, whoever made them and when, record to the store."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import prometheus_client
from prometheus_client import REGISTRY
from prometheus_client import metrics as pc

from . import labels, values
from .platform import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

    from .store import Store

logger = logging.getLogger("django_obs")

STORED = (pc.Counter, pc.Gauge, pc.Histogram, pc.Summary)

_init = pc.MetricWrapperBase.__init__
_set_function = pc.Gauge.set_function
_installed = False
_warned = False


def install(store: Store) -> bool:
    """Make all metrics of this process record to `store`, those that exist and those to come.

    Where the platform cannot do that, prometheus_client stays as it is: right, but each process by itself. That is
    said once in the log, and the answer is False.
    """
    global _installed, _warned
    if (reason := unsupported()) is not None:
        if not _warned:
            _warned = True
            logger.warning("Metrics are not shared between processes: %s", reason)
        return False
    values.store = store
    # While prometheus_client is being imported, there is nothing yet to be found.
    store.discover = list if not _installed and _is_arriving() else discover
    if not _installed:
        _installed = True
        _replace()
    return True


def _is_arriving() -> bool:
    return bool(getattr(prometheus_client.__spec__, "_initializing", False))


def _replace() -> None:
    replacements: dict[type, dict[str, Any]] = {
        pc.MetricWrapperBase: {"__init__": init, **labels.replacements()},
        pc.Counter: {
            "_metric_init": values.metric_init,
            "_value": values.ValueAt(lambda metric: 0),
            "inc": values.counter_inc,
        },
        pc.Gauge: {
            "_metric_init": values.metric_init,
            "_value": values.ValueAt(lambda metric: 0),
            "inc": values.gauge_inc,
            "dec": values.gauge_dec,
            "set": values.gauge_set,
            "set_function": set_function,
        },
        pc.Histogram: {
            "_metric_init": values.metric_init,
            "_buckets": values.BucketsAt(),
            "_sum": values.ValueAt(lambda metric: len(metric._upper_bounds)),
            "_child_samples": values.histogram_samples,
            "observe": values.histogram_observe,
        },
        pc.Summary: {
            "_metric_init": values.metric_init,
            "_count": values.ValueAt(lambda metric: 0),
            "_sum": values.ValueAt(lambda metric: 1),
            "observe": values.summary_observe,
        },
    }
    for cls, methods in replacements.items():
        for name, method in methods.items():
            setattr(cls, name, method)


def is_parent(metric: Any) -> bool:
    """Tell whether a metric has labels and no values of its own."""
    return bool(metric._is_parent())


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    """Construct, then make the metric known to the store."""
    _init(self, *args, **kwargs)
    if isinstance(self, STORED) and not self._labelvalues:
        if is_parent(self):
            labels.equip(self)
        values.store.know(self)


def set_function(self: Any, f: Callable[[], float]) -> None:
    """Let `f` tell the gauge's value, in the process that makes the page."""
    _set_function(self, f)
    values.store.withdraw(self)


def discover() -> Iterator[Any]:
    """Find the metrics of all registries: gc knows the instances of a class."""
    for collector in [*REGISTRY._collector_to_names, *gc.get_referrers(*STORED)]:
        if isinstance(collector, STORED) and not getattr(collector, "_labelvalues", True):
            if is_parent(collector):
                labels.equip(collector)
            yield collector


def other_families(registry: CollectorRegistry = REGISTRY) -> Iterable[Metric]:
    """Collect what lanes do not hold: custom collectors, Info, Enum and gauges with a function."""
    for collector in list(registry._collector_to_names):
        if not isinstance(collector, STORED):
            yield from collector.collect()
        elif isinstance(collector, pc.Gauge):
            children = list(collector._metrics.values()) if is_parent(collector) else [collector]
            for child in children:
                if values.has_function(child):
                    [family] = collector.describe()
                    labels = dict(zip(collector._labelnames, child._labelvalues, strict=False))
                    for sample in child._child_samples():
                        family.add_sample(family.name, labels, sample.value)
                    yield family

"""The record path: prometheus_client's methods over cells of shared memory.

Each function here replaces the method of the same name on one of prometheus_client's own classes, so that a metric
keeps its identity, its class and its place in its registry. A metric that has its cells has

    _cell   the value of a counter or gauge, the sum of a histogram or summary
    _cells  the buckets of a histogram (None until one is hit), the count of a summary, the time of a gauge
    _memory and _first, the column and the index of its first cell there
    _slot   slot in the index, None while the cells are private memory

A cell is a memoryview of float64 without dimensions: `cell[()]` needs no index (79 instead of 96 ns for an inc).
Amounts default to 1.0, since CPython adds two floats faster than a float and an int. A metric that has no cells
raises AttributeError at its first record, where `_late` gets it some. `cell[()] += amount` takes no lock: CPython
looks at no signal and switches no thread between that load and that store (since 3.10, with the GIL).

The attributes are never looked up through __dict__: asking an instance for its dictionary slows every later access.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import metrics as pc
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from .index import Definition, Request
from .lanes import MOVES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .store import Store

# The store that the classes record to; install() sets it.
store: Store = cast("Store", None)

# prometheus_client does not type its own.
go_string: Callable[[float], str] = floatToGoString
_validate_exemplar: Callable[[Mapping[str, str]], None] = pc._validate_exemplar  # type: ignore[attr-defined]


def request_for(metric: Any) -> Request:
    """Describe a metric, or a child with its label values, for the index."""
    kind = metric._type
    bounds = _name_bounds(tuple(metric._upper_bounds)) if kind == "histogram" else ()
    mode = metric._multiprocess_mode if kind == "gauge" else ""
    definition = Definition(kind, metric._name, tuple(metric._labelnames), mode, bounds)
    return Request(definition, str(metric._documentation), metric._unit, metric._labelvalues)


@lru_cache
def _name_bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(map(go_string, bounds))


def count_cells(metric: Any) -> int:
    """Count the cells that a metric takes."""
    kind = metric._type
    return len(metric._upper_bounds) + 1 if kind == "histogram" else 1 if kind == "counter" else 2


def bind(metric: Any, memory: memoryview[float], first: int, slot: int | None) -> None:
    """Point a metric at its cells, which start at `first`."""
    kind = metric._type
    cells: list[memoryview[float] | None] = []
    if kind == "histogram":
        buckets = len(metric._upper_bounds)
        cells = [None] * buckets
        cell = cell_at(memory, first + buckets)
    elif kind == "summary":
        cells = [cell_at(memory, first)]
        cell = cell_at(memory, first + 1)
    else:
        cell = cell_at(memory, first)
        if kind == "gauge":
            cells = [cell_at(memory, first + 1)]
    # No thread switch between these: nothing is called.
    MOVES[0] += 1
    metric._slot = slot
    metric._first = first
    metric._memory = memory
    metric._cells = cells
    metric._cell = cell


def cell_at(memory: memoryview[float], index: int) -> memoryview[float]:
    """Give one cell of a column."""
    return memory[index : index + 1].cast("B").cast("d", shape=())


def is_bound(metric: Any) -> bool:
    return hasattr(metric, "_cell")


def has_function(metric: Any) -> bool:
    """Tell whether a gauge takes its value from a function."""
    return (
        metric._type == "gauge" and getattr(metric._child_samples, "__func__", None) is not type(metric)._child_samples
    )


def take_values(metric: Any) -> list[float]:
    """Take out what prometheus_client's own values have counted: those of a metric made before install()."""
    kind = metric._type
    if isinstance(metric._value if kind in ("counter", "gauge") else metric._sum, Value):
        return []
    own = vars(metric)
    if kind in ("counter", "gauge"):
        parts = [own.pop("_value")]
    elif kind == "summary":
        parts = [own.pop("_count"), own.pop("_sum")]
    else:
        parts = [*own.pop("_buckets"), own.pop("_sum")]
    return [part.get() for part in parts]


def _late(metric: Any) -> None:
    """Give a metric its cells at its first record; raises prometheus_client's ValueError where labels are missing.

    Another thread may have done so meanwhile. If it was not for cells that a record failed, it fails once more.
    """
    metric._raise_if_not_observable()
    if not is_bound(metric):
        store.adopt(metric)


# Counter


def counter_inc(self: Any, amount: float = 1.0, exemplar: dict[str, str] | None = None) -> None:
    """Increment by `amount`; ValueError if it is negative or the labels are missing."""
    if amount < 0.0:
        raise ValueError("Counters can only be incremented by non-negative amounts.")
    try:
        self._cell[()] += amount
    except AttributeError:
        _late(self)
        self._cell[()] += amount
    if exemplar is not None:
        keep_exemplar(self, 0, exemplar, amount)


# Gauge


def gauge_inc(self: Any, amount: float = 1.0) -> None:
    """Increment by `amount`; RuntimeError in the modes that show the most recent value."""
    if self._is_most_recent:
        raise RuntimeError("inc must not be used with the mostrecent mode")
    try:
        self._cell[()] += amount
    except AttributeError:
        _late(self)
        self._cell[()] += amount


def gauge_dec(self: Any, amount: float = 1.0) -> None:
    """Decrement by `amount`; RuntimeError in the modes that show the most recent value."""
    if self._is_most_recent:
        raise RuntimeError("dec must not be used with the mostrecent mode")
    try:
        self._cell[()] -= amount
    except AttributeError:
        _late(self)
        self._cell[()] -= amount


def gauge_set(self: Any, value: float) -> None:
    """Set to `value`, anything that float() takes."""
    try:
        self._cell[()] = value
    except AttributeError:
        _late(self)
        self._cell[()] = float(value)
    except TypeError:
        self._cell[()] = float(value)
    if self._is_most_recent:
        self._cells[0][()] = time.time()


# Histogram


def histogram_observe(self: Any, amount: float, exemplar: dict[str, str] | None = None) -> None:
    """Count `amount` in its bucket; like prometheus_client, a NaN goes into the sum and into no bucket."""
    try:
        self._cell[()] += amount
    except AttributeError:
        _late(self)
        self._cell[()] += amount
    if amount == amount:
        bucket = bisect_left(self._upper_bounds, amount)
        try:
            self._cells[bucket][()] += 1.0
        except TypeError:
            self._cells[bucket] = cell = cell_at(self._memory, self._first + bucket)
            cell[()] += 1.0
        if exemplar is not None:
            keep_exemplar(self, bucket, exemplar, amount)


def histogram_samples(self: Any) -> Iterable[Sample]:
    """Give the samples of a child, as prometheus_client's method does, without a value object per bucket."""
    values = [Value(self, i).get() for i in range(len(self._upper_bounds) + 1)]
    exemplars = getattr(self, "_exemplars", {})
    total = 0.0
    samples = []
    for i, bound in enumerate(self._upper_bounds):
        total += values[i]
        samples.append(Sample("_bucket", {"le": go_string(bound)}, total, None, exemplars.get(i)))
    samples.append(Sample("_count", {}, total, None, None))
    if self._upper_bounds[0] >= 0:
        samples.append(Sample("_sum", {}, values[-1], None, None))
    if pc._use_created:
        samples.append(Sample("_created", {}, self._created, None, None))
    return tuple(samples)


# Summary


def summary_observe(self: Any, amount: float) -> None:
    """Count `amount`."""
    try:
        self._cell[()] += amount
    except AttributeError:
        _late(self)
        self._cell[()] += amount
    self._cells[0][()] += 1.0


# All four


def metric_init(self: Any) -> None:
    """Prepare a child or a metric without labels; it gets its cells when the store is open."""
    self._created = time.time()
    if store.opened:
        store.adopt(self)


def keep_exemplar(metric: Any, offset: int, labels: dict[str, str], amount: float) -> None:
    """Keep an exemplar for the cell at `offset`; ValueError if it is longer than 128 characters."""
    if labels:
        _validate_exemplar(labels)
        Value(metric, offset).set_exemplar(Exemplar(labels, amount, time.time()))


class Value:
    """A view of one cell with the interface of prometheus_client's values.

    It shows what this process has counted: not what the lane's former owners left in it.
    """

    _multiprocess = True
    __slots__ = ("_metric", "_offset")

    def __init__(self, metric: Any, offset: int) -> None:
        self._metric = metric
        self._offset = offset

    def _floor(self) -> float:
        slot = self._metric._slot
        return 0.0 if slot is None or self._metric._type == "gauge" else store.floor(slot + self._offset)

    def inc(self, amount: float) -> None:
        if not is_bound(self._metric):
            store.adopt(self._metric)
        self._metric._memory[self._metric._first + self._offset] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        if not is_bound(self._metric):
            store.adopt(self._metric)
        self._metric._memory[self._metric._first + self._offset] = self._floor() + value
        if timestamp is not None:
            self._metric._memory[self._metric._first + 1] = timestamp

    def get(self) -> float:
        if not is_bound(self._metric):
            return 0.0
        value: float = self._metric._memory[self._metric._first + self._offset]
        return value - self._floor()

    def set_exemplar(self, exemplar: Exemplar) -> None:
        metric = self._metric
        if not hasattr(metric, "_exemplars"):
            metric._exemplars = {}
        metric._exemplars[self._offset] = exemplar
        if metric._slot is not None:
            store.exemplars.keep(metric._slot + self._offset, exemplar)

    def get_exemplar(self) -> Exemplar | None:
        exemplar: Exemplar | None = getattr(self._metric, "_exemplars", {}).get(self._offset)
        return exemplar


class ValueAt:
    """The attribute in which prometheus_client keeps a value; an instance's own, made before install(), comes first."""

    def __init__(self, offset: Callable[[Any], int]) -> None:
        self._offset = offset

    def __get__(self, metric: Any, owner: type | None = None) -> Value:
        if metric is None or not metric._is_observable():
            raise AttributeError("A metric has a value when it has its labels")
        return Value(metric, self._offset(metric))


class BucketsAt:
    """The attribute in which prometheus_client keeps the values of a histogram's buckets."""

    def __get__(self, metric: Any, owner: type | None = None) -> list[Value]:
        if metric is None or not metric._is_observable():
            raise AttributeError("A metric has values when it has its labels")
        return [Value(metric, i) for i in range(len(metric._upper_bounds))]

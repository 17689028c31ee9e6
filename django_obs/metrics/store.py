"""The store of one process: its lane, its copy of the index, and the metrics that record to them."""

from __future__ import annotations

import array
import itertools
import logging
import math
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from . import values
from .archive import FOLDED_MODES, Archive
from .exemplars import ExemplarFile
from .index import OVERFLOW, Index, Series
from .lanes import DROPPED, HAVE, HEADER_SIZE, UNSTORED, Column, Lane, forget_owned
from .platform import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger("django_obs")

# Beyond two cells for each series of the cap: for the overflow series, one per definition.
SPARE_SLOTS = 16384


class Store:
    """Shared memory for the metrics of this process.

    `directory` gives the directory of the store; it is called, and files are opened, at the first record or by
    open(). `max_series` caps the series, in Prometheus's sense: sample lines, of all processes together.

    Nothing here raises into a record: what cannot be stored counts in private memory until it can.
    """

    def __init__(self, directory: Callable[[], Path], max_series: int = 100_000) -> None:
        self.directory = directory
        self.max_series = max_series
        self.opened = False
        self.private = False  # set before open(): this process shall have no lane
        self.pid = os.getpid()
        self.role = ""
        self.exemplars = ExemplarFile()
        # How to find metrics that were made before the store; install() sets it.
        self.discover: Callable[[], Iterable[Any]] = list
        self._lock = threading.RLock()
        self._placing = False
        self._column: Column | None = None
        self._lane: Lane | None = None
        self._index: Index | None = None
        self._path: Path | None = None
        self._floor: array.array[float] = array.array("d")
        self._gauges: set[int] = set()
        # Metrics without labels and parents, by id; children are found through their parents.
        self._metrics: dict[int, weakref.ref[Any]] = {}
        self._private: weakref.WeakSet[Any] = weakref.WeakSet()
        # Series that were removed and whose children are still with their parents.
        self._evictable: list[Series] = []
        self._complaint = ""
        # From the start: a thread may be opening the store when another one forks.
        _stores.add(self)
        _hook_forks()

    # The process and its files

    def open(self) -> bool:
        """Take a lane and give all metrics their cells; idempotent. False while values stay in private memory."""
        if not self.opened:
            with self._lock:
                if not self.opened and unsupported() is None:
                    self._open()
        return self._lane is not None

    def _open(self) -> None:
        self.pid = os.getpid()
        for metric in self.discover():
            self.know(metric)
        self._column = self._begin()
        self.opened = True
        _hook_uwsgi()
        self._adopt([metric for metric in self._observable() if not values.is_bound(metric)])

    def _begin(self) -> Column:
        """Open the files and map a lane; where that fails, the column is private memory."""
        column = Column(2 * self.max_series + SPARE_SLOTS)
        if self.private:
            return column
        try:
            self._path = self.directory()
            os.makedirs(self._path, 0o700, exist_ok=True)
            self._index = Index(self._path / "index")
            self._index.refresh_removals()
            self._gauges.clear()
            self._take(column, self._index, self._path)
        except (OSError, ValueError) as error:
            self._complain(error)
        return column

    def _take(self, column: Column, index: Index, path: Path) -> None:
        """Take a lane, clean it of a dead process's gauges, and map it."""
        index.refresh()
        slots = min(index.slots, column.slots)
        lane = Lane.take(path, column.size, index.generation, slots)
        try:
            if index.replaced:
                raise OSError("the directory is being cleaned")
            cells = array.array("d", os.pread(lane.fd, 8 * slots, HEADER_SIZE))
            _clean(cells, index, path)
            for slot in self._gauges:
                cells[slot + 1] = HAVE
            os.pwrite(lane.fd, cells.tobytes(), HEADER_SIZE)
            lane.write_header(index.generation, self.role)
            column.show(lane.fd)
            column.header[UNSTORED] = 0.0
        except BaseException:
            lane.release()
            raise
        self._floor = cells
        self._lane = lane
        self.exemplars.open(lane.path.with_name(f"exemplars-{lane.number:04d}"))
        self._complaint = ""

    def check_pid(self) -> None:
        """Notice a fork that ran no hook; cheap enough for once per request."""
        if os.getpid() != self.pid:
            self.after_fork()

    def after_fork(self) -> None:
        """Leave the lane to the parent and take one for this process."""
        self.pid = os.getpid()
        self._lock = threading.RLock()
        self._placing = False
        for metric in self._known():
            if hasattr(metric, "_tree"):
                metric._lock = threading.RLock()
        if self._column is None:
            return
        forget_owned()
        self._lane = None
        self.exemplars.close()
        for metric in list(self._private):
            for cell in range(len(metric._memory)):
                metric._memory[cell] = 0.0
        index, path = self._index, self._path
        if index is None or path is None or index.replaced:
            self._column.show(None)
            self._open_anew(carry=False)
            return
        try:
            self._take(self._column, index, path)
        except (OSError, ValueError) as error:
            self._complain(error)
            self._floor = array.array("d")
            self._column.show(None)

    def set_role(self, role: str) -> None:
        """Say what this process is (web, worker, command), in the lane's header: at most 32 ASCII characters."""
        self.role = role
        if self._lane is not None and self._index is not None:
            self._lane.write_header(self._index.generation, role)

    def tend(self) -> None:
        """Look after the files, by the clock and not by a record.

        Opens anew what was cleaned away, gives cells to what waits in private memory, drops the children that
        another process has removed, and writes exemplars.
        """
        self.check_pid()
        if not self.opened or self.private:
            return
        with self._lock:
            index, lane = self._index, self._lane
            if index is None or lane is None or index.replaced or lane.lost:
                self._open_anew(carry=lane is None)
                return
            index.refresh()
            self._blank(index)
            if self._private:
                self._settle()
            self.exemplars.flush()
        self._evict()

    def _open_anew(self, *, carry: bool) -> None:
        """Move to new files. `carry` along counts that were never shown.

        Counts that were shown start at zero, as they do when everything is restarted: carried over, they would
        lack those of dead processes, and half a sum looks to Prometheus like a reset followed by a jump.
        """
        self._release()
        metrics = list(self._observable())
        old, self._column = self._column, self._begin()
        if self._lane is None and carry:
            self._column = old  # still nowhere to go: who has cells keeps them
            return
        self._private.clear()
        self._floor = array.array("d")
        for metric, series in zip(metrics, self._place(metrics), strict=True):
            self._rebind(metric, series, carry=carry)
        self._count_private()

    def _settle(self) -> None:
        """Find cells for what waits in private memory."""
        waiting = list(self._private)
        for metric, series in zip(waiting, self._place(waiting), strict=True):
            if series is not None:
                self._private.discard(metric)
                self._rebind(metric, series, carry=True)
        self._count_private()

    def _rebind(self, metric: Any, series: Series | None, *, carry: bool) -> None:
        """Move a metric to other cells while threads may record to it: first it moves, then what it left is added."""
        memory, first, slot = metric._memory, metric._first, metric._slot
        self._bind(metric, series)
        if metric._type == "gauge":
            metric._memory[metric._first] += memory[first]
            metric._memory[metric._first + 1] = max(memory[first + 1], HAVE)
        elif carry or slot is None:
            self._add(metric, memory[first : first + values.count_cells(metric)])

    @staticmethod
    def _add(metric: Any, counted: Iterable[float]) -> None:
        for cell, value in enumerate(counted, metric._first):
            if value:
                metric._memory[cell] += value

    def _release(self) -> None:
        self.exemplars.flush()
        self.exemplars.close()
        if self._lane is not None:
            self._lane.release()
            self._lane = None
        if self._index is not None:
            self._index.close()
            self._index = None

    def close(self) -> None:
        """Write what waits and leave the lane to the next process; later records count in private memory."""
        with self._lock:
            if self._lane is not None and self._column is not None:
                self._column.show(None)
            self._release()

    def stats(self) -> dict[str, int]:
        """Count what this process knows.

        series (sample lines), slots, index_bytes; private: metrics without a place in the store;
        exemplars_lost: too long, or not written.
        """
        index = self._index
        return {
            "series": index.samples if index else 0,
            "slots": index.slots if index else 0,
            "index_bytes": index.size if index else 0,
            "private": len(self._private),
            "exemplars_lost": self.exemplars.lost,
        }

    def _complain(self, error: Exception) -> None:
        """Say once per cause that metrics are counted but not shown."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.warning("Metrics cannot be stored and are kept in the memory of process %d: %s", self.pid, error)

    # The metrics

    def know(self, metric: Any) -> None:
        """Remember a parent or a metric without labels."""
        key = id(metric)
        if key not in self._metrics:
            known = self._metrics
            known[key] = weakref.ref(metric, lambda _: known.pop(key, None))

    def _known(self) -> Iterator[Any]:
        for reference in list(self._metrics.values()):
            if (metric := reference()) is not None:
                yield metric

    def _observable(self) -> Iterator[Any]:
        for metric in self._known():
            if metric._is_parent():
                yield from list(metric._metrics.values())
            else:
                yield metric

    def adopt(self, metric: Any) -> None:
        """Give a metric its cells, and put into them what it has counted before."""
        self.open()
        with self._lock:
            if not values.is_bound(metric):
                self._adopt([metric])

    def _adopt(self, metrics: list[Any]) -> None:
        for metric, series in zip(metrics, self._place(metrics), strict=True):
            counted = values.take_values(metric)
            self._bind(metric, series)
            self._add(metric, counted)
            if metric._type == "gauge" and any(counted):
                metric._memory[metric._first + 1] = time.time()
        self._count_private()

    def _place(self, metrics: list[Any]) -> list[Series | None]:
        """Find a place for each; None for those that must count in private memory."""
        index, column, lane = self._index, self._column, self._lane
        nowhere: list[Series | None] = [None] * len(metrics)
        # A finalizer or a signal handler may come here while this thread is here: it must not wait, and may not enter.
        if index is None or column is None or lane is None or self._placing:
            return nowhere
        self._placing = True
        try:
            self._blank(index)
            requests = [values.request_for(metric) for metric in metrics]
            places = index.place(requests, self.max_series, column.slots - SPARE_SLOTS)
            refused = [i for i, series in enumerate(places) if series is None]
            if refused:
                overflow = [
                    requests[i]._replace(labelvalues=(OVERFLOW,) * len(requests[i].labelvalues)) for i in refused
                ]
                for i, series in zip(refused, index.place(overflow, math.inf, column.slots), strict=True):
                    places[i] = series
                    metrics[i]._overflow = True
                column.header[DROPPED] += len(refused)
            lane.reserve(min(index.slots, column.slots))
        except OSError as error:
            self._complain(error)
            return nowhere
        else:
            return places
        finally:
            self._placing = False

    def refuse(self, parent: Any, labelvalues: tuple[str, ...]) -> Any:
        """Give the parent's overflow child if there is no room for these label values; else None."""
        index, column = self._index, self._column
        if index is None or column is None or not index.full:
            return None
        child = parent._metrics.get((OVERFLOW,) * len(labelvalues))
        if child is None or index.find(values.request_for(parent)._replace(labelvalues=labelvalues)) is not None:
            return None
        if self._lane is not None:
            column.header[DROPPED] += 1
        return child

    def _bind(self, metric: Any, series: Series | None) -> None:
        count = values.count_cells(metric)
        column = self._column
        function = values.has_function(metric)  # no number that could be stored
        if series is None or column is None or series.slot + count > column.slots or function:
            values.bind(metric, memoryview(bytearray(8 * count)).cast("d"), 0, None)
            if not function:
                self._private.add(metric)
            return
        slot = series.slot
        if len(self._floor) < slot + count:
            self._floor.extend(itertools.repeat(0.0, slot + count - len(self._floor)))
        if metric._type == "gauge":
            self._gauges.add(slot)
            column.cells[slot] = 0.0
            column.cells[slot + 1] = HAVE
        else:
            self._floor[slot : slot + count] = array.array("d", column.cells[slot : slot + count])
        values.bind(metric, column.cells, slot, slot)

    def _count_private(self) -> None:
        if self._lane is not None and self._column is not None:
            self._column.header[UNSTORED] = len(self._private)

    def withdraw(self, gauge: Any) -> None:
        """Unset a gauge that has got a function: that one is called where the page is made."""
        with self._lock:
            slot = getattr(gauge, "_slot", None)
            if slot is not None and self._column is not None:
                self._gauges.discard(slot)
                self._column.cells[slot + 1] = 0.0
                self._bind(gauge, None)

    def remove(self, parent: Any, chosen: Callable[[tuple[str, ...]], bool]) -> None:
        """Take the label sets of a parent that are `chosen` off the page, whichever process made them."""
        with self._lock:
            if self._index is not None:
                try:
                    self._index.remove(values.request_for(parent).definition, chosen)
                except OSError as error:
                    self._complain(error)
                self._blank(self._index)
        self._evict()

    def _blank(self, index: Index) -> None:
        """Empty this process's cells of series that were removed."""
        index.refresh_removals()
        gone = index.take_gone()
        self._evictable += gone
        for series in gone:
            definition = index.definitions[series.metric]
            self._gauges.discard(series.slot)
            if self._column is not None and series.slot + definition.slots <= self._column.slots:
                for slot in range(series.slot, series.slot + definition.slots):
                    if slot < len(self._floor):
                        self._floor[slot] = self._column.cells[slot] = 0.0

    def _evict(self) -> None:
        """Drop the children of series that were removed, so that labels() makes new ones.

        Takes the parents' locks; labels() takes ours while it holds one of those: so not while we hold ours.
        """
        gone, self._evictable = self._evictable, []
        index = self._index
        if not gone or index is None:
            return
        parents: dict[object, list[Any]] = {}
        for metric in self._known():
            if metric._is_parent():
                parents.setdefault(values.request_for(metric).definition, []).append(metric)
        for series in gone:
            for parent in parents.get(index.definitions[series.metric], ()):
                with parent._lock:
                    child = parent._metrics.get(series.labelvalues)
                    if child is not None and getattr(child, "_slot", None) == series.slot:
                        del parent._metrics[series.labelvalues]
                    getattr(parent, "_tree", {}).clear()

    def floor(self, slot: int) -> float:
        """Tell what the lane's former owners have counted in a cell."""
        return self._floor[slot] if slot < len(self._floor) else 0.0


def _clean(cells: array.array[float], index: Index, path: Path) -> None:
    """Empty what a dead process leaves and nobody shall go on from: gauges, after folding those that outlive it."""
    fold = []
    removed = index.removals.slots
    for series in filter(None, map(index.at, removed)):
        count = index.definitions[series.metric].slots
        if series.slot + count <= len(cells):
            cells[series.slot : series.slot + count] = array.array("d", bytes(8 * count))
    for series in index.gauges:
        slot = series.slot
        if slot + 1 >= len(cells) or not cells[slot + 1]:
            continue
        mode = index.definitions[series.metric].mode
        if mode in FOLDED_MODES:
            fold.append((slot, mode, cells[slot], cells[slot + 1]))
        cells[slot] = cells[slot + 1] = 0.0
    # A count that became NaN ends with the process that observed it, as it does in prometheus_client.
    if math.isnan(sum(cells)):
        for slot, value in enumerate(cells):
            if not math.isfinite(value):
                cells[slot] = 0.0
    if fold:
        with Archive(path / "archive").folding() as merge:
            for record in fold:
                merge(*record)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_hooked = False
_hooked_uwsgi = False


def _hook_forks() -> None:
    """Have forked children take lanes of their own."""
    global _hooked
    if not _hooked and hasattr(os, "register_at_fork"):
        _hooked = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)


def _hook_uwsgi() -> None:
    """Do the same under uWSGI, which forks in C and runs Python's hooks only if it is told to."""
    global _hooked_uwsgi
    if _hooked_uwsgi:
        return
    _hooked_uwsgi = True
    try:
        import uwsgi
    except ImportError:
        return
    previous = getattr(uwsgi, "post_fork_hook", None)

    def post_fork_hook() -> None:
        if previous is not None:
            previous()
        for store in list(_stores):
            store.check_pid()

    uwsgi.post_fork_hook = post_fork_hook


# Locks that a fork waits for, so that no child inherits a half-read index; never for long.
_fork_locks: list[Any] = []
FORK_PATIENCE = 1.0


def _before_fork() -> None:
    for store in list(_stores):
        lock = store._lock
        if lock.acquire(timeout=FORK_PATIENCE):
            _fork_locks.append(lock)


def _after_fork_in_parent() -> None:
    while _fork_locks:
        _fork_locks.pop().release()


def _after_fork() -> None:
    _fork_locks.clear()
    for store in list(_stores):
        store.after_fork()

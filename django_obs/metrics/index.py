"""The index: which metric and which labels lie in which slot, the same in all processes.

An append-only file of lines, each `crc32 json`. A reader takes complete lines as they come and skips what does not
match its checksum; a writer holds the file's lock and first cuts a torn tail that a killed one left. Ids and slots
stand in the line itself, so that a damaged line costs what it defined and shifts nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from .archive import Archive
from .lanes import blank
from .platform import fcntl, lock
from .removals import Removals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

# All label values of the series that takes what max_series refuses.
OVERFLOW = "(overflow)"

# What a damaged line may have taken: more than the slots of any histogram in use.
DAMAGE_GAP = 256
# The bytes of the shortest line that takes slots: what damage has cut into shorter pieces was fewer lines.
SHORTEST = len(b'00000000 ["series",0,0,1,[],0]\n')
# The longest line, and what is read at once. Nobody writes longer ones: what looks like one is damage.
LONGEST = 4 * 1024 * 1024
# How far beyond the slots that are known a series may lie: as far as damage that others have not seen may reach.
FARTHEST = 65536
KINDS = frozenset({"counter", "gauge", "histogram", "summary"})


class Definition(NamedTuple):
    """What makes two metrics the same one: everything but the help text."""

    kind: str
    name: str
    labelnames: tuple[str, ...] = ()
    mode: str = ""
    bounds: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Count the float64 cells of one label set: buckets and sum; value and time of a gauge; count and sum."""
        if self.kind == "histogram":
            return len(self.bounds) + 1
        return 1 if self.kind == "counter" else 2

    @property
    def samples(self) -> int:
        """Count the lines of one label set on a page: what Prometheus calls series."""
        if self.kind == "histogram":
            return len(self.bounds) + 2
        return 2 if self.kind == "summary" else 1


class Request(NamedTuple):
    """A label set that wants slots."""

    definition: Definition
    documentation: str
    unit: str
    labelvalues: tuple[str, ...]


class Series(NamedTuple):
    """A label set that has slots; `created` in seconds since the epoch."""

    metric: int
    labelvalues: tuple[str, ...]
    slot: int
    created: float


def _check(kind: type, *values: object) -> None:
    for value in values:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")


class LockTimeout(OSError):
    """Somebody holds the index for longer than a request can wait."""


class Index:
    """The parsed index of one directory, and the way to add to it.

    `full` tells that a series was refused and none has been removed since.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if writable else os.O_RDONLY
        self.path = path
        self.fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.position = 0
        self.definitions: dict[int, Definition] = {}
        self.ids: dict[Definition, int] = {}
        self.current: dict[str, int] = {}
        self.documentation: dict[int, tuple[str, str]] = {}
        self._known_documentation: set[tuple[int, str, str]] = set()
        self.series: dict[tuple[int, tuple[str, ...]], Series] = {}
        self._by_slot: dict[int, Series] = {}
        self.gauges: list[Series] = []
        self.removals = Removals(path.with_name("removed"))
        self.revision = 0
        self.slots = 0
        self._samples = 0
        self._removed_samples = 0
        self.damaged = 0
        # Since the last sound line: the slots that were known then, damaged lines and their bytes.
        self._damage = (0, 0, 0)
        self.full = False
        # Lanes carry it too: one that was written for another index has its counts in other slots.
        self.generation = 0
        try:
            self.refresh()
            if writable and not self.position:
                self._begin()
        except BaseException:
            os.close(self.fd)
            raise

    def _begin(self) -> None:
        with self.locked():
            if not self.position:
                for name in os.listdir(self.path.parent):
                    if name in ("archive", "removed") or name.startswith("exemplars-"):
                        os.unlink(self.path.with_name(name))
                self._append("index", int.from_bytes(os.urandom(7), "little"))

    def close(self) -> None:
        os.close(self.fd)
        self.removals.close()

    @property
    def listed(self) -> Collection[Series]:
        """All series in the order in which they came."""
        return self._by_slot.values()

    def at(self, slot: int) -> Series | None:
        """Look up the series whose first slot this is."""
        return self._by_slot.get(slot)

    @property
    def samples(self) -> int:
        """Count the sample lines of all series that are not removed."""
        return self._samples - self._removed_samples

    def refresh_removals(self) -> None:
        """Read which series were removed or came back."""
        self._count(self.removals.refresh())

    def _count(self, changed: Iterable[int]) -> None:
        for series in filter(None, map(self._by_slot.get, changed)):
            samples = self.definitions[series.metric].samples
            self._removed_samples += samples if series.slot in self.removals.slots else -samples
            self.full = False

    def _change(self, slots: Collection[int]) -> None:
        self.removals.change(slots)
        self._count(slots)

    def take_gone(self) -> list[Series]:
        """Give the series that were removed since this was last asked, even if they have come back."""
        return [series for series in map(self._by_slot.get, self.removals.take_gone()) if series]

    @property
    def size(self) -> int:
        """Bytes read so far."""
        return self.position

    @property
    def replaced(self) -> bool:
        """Tell whether the file was removed, replaced or cut since it was opened."""
        mine = os.fstat(self.fd)
        try:
            named = os.stat(self.path)
        except OSError:
            return True
        return (mine.st_ino, mine.st_dev) != (named.st_ino, named.st_dev) or mine.st_size < self.position

    def refresh(self) -> bool:
        """Read what others have added; True if there was anything."""
        size = os.fstat(self.fd).st_size
        if size <= self.position:
            return False
        before = self.position
        while self.position < size:
            data = os.pread(self.fd, min(size - self.position, LONGEST), self.position)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < LONGEST:
                    break  # it is being written, or torn
                end = len(data)
                self._hurt(data)
            start = 0
            while (stop := data.find(b"\n", start, end)) >= 0:
                self._read(data[start:stop])
                start = stop + 1
            self.position += end
        return self.position > before

    def _read(self, line: bytes) -> None:
        try:
            if int(line[:8], 16) != zlib.crc32(line[9:]):
                raise ValueError("checksum")
            self._take(*json.loads(line[9:]))
        except (ValueError, TypeError, RecursionError):
            # Also what has the right checksum and makes no sense: somebody else has written it.
            self._hurt(line)
        else:
            self._damage = (self.slots, 0, 0)

    def _hurt(self, line: bytes) -> None:
        self.damaged += 1
        slots, lines, size = self._damage
        self._damage = slots, lines + 1, size + len(line) + 1
        self.slots = slots + DAMAGE_GAP * min(lines + 1, -(-(size + len(line) + 1) // SHORTEST))

    def _take(self, tag: str, *fields: Any) -> None:
        """Take a record. Raises ValueError or TypeError if its fields are not what they should be."""
        if tag == "series":
            self._read_series(*fields)
        elif tag == "metric":
            self._read_metric(*fields)
        elif tag == "help":
            metric, documentation, unit = fields
            _check(str, documentation, unit)
            self._document(metric, documentation, unit)
            self.revision += 1
        elif tag == "current":
            (metric,) = fields
            if (definition := self.definitions.get(metric)) is not None:
                self.current[definition.name] = metric
                self.revision += 1
        elif tag == "index":
            (generation,) = fields
            _check(int, generation)
            if not 0 <= generation < 1 << 63:
                raise ValueError("generation")
            self.generation = generation

    def _read_metric(
        self,
        metric: int,
        kind: str,
        name: str,
        labelnames: list[str],
        mode: str,
        bounds: list[str],
        documentation: str,
        unit: str,
    ) -> None:
        _check(int, metric)
        _check(list, labelnames, bounds)
        _check(str, kind, name, *labelnames, mode, *bounds, documentation, unit)
        if kind not in KINDS or bool(bounds) != (kind == "histogram"):
            raise ValueError("kind")
        for bound in bounds:
            float(bound)
        definition = Definition(kind, name, tuple(labelnames), mode, tuple(bounds))
        self.definitions[metric] = definition
        self.ids[definition] = metric
        if name in self.current:
            self.revision += 1
        self.current[name] = metric
        self._document(metric, documentation, unit)

    def _document(self, metric: int, documentation: str, unit: str) -> None:
        self.documentation[metric] = documentation, unit
        self._known_documentation.add((metric, documentation, unit))

    def _read_series(self, metric: int, slot: int, count: int, labelvalues: list[str], created: float) -> None:
        _check(int, metric, slot, count)
        _check(list, labelvalues)
        _check(str, *labelvalues)
        definition = self.definitions.get(metric)
        if not 0 <= slot <= self.slots + FARTHEST or count != (definition.slots if definition else abs(count)):
            raise ValueError("slot")
        if count > FARTHEST or not isinstance(created, (int, float)):
            raise ValueError("count")
        self.slots = max(self.slots, slot + count)
        if definition is None:
            return
        series = Series(metric, tuple(labelvalues), slot, created)
        self.series[metric, series.labelvalues] = series
        self._by_slot[slot] = series
        if definition.kind == "gauge":
            self.gauges.append(series)
        self._samples += definition.samples

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file against other processes, up to date and without a torn tail.

        Raises LockTimeout after LOCK_PATIENCE seconds.
        """
        if not lock(self.fd, fcntl.LOCK_EX):
            raise LockTimeout(errno.EAGAIN, "The index is locked", os.fspath(self.path))
        try:
            self.refresh()
            if os.fstat(self.fd).st_size > self.position:
                os.ftruncate(self.fd, self.position)
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _append(self, *record: object) -> None:
        body = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        if len(line) > LONGEST:
            raise OSError(errno.EFBIG, "Labels are too long", os.fspath(self.path))
        if os.write(self.fd, line) != len(line):
            os.ftruncate(self.fd, self.position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
        self.position += len(line)
        self._read(line[:-1])

    def find(self, request: Request) -> Series | None:
        """Look a label set up without touching the file."""
        metric = self.ids.get(request.definition)
        return None if metric is None else self.series.get((metric, request.labelvalues))

    def place(self, requests: Sequence[Request], max_samples: float, max_slots: int) -> list[Series | None]:
        """Give each label set its slots, the ones that it has or new ones; None where a limit is reached.

        Raises OSError if the disk is full or the lock is not to be had.
        """
        found = [self.find(request) for request in requests]
        known = all(found) and not any(self._outdated(request) for request in requests)
        if not known or self._removed(found):
            with self.locked():
                self.refresh_removals()
                found = [self._place(request, max_samples, max_slots) for request in requests]
                self._revive(self._removed(found))
        return found

    def _removed(self, found: list[Series | None]) -> list[Series]:
        return [series for series in found if series is not None and series.slot in self.removals.slots]

    def _revive(self, back: list[Series]) -> None:
        """Put label sets back on the page, without what dead processes had counted before they were removed.

        Living ones blank their own cells when they learn of the removal.
        """
        if not back:
            return
        blanks = {}
        for series in back:
            definition = self.definitions[series.metric]
            blanks[series.slot] = bytes(8 * definition.slots)
        blank(self.path.parent, blanks)
        Archive(self.path.with_name("archive")).drop(blanks)
        self._change(blanks)

    def _outdated(self, request: Request) -> bool:
        metric = self.ids[request.definition]
        known = (metric, request.documentation, request.unit) in self._known_documentation
        return not known or self.current[request.definition.name] != metric

    def _place(self, request: Request, max_samples: float, max_slots: int) -> Series | None:
        definition, documentation, unit, labelvalues = request
        if (metric := self.ids.get(definition)) is None:
            # The offset in the file is an id that no other line can have, whatever happens to the lines before it.
            metric = self.position
            self._append("metric", metric, *definition, documentation, unit)
        elif self._outdated(request):
            if (metric, documentation, unit) not in self._known_documentation:
                self._append("help", metric, documentation, unit)
            if self.current[definition.name] != metric:
                self._append("current", metric)
        if (series := self.series.get((metric, labelvalues))) is not None:
            return series
        slots = definition.slots
        if self.samples + definition.samples > max_samples or self.slots + slots > max_slots:
            self.full = True
            return None
        self._append("series", metric, self.slots, slots, labelvalues, round(time.time(), 3))
        return self.series[metric, labelvalues]

    def remove(self, definition: Definition, chosen: Callable[[tuple[str, ...]], bool]) -> None:
        """Take the label sets that are `chosen` off the page in all processes; they keep their slots."""
        with self.locked():
            self.refresh_removals()
            metric = self.ids.get(definition)
            slots = [
                series.slot
                for series in self._by_slot.values()
                if series.metric == metric and series.slot not in self.removals.slots and chosen(series.labelvalues)
            ]
            if slots:
                self._change(slots)

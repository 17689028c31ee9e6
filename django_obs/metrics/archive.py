"""The archive: what the non-live gauges of dead processes come to, one record per slot."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from .lanes import HAVE
from .platform import fcntl, lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

RECORD = struct.Struct("=ddd")  # 1 if there is a value, value, time when it was set

LIVE_MODES = frozenset({"liveall", "livemin", "livemax", "livesum", "livemostrecent"})
# A value per process cannot outlive the process for ever: it is left out when its lane is taken over.
FOLDED_MODES = frozenset({"min", "max", "sum", "mostrecent"})


def merge(mode: str, values: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """Merge (value, time) pairs as the mode says; None if there are none."""
    pairs = list(values)
    kind = mode.removeprefix("live")
    if kind == "mostrecent":
        pairs = [pair for pair in pairs if pair[1] > HAVE]
    if not pairs:
        return None
    if kind == "sum":
        return sum(value for value, _ in pairs), max(time for _, time in pairs)
    if kind == "max":
        return max(pairs, key=lambda pair: pair[0])
    if kind == "min":
        return min(pairs, key=lambda pair: pair[0])
    return max(pairs, key=lambda pair: pair[1])


class Archive:
    """The file; a missing one is empty.

    The lock keeps a value from being seen in a lane and here at once. Whoever does not get it in time goes on all the
    same: a scrape that is wrong by one gauge is better than none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def folding(self) -> Iterator[Callable[[int, str, float, float], None]]:
        """Hold the file and give the function that merges (slot, mode, value, time) of a dead process in."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            lock(fd, fcntl.LOCK_EX)
            yield partial(self._fold, fd)
        finally:
            os.close(fd)

    def _fold(self, fd: int, slot: int, mode: str, value: float, time: float) -> None:
        data = os.pread(fd, RECORD.size, slot * RECORD.size)
        values = [(value, time)]
        if len(data) == RECORD.size and RECORD.unpack(data)[0]:
            values.append(RECORD.unpack(data)[1:])
        if (merged := merge(mode, values)) is not None:
            os.pwrite(fd, RECORD.pack(1.0, *merged), slot * RECORD.size)

    def drop(self, slots: Iterable[int]) -> None:
        """Forget the values of slots."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            lock(fd, fcntl.LOCK_EX)
            for slot in slots:
                os.pwrite(fd, bytes(RECORD.size), slot * RECORD.size)
        finally:
            os.close(fd)

    @contextmanager
    def reading(self) -> Iterator[dict[int, tuple[float, float]]]:
        """Give (value, time) by slot, and hold off folding: a value is in a lane or here, never in both."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            yield {}
            return
        try:
            lock(fd, fcntl.LOCK_SH)
            data = os.pread(fd, os.fstat(fd).st_size, 0)
            records = RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])
            yield {slot: (value, time) for slot, (have, value, time) in enumerate(records) if have}
        finally:
            os.close(fd)

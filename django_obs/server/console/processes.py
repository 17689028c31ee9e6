"""The live processes, with the CPU and the memory that they take now."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from django_obs.metrics.lanes import LaneState
from django_obs.metrics.process import ProcessReader

# Seconds over which the CPU is taken; the kernel counts in hundredths of a second.
CPU_OVER = 4.0


class Process(NamedTuple):
    """A row of the table; None is what cannot be seen from here."""

    role: str
    pid: int
    lane: int | None
    age: float
    cpu: float | None  # share of one CPU
    memory: int | None  # bytes
    threads: int | None


class Mark(NamedTuple):
    """A process's CPU at an earlier look."""

    clock: float
    cpu: float
    share: float | None


class ProcessTable:
    """Reads the processes behind the lanes; knows how much CPU each had taken when it last looked."""

    def __init__(
        self,
        reader: ProcessReader,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.reader = reader
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._marks: dict[tuple[int, float], Mark] = {}

    def rows(self, lanes: Iterable[LaneState]) -> list[Process]:
        """Return the live ones by role, oldest first, and this process at the end."""
        found = [(lane.role or "?", lane.pid, lane.holder, lane.number, lane.started) for lane in lanes if lane.alive]
        found.sort(key=lambda each: (each[0], each[4]))
        with self._lock:
            known, self._marks = self._marks, {}
            rows = [self._row(known, role, pid, holder, lane, started) for role, pid, holder, lane, started in found]
            own = os.getpid()
            return [*rows, self._row(known, "runmetrics", own, own, None, self._now())]

    def _row(
        self, known: dict[tuple[int, float], Mark], role: str, pid: int, holder: int, lane: int | None, started: float
    ) -> Process:
        usage = self.reader.read(holder) if holder > 0 else None
        if usage is None:
            return Process(role, pid, lane, self._now() - started, None, None, None)
        age = self._now() - usage.started
        # A pid comes back, with another process: the start belongs to the name.
        key = (holder, usage.started)
        share = self._share(known.get(key), key, usage.cpu, age)
        return Process(role, pid, lane, age, share, usage.resident, usage.threads)

    def _share(self, mark: Mark | None, key: tuple[int, float], cpu: float, age: float) -> float | None:
        clock = self._clock()
        if mark is not None and clock - mark.clock < CPU_OVER:
            self._marks[key] = mark
            return mark.share
        if mark is None:
            share = min(cpu / age, 1.0) if age > 0 else None
        else:
            share = max(0.0, cpu - mark.cpu) / (clock - mark.clock)
        self._marks[key] = Mark(clock, cpu, share)
        return share

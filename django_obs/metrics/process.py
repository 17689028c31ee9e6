"""``process_*`` of the live processes, read from ``/proc`` when somebody asks: they themselves do nothing for it.

The names are those of prometheus_client's process collector. Each series is labelled by the process's role and its
lane: a lane outlives its process, so that recycled workers make no new series, and a counter that starts again from
nothing with the next owner is what Prometheus expects of a restart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PROC = Path("/proc")


class LiveProcess(Protocol):
    """What a lane tells of its owner."""

    @property
    def holder(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def number(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: seconds of CPU, bytes, file descriptors, seconds since the epoch."""

    cpu: float
    virtual: int
    resident: int
    started: float
    threads: int
    open_fds: int | None  # None where it is not ours to know
    max_fds: float | None


class ProcessReader:
    """Reads ``/proc``; on systems without one there is nothing to read."""

    def __init__(self, proc: Path = PROC) -> None:
        self.proc = proc
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        self._boot = self._boot_time()

    def _boot_time(self) -> float:
        try:
            for line in (self.proc / "stat").read_bytes().splitlines():
                if line.startswith(b"btime "):
                    return float(line.split()[1])
        except OSError:
            pass
        return 0.0

    def read(self, pid: int) -> Usage | None:
        """Return what the process has used, or None if it is not to be seen from here."""
        place = self.proc / str(pid)
        try:
            # The second field is the name in parentheses and may hold anything, parentheses included.
            fields = (place / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        if len(fields) < 22 or fields[0] in (b"Z", b"X"):
            return None
        return Usage(
            cpu=(int(fields[11]) + int(fields[12])) / self._ticks,
            threads=int(fields[17]),
            started=self._boot + int(fields[19]) / self._ticks,
            virtual=int(fields[20]),
            resident=int(fields[21]) * self._page,
            open_fds=self._open_fds(place),
            max_fds=self._max_fds(place),
        )

    def _open_fds(self, place: Path) -> int | None:
        try:
            return len(os.listdir(place / "fd"))
        except OSError:
            return None

    def _max_fds(self, place: Path) -> float | None:
        try:
            for line in (place / "limits").read_bytes().splitlines():
                if line.startswith(b"Max open files"):
                    soft = line.split()[3]
                    return float("inf") if soft == b"unlimited" else float(soft)
        except OSError:
            pass
        return None


FAMILIES = (
    ("counter", "process_cpu_seconds", "Total user and system CPU time spent in seconds.", "cpu"),
    ("gauge", "process_virtual_memory_bytes", "Virtual memory size in bytes.", "virtual"),
    ("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", "resident"),
    ("gauge", "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", "started"),
    ("gauge", "process_threads", "Number of threads of the process.", "threads"),
    ("gauge", "process_open_fds", "Number of open file descriptors.", "open_fds"),
    ("gauge", "process_max_fds", "Maximum number of open file descriptors.", "max_fds"),
)


def collect(lanes: Iterable[LiveProcess], reader: ProcessReader) -> Iterator[Metric]:
    """Yield the families of all live lanes' processes."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    # By the pid that the kernel names here: the same number in another container's namespace is another process.
    seen = [(lane, reader.read(lane.holder)) for lane in lanes if lane.holder > 0]
    for kind, name, documentation, attribute in FAMILIES:
        family_class = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        family = family_class(name, documentation, labels=("role", "lane"))
        for lane, usage in seen:
            value = getattr(usage, attribute, None)
            if value is not None:
                family.add_metric((lane.role, str(lane.number)), value)
        if family.samples:
            yield family

"""The other end of the queue: takes batches by the clock, formats them, writes each with one call."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable
from logging.handlers import QueueListener
from time import monotonic, sleep, time
from typing import Any, Protocol, TypeVar

from django_obs.lifecycle import Worker
from django_obs.logs.backlog import STEPS, Backlog, nothing_dropped, step
from django_obs.logs.entry import Entry, Stamp, Stamper
from django_obs.logs.sink import Sink

logger = logging.getLogger("django_obs")

# Entries formatted between two moments at which other threads surely get the interpreter: a third of a millisecond.
BATCH = 128
# Seconds between two lines about losses.
REPORT_INTERVAL = 1.0
# Errors of a sink that will not go away by waiting.
BROKEN = frozenset({errno.EPIPE, errno.EBADF, errno.EINVAL, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENXIO})


Waiting = TypeVar("Waiting")  # a stamp or an entry


class Lines(Protocol):
    """What the listener asks of a formatter."""

    def line(self, entry: Entry) -> bytes: ...
    def stamped(self, stamp: Stamp) -> bytes: ...


class LogListener(QueueListener):
    """A `logging.handlers.QueueListener` that wakes by the clock, not by each record.

    It runs as a job of a `Worker`. What its sink does not take it keeps; what the queue does not hold meanwhile is shed
    and counted, and told in a line as soon as lines can be written again.
    """

    def __init__(
        self,
        backlog: Backlog,
        sink: Sink,
        formatter: Lines,
        stamper: Stamper,
        *,
        worker: Worker,
        block: bool = False,
        exporter: Callable[[list[Entry]], None] | None = None,
    ) -> None:
        super().__init__(backlog)  # type: ignore[arg-type]
        self.backlog = backlog
        self.sink = sink
        self.formatter = formatter
        self.stamper = stamper
        self.worker = worker
        self.block = block
        self.exporter = exporter
        self._export_failed = False
        self.disturbed = False
        self.written = 0
        self.failed = 0
        self.dropped = nothing_dropped()
        self._wake_at = max(1, backlog.maxsize // 4)
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent will write."""
        self.backlog.after_fork()
        self._lock = threading.Lock()
        self._owner = 0
        self._rest = b""
        self._rest_lines = 0
        self._woken = False
        self._closed = False
        self._failing = False
        self._swallowed = False
        self._unreported: Counter[int] = Counter()
        self._unreported_failed = 0
        self._reported = 0.0
        self.written = self.failed = 0
        self.dropped = nothing_dropped()

    # -- The caller's side ---------------------------------------------------------------------------------------------

    def put(self, stamp: Stamp) -> None:
        """Queue a stamp for the next round. Never raises; waits only if the queue is full and may block."""
        backlog = self.backlog
        if not self.worker.running:
            if self._closed:
                self.write_through(stamp)
                return
            self.worker.ensure()
        if len(backlog.stamps) + backlog.out < self._wake_at:
            backlog.append(stamp)
            return
        if not self._woken:
            self._woken = True
            self.worker.wake()
        if self.block and self._wait_for_room():
            # Others may have taken the room since; a few too many are better than one too few.
            backlog.append(stamp)
        else:
            backlog.put_nowait(stamp)

    def _wait_for_room(self) -> bool:
        while self.backlog.full():
            if threading.get_ident() == self._owner:
                # The listener's own thread would wait for itself.
                return False
            self.worker.ensure()
            if self.worker.running:
                self.worker.wake()
                sleep(0.002)
            elif not self.drain():
                return False
        return True

    def write_through(self, stamp: Stamp) -> None:
        """Write a stamp at once, as is done when the process ends and nobody is left to do it later."""
        self.backlog.put_nowait(stamp)
        self.drain()

    def report(self, stamp: Stamp) -> None:
        """Write a stamp about ourselves to standard error, past the queue."""
        try:
            Sink("stderr").write(self.formatter.line(self.stamper.entry(stamp)))
        except (OSError, ValueError):
            self.failed += 1

    def swallow(self) -> None:
        """Count a record that could not be queued because of the present exception, and tell the first one."""
        self.failed += 1
        if not self._swallowed:
            self._swallowed = True
            logger.warning("A log record could not be queued; reported once", exc_info=True)

    # -- The worker's side ---------------------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Write what is queued, as far as the sink takes it; tell whether it took all."""
        if self._owner == threading.get_ident() or not self._lock.acquire(timeout=1.0):
            return False
        self._owner = threading.get_ident()
        try:
            self._woken = False
            # What comes in meanwhile is for the next round, else one busy process would keep its worker here forever.
            rounds = self.backlog.qsize() // BATCH + 1
            complete = self._flush_rest()
            while complete and rounds and not self.backlog.empty():
                rounds -= 1
                complete = self._write_batch(self.backlog.get_batch(BATCH))
            if complete:
                self._report_losses()
            return complete
        finally:
            self._owner = 0
            self._lock.release()

    def _write_batch(self, batch: list[Stamp]) -> bool:
        # Once: who watches may come and go in another thread.
        exporter = self.exporter
        if exporter is None:
            lines = self._format(self.formatter.stamped, batch)
        else:
            entries = list(map(self.stamper.entry, batch))
            self._export(exporter, entries)
            lines = self._format(self.formatter.line, entries)
        self._rest = b"".join(lines)
        self._rest_lines = len(lines)
        return self._flush_rest()

    def _format(self, line: Callable[[Waiting], bytes], batch: list[Waiting]) -> list[bytes]:
        try:
            return list(map(line, batch))
        except Exception:
            lines = []
            for each in batch:
                try:
                    lines.append(line(each))
                except Exception:
                    self._fail(1, "A log line could not be formatted")
            return lines

    def _export(self, exporter: Callable[[list[Entry]], None], entries: list[Entry]) -> None:
        try:
            exporter(entries)
        except Exception:
            self.failed += len(entries)
            if not self._export_failed:
                self._export_failed = True
                logger.warning("Log records could not be handed to %r; reported once", exporter, exc_info=True)

    def _flush_rest(self) -> bool:
        data = self._rest
        if not data:
            return True
        try:
            self._rest = self.sink.write(data)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) not in BROKEN and isinstance(error, OSError):
                # A full disk: keep what there is, and let the queue shed meanwhile.
                self._complain(error)
                return False
            self._rest = b""
            self._fail(self._rest_lines, "")
            self._rest_lines = 0
            self._complain(error)
            return False
        if len(self._rest) < len(data):
            self._failing = False
        if self._rest:
            return False
        self.written += self._rest_lines
        self._rest_lines = 0
        return True

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("Log lines cannot be written to %s: %r", self.sink.stream, error)

    def _fail(self, count: int, problem: str) -> None:
        self.failed += count
        self._unreported_failed += count
        if problem and not self._failing:
            logger.warning(problem, exc_info=True)

    def _collect_dropped(self) -> None:
        dropped = self.backlog.take_dropped()
        self.dropped.update(dropped)
        self._unreported.update(dropped)

    def _report_losses(self) -> None:
        if self.backlog.dropped.total():
            self._collect_dropped()
        if not (self._unreported.total() or self._unreported_failed):
            return
        now = monotonic()
        if now - self._reported < REPORT_INTERVAL and not self._closed:
            return
        lost = {
            logging.getLevelName(level).lower(): count for level, count in sorted(self._unreported.items()) if count
        }
        parts = [f"{count} {name}" for name, count in lost.items()]
        fields: dict[str, Any] = {}
        if lost:
            fields["dropped"] = lost
        if self._unreported_failed:
            fields["failed"] = self._unreported_failed
            parts.append(f"{self._unreported_failed} that could not be written")
        message = f"Log lines were lost: {', '.join(parts)}"
        self._unreported = Counter()
        self._unreported_failed = 0
        self._reported = now
        entry = Entry(time(), logging.WARNING, "WARNING", "django_obs", message, "", "", "", fields, None, None)
        self._rest = self.formatter.line(entry)
        self._rest_lines = 1
        self._flush_rest()

    # -- QueueListener's verbs -----------------------------------------------------------------------------------------

    def dequeue(self, block: bool) -> Any:
        return self.backlog.get_nowait()

    def handle(self, record: Any) -> None:
        self._write_batch([record])

    def enqueue_sentinel(self) -> None:
        """Do nothing: the worker ends by its own means."""

    def start(self) -> None:
        """Let the worker run in this process."""
        self.worker.ensure()

    def stop(self, timeout: float = 5.0) -> bool:  # type: ignore[override]
        """Write what is queued, for at most so many seconds, and write later entries at once."""
        complete = self.flush(timeout)
        self._closed = True
        return complete

    def flush(self, timeout: float) -> bool:
        """Write what is queued; tell whether all was written within so many seconds."""
        deadline = monotonic() + timeout
        while True:
            ran = self.worker.flush(max(0.0, deadline - monotonic()))
            if self.queued() == 0:
                return True
            if not ran or self._failing or monotonic() >= deadline:
                return False
            # The reader of a full pipe needs a moment.
            sleep(0.005)

    def queued(self) -> int:
        """Return how many lines wait."""
        return self.backlog.qsize() + self._rest_lines

    def stats(self) -> dict[str, int]:
        """Return what this process has counted."""
        dropped = self.dropped + self.backlog.dropped
        counted = {
            "queued": self.queued(),
            "written": self.written,
            "dropped": dropped.total(),
            "failed": self.failed,
        }
        for level in STEPS:
            counted[f"dropped_{logging.getLevelName(level).lower()}"] = dropped[step(level)]
        return counted

"""The bounded queue of encoded spans, and the job that carries it to the collector in batches."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_obs.lifecycle import Worker

from .encoder import encode_request, encode_resource
from .transport import Batch, Outcome, Transport

if TYPE_CHECKING:
    from .encoder import Group

logger = logging.getLogger("django_obs")

# One request costs the client 500 us, so few and large ones; but what waits and its copy on the way are room that a
# process keeps, and a gRPC receiver takes 4 MiB unless told otherwise.
BATCH_BYTES = 512 * 1024
BATCH_SPANS = 2048
# The default of OTEL_BSP_SCHEDULE_DELAY: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
DELAY = 5.0
# Seconds after which a batch is given up that the collector might have taken: it may be the batch.
PATIENCE = 300.0
# Seconds between two warnings about a collector that does not take spans.
WARNING_INTERVAL = 300.0


class Exporter:
    """Takes encoded spans from any thread, and exports them from the worker's.

    The queue is bounded by the number of spans. What does not fit is dropped and counted; a collector that cannot be
    reached holds up one batch, which is tried again until new spans need its room. Nothing here blocks a caller.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        worker: Worker,
        *,
        resource: Callable[[], Mapping[str, Any]],
        queue_size: int,
        batch_spans: int = BATCH_SPANS,
        delay: float = DELAY,
        what: str = "Spans",
    ) -> None:
        self.queue_size = queue_size
        self.batch_spans = batch_spans
        self.worker = worker
        self._what = what
        self._open_transport = open_transport
        self.prepare: Callable[[], object] = int  # encodes what is to be exported next
        self._resource = resource
        self._wake_at = max(1, min(batch_spans, queue_size // 2))
        self._reset()
        worker.every(delay, self.drain)

    def _reset(self) -> None:
        # Counters are written without a lock: the interpreter lock is not handed over inside one of these statements.
        self.waiting = 0  # spans that are queued or on their way
        self._bytes = 0  # of what is queued, about: threads may add to it at once
        self.exported = 0
        self.dropped = 0
        self.failed = 0
        self._queue: deque[Group] = deque()
        self._unsent: Batch | None = None
        self._taken_at = 0.0
        self._transport: Transport | None = None
        self._encoded_resource: bytes | None = None
        self._draining = threading.Lock()
        self._deadline: float | None = None
        self._woken = False
        self._closed = False
        self._pressed = False
        self._warned_at: float | None = None

    def offer(self, groups: Sequence[Group]) -> None:
        """Queue encoded spans: (scope, number of spans, spans as fields of ScopeSpans)."""
        for group in groups:
            count = group[1]
            # One trace may be larger than a small queue; alone it is let in.
            if (self.waiting and self.waiting + count > self.queue_size) or self._closed:
                self.dropped += count
                self._pressed = True
            else:
                self.waiting += count
                self._bytes += len(group[2])
                self._queue.append(group)
        worker = self.worker
        if not worker.running:
            worker.ensure()
        if self._woken or (self.waiting < self._wake_at and self._bytes < BATCH_BYTES):
            return
        # A collector that has asked for patience is asked again by the clock, unless its batch has to make room.
        if self._unsent is None or self._pressed:
            self._woken = True
            worker.wake()

    def drain(self) -> None:
        """Export what is queued. The worker's job; never raises, never runs twice at once."""
        if not self._draining.acquire(blocking=False):
            return
        try:
            self.prepare()
            while True:
                if self._unsent is None:
                    self._unsent = self._take()
                    self._taken_at = monotonic()
                batch = self._unsent
                if batch is None:
                    break
                outcome = self._send(batch)
                if outcome.delivered:
                    self.exported += batch.spans
                    self._warned_at = None
                    self._pressed = False  # there is room again
                elif outcome.again and not self._pressed and monotonic() - self._taken_at < PATIENCE:
                    self._warn(outcome)
                    break
                else:
                    self._warn(outcome)
                    self.failed += batch.spans
                    self._pressed = False
                self.waiting -= batch.spans
                self._unsent = None
                if self._out_of_time():
                    break
        finally:
            self._woken = False
            self._draining.release()

    def _take(self) -> Batch | None:
        """Take a batch from the queue, grouped by scope."""
        queue = self._queue
        if not queue:
            return None
        scopes: dict[bytes, list[bytes]] = {}
        count = size = 0
        while queue and count < self.batch_spans and size < BATCH_BYTES:
            if count and count + queue[0][1] > self.batch_spans:
                break
            scope, number, spans = queue.popleft()
            scopes.setdefault(scope, []).append(spans)
            count += number
            size += len(spans)
        self._bytes = 0 if not queue else max(0, self._bytes - size)
        if self._encoded_resource is None:
            self._encoded_resource = encode_resource(self._resource())
        return Batch(count, encode_request(self._encoded_resource, scopes.items()))

    def _send(self, batch: Batch) -> Outcome:
        try:
            # A flush may take it away at any moment.
            transport = self._transport
            if transport is None:
                transport = self._transport = self._open_transport()
            return transport.send(batch, self._time_left(), retry=self._deadline is None)
        except Exception as error:
            # A certificate that cannot be read, an exporter that is not as we know it.
            logger.debug("export failed", exc_info=True)
            return Outcome(False, False, f"{type(error).__name__}: {error}")

    def _time_left(self) -> float:
        # 3600: the exporter's own timeout holds.
        return 3600.0 if self._deadline is None else max(0.001, self._deadline - monotonic())

    def _out_of_time(self) -> bool:
        return self._deadline is not None and monotonic() >= self._deadline

    def _warn(self, outcome: Outcome) -> None:
        now = monotonic()
        if self._warned_at is None or now - self._warned_at >= WARNING_INTERVAL:
            self._warned_at = now
            logger.warning(
                "%s are not taken by the collector: %s. What is lost is counted, not reported again for %d seconds.",
                self._what,
                outcome.reason,
                WARNING_INTERVAL,
            )

    def force_flush(self, timeout: float) -> bool:
        """Export everything within so many seconds; tell whether everything was delivered."""
        failed = self.failed
        self._deadline = monotonic() + timeout
        try:
            self._interrupt()
            finished = self.worker.flush(timeout)
        finally:
            self._deadline = None
        return finished and not self.waiting and self.failed == failed

    def shutdown(self, timeout: float) -> bool:
        """Export everything within so many seconds and end the thread; later spans are counted as dropped."""
        failed = self.failed
        self._deadline = monotonic() + timeout
        self._interrupt()
        finished = self.worker.stop(timeout)
        self._closed = True
        return finished and not self.waiting and self.failed == failed

    def _interrupt(self) -> None:
        """Let an export that waits between retries give up; the next one has a client of its own."""
        transport = self._transport
        if transport is not None and self._draining.locked():
            self._transport = None
            transport.interrupt()

    def after_fork(self) -> None:
        """Forget the parent's spans, which the parent will export, and its connection."""
        self._reset()

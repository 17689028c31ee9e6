"""Ended traces that wait until the worker encodes them, many at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import sleep
from typing import TYPE_CHECKING

from django_obs.lifecycle import Worker

if TYPE_CHECKING:
    from .encoder import Leaf
    from .provider import Sink
    from .span import LocalTrace, Span

# Seconds between two rounds. Each costs a third of a millisecond whatever it finds, as the worker's memory is cold too;
# who waits for spans waits for the exporter, ten times as long.
INTERVAL = 0.5
# Traces that may wait: whoever ends one more encodes it, as when there is no worker. And spans that one of them may
# have: what has more is a row by itself, and all together are as many as the queue behind takes by default.
LIMIT = 256
SPANS = 32
# Traces that are worth a round before its time. And as many are encoded between two moments at which other threads
# surely get the interpreter: a third of a millisecond.
BATCH = 32


class Held:
    """Ended traces that nobody can change any more.

    The code and the tables of the encoder are cold when a request comes to its end: what encoding one trace reads was
    displaced by the page meanwhile. In a row that is paid for once, and not by a request.
    """

    def __init__(
        self,
        sink: Sink,
        encode: Callable[[Sink, Iterable[tuple[LocalTrace, Sequence[Span | Leaf]]]], None],
        worker: Worker,
    ) -> None:
        self.sink = sink
        self.worker = worker
        self._encode = encode
        self.after_fork()
        self._job = worker.every(INTERVAL, self.encode)

    def after_fork(self) -> None:
        """Forget the parent's traces, which the parent will export."""
        self._traces: deque[tuple[LocalTrace, Sequence[Span | Leaf]]] = deque()
        # Reentrant: a signal handler may end the process, and so come here, while its thread encodes.
        self._lock = threading.RLock()

    def put(self, sink: Sink, trace: LocalTrace, items: Sequence[Span | Leaf]) -> bool:
        """Take spans of a trace; False if nobody would encode them soon, or another sink wants them."""
        traces = self._traces
        if len(traces) >= LIMIT or len(items) > SPANS or not self.worker.running or sink is not self.sink:
            return False
        traces.append((trace, items))
        # One is due at once that somebody has asked for already.
        if len(traces) >= BATCH and self._job.due:
            self.worker.hurry(self._job)
        return True

    def encode(self) -> None:
        """Encode what waits. When it returns, all that was put before is encoded, whoever has done it."""
        with self._lock:
            rows = -(-len(self._traces) // BATCH)
            # What comes in meanwhile is for the next round, unless it is worth one: a thread that has to wait for its
            # turn anew finds the room full. Not for ever, as a flush waits for this.
            for row in range(rows + LIMIT // BATCH):
                if row >= rows and len(self._traces) < BATCH:
                    break
                if row:
                    sleep(0)
                self._encode(self.sink, self._taken())

    def _taken(self) -> Iterator[tuple[LocalTrace, Sequence[Span | Leaf]]]:
        for _ in range(BATCH):
            try:
                yield self._traces.popleft()
            except IndexError:
                return

    def spans(self) -> int:
        """Return how many spans wait."""
        return sum(len(items) for _, items in tuple(self._traces))

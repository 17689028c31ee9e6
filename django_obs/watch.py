"""While somebody watches: spans and lines -> copies -> the admin port, beside the way that they go anyway.

It knows two signals, so it stands above both. When nobody watches there is neither a thread nor a test for it: what
copies is put between a signal and its exporter when an order comes, and taken out again when the order ends.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from django_obs.lifecycle import Worker, opening
from django_obs.runtime import ROLE_HEADER, WatchOrder, role

if TYPE_CHECKING:
    from django_obs.log_export import LogExport
    from django_obs.logs.entry import Entry
    from django_obs.logs.listener import LogListener
    from django_obs.traces.encoder import Group
    from django_obs.traces.provider import TracerProvider

logger = logging.getLogger("django_obs")

# Seconds between two deliveries: what a person takes for at once.
INTERVAL: Final = 0.25
# Seconds that the other side has for each step. It is on this machine and has nothing to do but to listen.
TIMEOUT: Final = 2.0
# Failures one after the other, after which nobody is believed to be there.
PATIENCE: Final = 3
# Seconds that the last copies may take at the exit of a process.
EXIT_TIMEOUT: Final = 0.5
# Of spans, and of lines, that may wait. What does not fit is dropped and counted.
QUEUE_BYTES: Final = 2 * 1024 * 1024
# Half of what the receiver takes.
BATCH_BYTES: Final = 2 * 1024 * 1024


class Copies:
    """Encoded spans, or lines, that wait to be sent."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        # Counters are written without a lock, like those of the exporter.
        self.bytes = 0
        self.waiting = 0
        self.dropped = 0
        self.sent = 0
        self._queue: deque[Group] = deque()

    def put(self, groups: Sequence[Group]) -> None:
        """Queue what there is room for. Called by any thread; never waits."""
        for group in groups:
            size = len(group[2])
            if self.bytes + size > QUEUE_BYTES:
                self.dropped += group[1]
            else:
                self.bytes += size
                self.waiting += group[1]
                self._queue.append(group)

    def take(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return how many, and them by scope."""
        scopes: dict[bytes, list[bytes]] = {}
        count = size = 0
        queue = self._queue
        while queue and (not count or size + len(queue[0][2]) <= BATCH_BYTES):
            scope, number, encoded = queue.popleft()
            scopes.setdefault(scope, []).append(encoded)
            count += number
            size += len(encoded)
        self.bytes -= size
        self.waiting -= count
        return count, [(scope, b"".join(parts)) for scope, parts in scopes.items()]


class Copier:
    """Sends copies to one address, from a thread of its own, which starts with the first copy in each process."""

    def __init__(
        self,
        order: WatchOrder,
        resource: Callable[[], Mapping[str, Any]],
        on_end: Callable[[Copier], None],
        say: Callable[[str], None],
    ) -> None:
        self.url, self.token = order.url, order.token
        self.spans = Copies("/v1/traces")
        self.lines = Copies("/v1/logs")
        self.ended = False
        self._on_end = on_end
        self._say = say
        self._resource = resource
        self._encoded_resource: bytes | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._failures = 0
        self.worker = Worker("django_obs-watch")
        self.worker.every(INTERVAL, self.send)
        self.renew(order)

    def renew(self, order: WatchOrder) -> None:
        """Go on until the order expires."""
        # By a clock that nobody sets back.
        self._deadline = monotonic() + order.until - time()

    def put(self, copies: Copies, groups: Sequence[Group]) -> None:
        """Queue groups. Called by any thread; never waits, never raises."""
        copies.put(groups)
        worker = self.worker
        if not worker.running:
            worker.ensure()

    def send(self) -> None:
        """Deliver what waits. The worker's job."""
        if monotonic() >= self._deadline:
            # Where nobody polls for orders in this process.
            self.end()
        for copies in (self.spans, self.lines):
            while copies.waiting and not self.ended:
                count, groups = copies.take()
                if self._post(copies.path, self._request(groups)):
                    copies.sent += count
                else:
                    copies.dropped += count
        if self.ended:
            self._disconnect()

    def _request(self, groups: list[tuple[bytes, bytes]]) -> bytes:
        from django_obs.traces.encoder import encode_request, encode_resource

        if self._encoded_resource is None:
            self._encoded_resource = encode_resource(self._resource())
        return encode_request(self._encoded_resource, ((scope, (content,)) for scope, content in groups))

    def _post(self, path: str, body: bytes) -> bool:
        reused = self._connection is not None
        try:
            try:
                status = self._exchange(path, body)
            except (http.client.HTTPException, ConnectionError):
                if not reused:
                    raise
                # It was closed since: one side waits no longer than it likes, or was started anew.
                status = self._exchange(path, body)
        except ConnectionRefusedError:
            self.give_up("nobody is there")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._disconnect()
            self._failures += 1
            if self._failures >= PATIENCE:
                self.give_up(str(error) or type(error).__name__)
        else:
            self._failures = 0
            if status == 200:
                self._say("")
            if status in (401, 403, 404):
                self.give_up(f"it answers {status}")
            return status == 200
        return False

    def _exchange(self, path: str, body: bytes) -> int:
        connection = self._connection
        if connection is None:
            address = urlsplit(self.url)
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT)
            self._connection = connection
        headers = {
            "Content-Type": "application/x-protobuf",
            "Authorization": f"Bearer {self.token}",
            ROLE_HEADER: role(),
        }
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
        except BaseException:
            self._disconnect()
            raise
        return response.status

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def give_up(self, reason: str) -> None:
        """Send nothing more until there is another order."""
        self.end()
        self._say(reason)

    def end(self) -> None:
        """Forget what waits, and let the thread end when it can. Never waits."""
        if not self.ended:
            self.ended = True
            self._on_end(self)
            self.worker.stop(0)

    def flush(self, timeout: float) -> None:
        """Deliver what waits, in so many seconds or not at all."""
        if self.worker.running:
            self.worker.flush(min(timeout, EXIT_TIMEOUT))

    def after_fork(self) -> None:
        """Forget what the parent sends."""
        self.spans.reset()
        self.lines.reset()
        self.worker.after_fork()
        self._disconnect()
        self._encoded_resource = None
        self._failures = 0


class SpanTee:
    """A sink of spans that copies what goes through to the one behind it."""

    def __init__(self, behind: Any, copier: Copier) -> None:
        self.behind = behind
        self.copier = copier

    def offer(self, groups: Sequence[Group]) -> None:
        """Take encoded spans."""
        if self.behind is not None:
            self.behind.offer(groups)
        self.copier.put(self.copier.spans, groups)

    def force_flush(self, timeout: float) -> bool:
        """Flush the sink behind."""
        flush = getattr(self.behind, "force_flush", None)
        return True if flush is None else bool(flush(timeout))


class LineTee:
    """An exporter of lines that copies what goes through to the one behind it. Encoded once."""

    def __init__(self, behind: LogExport | None, copier: Copier) -> None:
        self.behind = behind
        self.copier = copier

    def __call__(self, entries: list[Entry]) -> None:
        """Take what the listener has written."""
        from django_obs.log_export import encode_entries

        groups = encode_entries(entries)
        if self.behind is not None:
            self.behind.exporter.offer(groups)
        self.copier.put(self.copier.lines, groups)


class Watch:
    """Follows the watch order of the control file, for the guard to own."""

    name = "watch"

    def __init__(
        self,
        *,
        resource: Callable[[], Mapping[str, Any]],
        prepare: Callable[[], object] | None = None,
        listener: LogListener | None = None,
        flush_lines: Callable[[float], bool] | None = None,
    ) -> None:
        """Follow no order yet.

        ``prepare`` makes the spans' pipeline, which is attached then, if there is none yet. ``flush_lines`` makes the
        listener write what is queued, and so hand it over to be copied.
        """
        self.resource = resource
        self.prepare = prepare
        self.provider: TracerProvider | None = None
        self.listener = listener
        self.flush_lines = flush_lines
        self.copier: Copier | None = None
        self._spans: SpanTee | None = None
        self._lines: LineTee | None = None
        self._sent = self._dropped = 0
        self._said = ""
        # A first request and the worker may see an order at the same time, and a copier gives up in its own thread.
        self._changing = threading.RLock()

    def attach(self, provider: TracerProvider) -> None:
        """Copy the spans of this provider, too."""
        self.provider = provider
        if self.copier is not None:
            self._tee_spans(self.copier)

    def obey(self, order: WatchOrder | None) -> None:
        """Copy to where the order says, or no longer."""
        with self._changing:
            copier = self.copier
            if copier is not None:
                same = order is not None and (order.url, order.token) == (copier.url, copier.token)
                if order is not None and same and not copier.ended:
                    copier.renew(order)
                    return
                copier.end()
                # It may be about to end by itself: what comes now shall not stand on top of it.
                self._end(copier)
            if order is not None:
                self._begin(order)

    def _begin(self, order: WatchOrder) -> None:
        with opening.lock:
            # Spans and lines of a process have one instance id. What sending them imports is imported here, where no
            # fork can come in between: the API's modules, and the codec of host names.
            if self.prepare is not None:
                self.prepare()
            for module in ("django_obs.log_export", "encodings.idna"):
                import_module(module)
        self.copier = copier = Copier(order, self.resource, self._end, self._say)
        self._tee_spans(copier)
        if self.listener is not None:
            self._lines = LineTee(self.listener.exporter, copier)  # type: ignore[arg-type]
            self.listener.exporter = self._lines

    def _tee_spans(self, copier: Copier) -> None:
        if self.provider is not None:
            self._spans = SpanTee(self.provider.sink, copier)
            self.provider.sink = self._spans

    def _end(self, copier: Copier) -> None:
        """Put everything back as it stood before this copier, unless that was done."""
        with self._changing:
            if self.copier is not copier:
                return
            spans, lines = self._spans, self._lines
            if spans is not None and self.provider is not None and self.provider.sink is spans:
                self.provider.sink = spans.behind
            if lines is not None and self.listener is not None and self.listener.exporter is lines:
                self.listener.exporter = lines.behind
            self._spans = self._lines = None
            for copies in (copier.spans, copier.lines):
                self._sent += copies.sent
                self._dropped += copies.dropped + copies.waiting
            self.copier = None

    def _say(self, reason: str) -> None:
        # Orders are renewed all the time: said once, until it was otherwise.
        if reason and reason != self._said:
            logger.info("Copies for who watches are not taken: %s. None are sent until the next order.", reason)
        self._said = reason

    def after_fork(self) -> None:
        """Forget what the parent has queued; the order goes on to hold."""
        self._changing = threading.RLock()
        self._sent = self._dropped = 0
        if self.copier is not None:
            self.copier.after_fork()

    def force_flush(self, timeout: float) -> bool:
        """Deliver the copies, in half a second or not at all: nothing is lost that was not a copy."""
        deadline = monotonic() + timeout
        if self.copier is not None:
            if self.flush_lines is not None:
                self.flush_lines(timeout / 2)
            # The lines that it wrote may have ended it.
            if self.copier is not None:
                self.copier.flush(max(0.0, deadline - monotonic()))
        return True

    def shutdown(self, timeout: float) -> bool:
        """Deliver the copies, in half a second or not at all, and stop."""
        self.force_flush(timeout)
        if self.copier is not None:
            self.copier.end()
        return True

    def stats(self) -> dict[str, int]:
        """Return copies of spans and lines: waiting now; sent and dropped so far in this process."""
        copier = self.copier
        queues = (copier.spans, copier.lines) if copier is not None else ()
        return {
            "queued": sum(copies.waiting for copies in queues),
            "sent": self._sent + sum(copies.sent for copies in queues),
            "dropped": self._dropped + sum(copies.dropped for copies in queues),
        }

"""A phase: servers start, clients send, a fault strikes and is mended, servers end, and the accounts are made."""

from __future__ import annotations

import re
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from example_project.demo.processes import poll

from . import ledger
from .faults import Fault
from .ledger import Expected, Ledger
from .load import Load
from .receiver import Receiver
from .twins import PATIENCE, Use, growth, start_twins

# What a server's threads and descriptors may differ from one moment to another: it starts its own by and by.
SLACK = {"threads": 12, "descriptors": 30}


@dataclass
class Result:
    """What came of a phase."""

    fault: Fault
    requests: int
    differing: list[str]
    unanswered: Counter[str]
    ledger: Ledger
    seconds: dict[str, list[float]]
    uses: dict[str, list[Use]]
    to_exit: float
    notes: list[str]
    said: str
    failure: str = ""

    def problems(self) -> list[str]:
        """Return what should not have come, in words; empty if all is well."""
        found = []
        fault, books = self.fault, self.ledger
        if self.failure:
            found.append(self.failure)
        if not self.requests:
            found.append("no request was answered")
        if self.differing:
            found.append(f"{len(self.differing)} responses differ from bare Django's: {self.differing[:3]}")
        if self.unanswered["ours"] and not fault.unanswered:
            found.append(
                f"{self.unanswered['ours']} requests were not answered, {self.unanswered['bare']} by bare Django"
            )
        for name, account in (("lines", books.lines), ("spans", books.spans)):
            if account.doubled:
                found.append(f"{account.doubled} {name} came twice")
            if account.lost and name not in fault.loses:
                found.append(f"{account.lost} {name} of {account.expected} were lost")
            if account.lost > account.counted and not fault.killed:
                found.append(f"{account.lost} {name} were lost, {account.counted} counted as lost")
        most = books.samples_expected + sum(self.unanswered.values())
        if fault.samples and not books.samples_expected <= books.samples <= most and fault.name not in UNCOUNTED:
            found.append(
                f"the metrics have {books.samples:.0f} requests, there were {books.samples_expected} to {most}"
            )
        if fault.samples and books.samples < books.samples_expected:
            found.append(f"the metrics have {books.samples:.0f} requests of {books.samples_expected}")
        if books.backwards:
            found.append(f"{books.backwards} spans end before they start")
        if books.torn and not (fault.killed or fault.name == "stdout closed"):
            found.append(f"{books.torn} lines are torn")
        found += grown(self.uses["ours"])
        return found


def grown(uses: list[Use]) -> list[str]:
    """Say what has grown that should not."""
    return [
        f"{what} grew from {before:.0f} to {after:.0f}"
        for what, before, after in growth(uses)
        if what in SLACK and after > before + SLACK[what]
    ]


# What also sends requests that the books know nothing of.
UNCOUNTED = frozenset({"hostile headers and paths", "many distinct labels", "ASGI connections cancelled"})


@dataclass
class Phase:
    """One fault on one pair of servers."""

    fault: Fault
    seconds: float
    work: Path
    database: Path
    rate: float = 60.0
    labels: int = 20_000
    connections: int = 400
    batch: int = 100
    counted: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)
    failure: str | None = None

    def __post_init__(self) -> None:
        (self.work / "run").mkdir(parents=True)
        self.runtime = self.work / "run" / "runtime"
        self.clock = self.work / "clock"
        self.set_clock(0.0)
        self.receiver = Receiver()
        self.turn = max(0.3, self.seconds / 40)
        self._stopping = threading.Event()
        self._repeater: threading.Thread | None = None

    def run(self, expected: Expected | None) -> tuple[Result, Expected]:
        """Go through it; without `expected`, learn what requests make."""
        labels = {"DJANGO_OBS_METRICS_MAX_SERIES": "2000"} if self.labels < 100_000 else {}
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.receiver.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "300",
            "DJANGO_OBS_RUNTIME_DIR": str(self.runtime),
            "DJANGO_OBS_FLUSH_TIMEOUT": "20",
            # Whether a description is cached depends on the worker that one meets.
            "DJANGO_OBS_TRACES_CACHE": "false",
            "SOAK_CLOCK": str(self.clock),
            **(labels if self.fault.name == "many distinct labels" else {}),
            **self.fault.env,
        }
        with ExitStack() as stack:
            stack.callback(self.receiver.close)
            if self.fault.around is not None:
                stack.enter_context(self.fault.around(self))
            self.twins = start_twins(self.fault.command, self.work, self.database, env)
            stack.callback(self.twins.stop)
            self.load = Load(self.twins, self.rate * self.fault.rate)
            self.load.send_each()
            self.load.start()
            with self._measuring():
                time.sleep(self.seconds / 4)
                with self.fault.during(self):
                    time.sleep(self.seconds / 2)
                time.sleep(self.seconds / 4)
                self.load.stop()
            # What requests needed is given back when they are over; what leaks is not.
            poll(self._is_calm, PATIENCE / 2)
            self.twins.stop()
            return self._result(expected)

    def _is_calm(self) -> bool:
        for server in self.twins.both:
            server.measure()
        return not grown(self.twins.ours.uses)

    def set_clock(self, shift: float) -> None:
        """Shift the servers' clock by so many seconds from the true one."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(struct.pack("d", shift))

    def count(self, what: str, number: int = 1) -> None:
        self.counted[what] += number

    def pause(self, seconds: float) -> None:
        """Wait, unless the fault is over."""
        self._stopping.wait(seconds)

    @contextmanager
    def repeating(self, act: Callable[[], None], pause: float, most: int = 1_000_000) -> Iterator[None]:
        """Do something again and again, in a thread of its own."""

        def run() -> None:
            try:
                for _ in range(most):
                    if self._stopping.is_set():
                        break
                    act()
                    self._stopping.wait(pause)
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"

        self._stopping.clear()
        self._repeater = threading.Thread(target=run, daemon=True)
        self._repeater.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._repeater.join(2 * PATIENCE)

    def finish_repeating(self) -> None:
        """Wait until it was done as often as it should."""
        assert self._repeater is not None
        self._repeater.join(20 * PATIENCE)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        done = threading.Event()

        def run() -> None:
            while not done.wait(0.25):
                for server in self.twins.both:
                    server.measure()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(PATIENCE)

    def _result(self, expected: Expected | None) -> tuple[Result, Expected]:
        self.receiver.settle()
        sent, data, spans = self.load.sent, bytes(self.twins.ours.pipe.data), self.receiver.spans
        learnt = expected or ledger.learn(sent, data, spans)
        said = self.twins.ours.said()
        books = ledger.balance(sent, data, spans, said, self.runtime / "metrics", learnt)
        notes = [f"{number} {what}" for what, number in self.counted.items()]
        failure = self.failure or ""
        if self.receiver.unacknowledged:
            notes.append(f"{self.receiver.unacknowledged} batches that were received and not acknowledged came again")
        if self.cancelled:
            failure = failure or self._cancelled_problems(data)
        if self.fault.name == "many distinct labels":
            counted, series = ledger.total(self.runtime / "metrics", "soak_distinct_total")
            notes.append(f"{series} series")
            if counted != self.counted["label values"]:
                failure = failure or f"the metrics have {counted:.0f} label values of {self.counted['label values']}"
        if traceback := re.search(r"^Traceback.*\n(?:[ ^~].*\n)+(\w.*)", said, re.MULTILINE):
            notes.append(f"stderr has a traceback: `{traceback[1][:200]}`")
        uses = {server.name: server.uses for server in self.twins.both}
        requests = len(list(self.load.answered()))
        return (
            Result(
                self.fault,
                requests,
                self.load.differing,
                self.load.unanswered,
                books,
                self.load.seconds,
                uses,
                self.twins.ours.seconds_to_exit,
                notes,
                said,
                failure,
            ),
            learnt,
        )

    def _cancelled_problems(self, data: bytes) -> str:
        """Say what is wrong with the cancelled requests: each that began has one line and one span."""
        counts, _, _ = ledger.line_counts(data)
        ours = set(self.cancelled)
        lines = Counter(request_id for request_id, _ in counts.elements() if request_id in ours)
        spans = Counter(
            span.trace_id.hex() for span in self.receiver.spans if span.kind == 2 and span.trace_id.hex() in ours
        )
        self.count("cancelled requests began", len(lines))
        if lines != spans or any(number > 1 for number in lines.values()):
            return f"{len(lines)} cancelled requests have {lines.total()} lines and {spans.total()} spans"
        return ""

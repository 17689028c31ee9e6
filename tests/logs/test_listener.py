from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from django_obs.conf import LogSettings
from django_obs.logs.entry import Entry
from django_obs.logs.formatters import JSONFormatter
from django_obs.logs.sink import Sink
from tests.logs.conftest import Installed
from tests.logs.test_sink import Pipe, pipe

__all__ = ["pipe"]

shop = logging.getLogger("shop")


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_lines_come_by_the_clock(pipeline: Installed) -> None:
    pipeline(LogSettings(flush_interval=0.02))
    shop.info("one")
    wait_until(lambda: '"one"' in pipeline.path.read_text())


def test_full_quarter_of_the_queue_wakes_the_listener(pipeline: Installed) -> None:
    pipeline(LogSettings(flush_interval=60.0, queue_size=400))
    for number in range(150):
        shop.info("line %d", number)
    wait_until(lambda: pipeline.path.read_text().count("\n") >= 100)


def test_blocked_sink_neither_slows_the_caller_nor_loses_more_than_does_not_fit(
    pipeline: Installed, pipe: Pipe
) -> None:
    made = pipeline(LogSettings(queue_size=200, flush_interval=0.01, filter="debug"), sink=Sink(pipe.stream))
    filler = "x" * 1000
    for number in range(3000):
        shop.info("line %d %s", number, filler)
        shop.debug("detail %d %s", number, filler)
    wait_until(lambda: made.stats()["dropped"] > 2000)
    started = time.monotonic()
    for _ in range(1000):
        shop.info("while it is blocked")
    shop.error("what counts")
    elapsed = time.monotonic() - started
    # Two minutes of a sink that nobody reads would be seen here.
    assert elapsed < 30
    assert made.stats()["queued"] <= 200 + 64 + 128
    assert made.stats()["dropped_error"] == 0

    found = b""
    deadline = time.monotonic() + 60
    while b"Log lines were lost" not in found and time.monotonic() < deadline:
        found += pipe.read()
        made.worker.wake()
        time.sleep(0.005)
    made.force_flush(60)
    found += pipe.read()
    text = found.decode()
    assert '"what counts"' in text
    stats = made.stats()
    assert stats["dropped"] + stats["written"] - 1 == 3000 + 3000 + 1001
    assert f"{stats['dropped_info']} info" in text
    assert '"dropped":{"debug":' in text


def test_broken_sink_is_reported_once_and_never_raises(
    pipeline: Installed, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    made = pipeline(LogSettings(), sink=Sink(pipe.stream))
    os.close(pipe.readable)
    pipe.readable = os.open(os.devnull, os.O_RDONLY)
    for _ in range(3):
        shop.info("nobody reads")
        made.worker.flush(60)
    assert made.stats()["failed"] == 3
    assert made.stats()["queued"] == 0
    assert stderr.getvalue().count("cannot be written") == 1
    assert "BrokenPipeError" in stderr.getvalue()


class Disk:
    """A sink on a disk that fills up."""

    stream = "a disk"

    def __init__(self) -> None:
        self.full = False
        self.written = b""

    def write(self, data: bytes) -> bytes:
        if not self.full:
            self.written += data
            return b""
        raise OSError(errno.ENOSPC, "No space left on device")


def test_lines_wait_for_space_on_the_disk(pipeline: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    disk = Disk()
    made = pipeline(LogSettings(flush_interval=60), sink=disk)
    disk.full = True
    shop.info("kept")
    assert made.force_flush(60) is False
    assert made.stats()["queued"] == 1
    assert stderr.getvalue().count("No space left") == 1
    disk.full = False
    assert made.force_flush(60) is True
    assert b'"kept"' in disk.written
    assert made.stats()["failed"] == 0


def test_report_about_ourselves_goes_past_the_queue(pipeline: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    made = pipeline()
    logging.getLogger("django_obs").warning("about us")
    assert made.stats()["queued"] == 0
    assert '"about us"' in stderr.getvalue()
    assert pipeline.raw() == ""


def test_exporter_gets_the_entries_and_is_asked_again_after_it_failed(
    pipeline: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    got: list[Entry] = []

    def export(entries: list[Entry]) -> None:
        got.extend(entries)
        if len(got) == 2:
            raise ValueError("too much")

    made = pipeline(exporter=export)
    for number in range(4):
        shop.info("line", extra={"number": number, "password": "x"})
        made.force_flush(60)
    assert [entry.fields for entry in got] == [{"number": number, "password": "[redacted]"} for number in range(4)]
    assert made.stats()["failed"] == 1
    assert len(pipeline.lines()) == 4


def test_line_that_cannot_be_formatted_takes_no_other_with_it(
    pipeline: Installed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(JSONFormatter):
        def line(self, entry: Entry) -> bytes:
            if entry.message == "bad":
                raise ValueError
            return super().line(entry)

    made = pipeline()
    made.listener.formatter = Picky(service="shop")
    for message in ("one", "bad", "two"):
        shop.info(message)
    messages = [line["message"] for line in pipeline.lines()]
    assert messages == ["one", "two", "Log lines were lost: 1 that could not be written"]
    assert made.stats()["failed"] == 1
    assert "could not be formatted" in capsys.readouterr().err


def test_fork_hook_of_a_pipeline_makes_its_locks_anew(pipeline: Installed) -> None:
    made = pipeline()
    held = (made._attaching, made.filter._lock, made.listener._lock, made.backlog._lock)
    made.after_fork()
    now = (made._attaching, made.filter._lock, made.listener._lock, made.backlog._lock)
    assert not any(lock is before for lock, before in zip(now, held, strict=True))


def test_block_waits_for_room_and_loses_nothing(pipeline: Installed) -> None:
    made = pipeline(LogSettings(queue_size=10, overflow="block"))
    threads = [threading.Thread(target=lambda: [shop.info("line") for _ in range(500)]) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(pipeline.lines()) == 2000
    assert made.stats()["dropped"] == 0


def test_record_after_shutdown_is_written_at_once(pipeline: Installed) -> None:
    made = pipeline()
    shop.info("before")
    assert made.shutdown(60)
    shop.info("after")
    assert [json.loads(line)["message"] for line in pipeline.path.read_text().splitlines()] == ["before", "after"]
    assert made.shutdown(60)


def test_shutdown_with_a_blocked_sink_keeps_its_deadline(pipeline: Installed, pipe: Pipe) -> None:
    made = pipeline(LogSettings(queue_size=5000), sink=Sink(pipe.stream))
    for _ in range(2000):
        shop.info("x" * 500)
    started = time.monotonic()
    assert made.shutdown(0.3) is False
    assert time.monotonic() - started < 30
    assert made.stats()["queued"] > 0
    pipe.read()


def test_record_from_a_signal_handler_is_queued(pipeline: Installed) -> None:
    pipeline(LogSettings(queue_size=16, filter="debug"))
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: shop.error("from the handler"))
    try:
        done = threading.Event()

        def kill() -> None:
            for _ in range(50):
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.001)
            done.set()

        thread = threading.Thread(target=kill)
        thread.start()
        while not done.is_set():
            shop.debug("busy")
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert any(line["message"] == "from the handler" for line in pipeline.lines())


def test_record_from_a_finalizer_is_queued(pipeline: Installed) -> None:
    class Logged:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            shop.info("collected")

    pipeline()
    for _ in range(10):
        Logged()
        gc.collect()
    assert [line["message"] for line in pipeline.lines()] == ["collected"] * 10


def test_record_from_another_handler_and_from_a_value_is_queued(pipeline: Installed) -> None:
    class Talkative(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name != "handler":
                logging.getLogger("handler").info("heard %s", record.getMessage())

    class Value:
        def __str__(self) -> str:
            shop.info("asked")
            return "value"

    pipeline()
    logging.getLogger("talk").addHandler(Talkative())
    logging.getLogger("talk").info("message")
    shop.info("with", extra={"value": Value()})
    assert sorted(line["message"] for line in pipeline.lines()) == ["asked", "heard message", "message", "with"]


def test_other_handlers_still_see_the_record_as_it_was(pipeline: Installed) -> None:
    seen: list[logging.LogRecord] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    pipeline()
    # After ours, as it stands on a logger further up.
    logging.getLogger().addHandler(Seen())
    shop.info("%s bought %d", "Ann", 7, extra={"a": object()})
    assert (seen[0].msg, seen[0].args) == ("%s bought %d", ("Ann", 7))


def test_arguments_are_merged_before_they_change(pipeline: Installed) -> None:
    pipeline()
    basket = ["apple"]
    shop.info("basket %s", basket, extra={"basket": basket})
    basket.append("pear")
    (line,) = pipeline.lines()
    assert line["message"] == "basket ['apple']"
    assert line["basket"] == ["apple"]


def test_values_are_read_on_the_thread_that_logs(pipeline: Installed) -> None:
    class Value:
        def __str__(self) -> str:
            return threading.current_thread().name

    pipeline()
    shop.info(Value(), extra={"value": Value()})
    (line,) = pipeline.lines()
    assert line["message"] == line["value"] == threading.current_thread().name


def test_child_writes_nothing_of_its_parent_and_all_of_its_own(pipeline: Installed) -> None:
    made = pipeline(LogSettings(flush_interval=60))
    shop.info("parent")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            made.worker.after_fork()
            made.after_fork()
            shop.info("child")
            made.shutdown(60)
            code = 0
        finally:
            os.kill(os.getpid(), signal.SIGKILL if code else signal.SIGTERM)
            os._exit(code)
    os.waitpid(pid, 0)
    assert sorted(line["message"] for line in pipeline.lines()) == ["child", "parent"]


def test_stats_count_by_level(pipeline: Installed) -> None:
    made = pipeline(LogSettings(queue_size=4, flush_interval=60, filter="debug"))
    made.listener._lock.acquire()
    try:
        for level in (10, 10, 20, 20, 30, 40):
            shop.log(level, "line")
        stats = made.stats()
    finally:
        made.listener._lock.release()
    assert (stats["queued"], stats["dropped"], stats["dropped_debug"], stats["dropped_info"]) == (4, 2, 2, 0)


def test_queue_listener_verbs_work(pipeline: Installed) -> None:
    made = pipeline(LogSettings(flush_interval=60))
    made.listener.start()
    assert made.worker.running
    made.handler.enqueue(made.handler.prepare(logging.makeLogRecord({"msg": "made", "levelno": 20})))
    assert made.listener.dequeue(False)[4] == "made"
    record: Any = logging.makeLogRecord({"msg": "handled", "name": "shop", "levelname": "INFO", "levelno": 20})
    made.listener.handle(made.handler.prepare(record))
    assert pipeline.lines()[0]["message"] == "handled"
    assert made.listener.stop()

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from django_obs.lifecycle import Guard, Worker


def reset_signals() -> None:
    """Undo what a shell does to its background jobs: it lets them ignore SIGINT and SIGQUIT."""
    for signalnum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGABRT):
        signal.signal(signalnum, signal.SIG_DFL)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # In development mode faulthandler owns SIGABRT.
        env={name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"},
        preexec_fn=reset_signals,
    )


def test_worker_runs_its_job_by_the_clock() -> None:
    ran = threading.Event()
    worker = Worker("test")
    worker.every(0.001, ran.set)

    worker.ensure()

    assert ran.wait(60)
    assert worker.stop(60)


def test_flush_runs_a_job_that_is_not_due_in_the_thread() -> None:
    names: list[str] = []
    worker = Worker("test")
    worker.every(3600, lambda: names.append(threading.current_thread().name))
    worker.ensure()

    assert worker.flush(60)
    assert names == ["test"]
    worker.stop(60)


def test_job_in_a_hurry_runs_without_the_others() -> None:
    ran: list[str] = []
    done = threading.Event()
    worker = Worker("test")
    worker.every(3600, lambda: ran.append("other"))
    job = worker.every(3600, lambda: ran.append("urgent") or done.set())  # type: ignore[func-returns-value]
    worker.ensure()

    worker.hurry(job)

    assert done.wait(60)
    assert ran == ["urgent"]
    assert worker.flush(60)
    assert ran == ["urgent", "other", "urgent"]
    worker.stop(60)


def test_flush_that_meets_a_round_of_another_job_runs_all_the_same() -> None:
    ran: list[str] = []
    urgent = threading.Event()
    worker = Worker("test")
    worker.every(3600, lambda: ran.append("other"))
    job = worker.every(3600, urgent.set)
    worker.ensure()

    class Met(list[threading.Event]):
        """Lets the thread run when a flush has just said that it waits."""

        def append(self, event: threading.Event) -> None:
            super().append(event)
            worker.hurry(job)
            assert urgent.wait(60)

    worker._waiting = Met()
    assert worker.flush(60)
    assert ran == ["other"]
    worker.stop(60)


def test_flush_gives_up_at_its_timeout() -> None:
    release = threading.Event()
    worker = Worker("test")
    worker.every(3600, lambda: release.wait(60) and None)
    worker.ensure()

    assert worker.flush(0.01) is False

    release.set()
    assert worker.stop(60)


def test_stop_runs_jobs_of_a_worker_that_never_started() -> None:
    ran: list[int] = []
    worker = Worker("test")
    worker.every(3600, lambda: ran.append(1))

    assert worker.stop(1)
    assert ran == [1]


def test_stopped_worker_does_not_start_again() -> None:
    worker = Worker("test")
    worker.every(3600, lambda: None)
    worker.ensure()
    worker.stop(60)

    worker.ensure()

    assert worker.running is False


def test_failing_job_is_reported_once_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    worker = Worker("test")
    worker.every(3600, fail)
    worker.every(3600, lambda: ran.append(1))
    worker.ensure()

    worker.flush(60)
    worker.flush(60)

    assert ran == [1, 1]
    assert len([record for record in caplog.records if "reported once" in record.message]) == 1
    worker.stop(60)


class Recorder:
    """A pipeline that writes down what is asked of it."""

    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name = name
        self.asked = asked

    def after_fork(self) -> None:
        self.asked.append((self.name, "after_fork"))

    def force_flush(self, timeout: float) -> bool:
        self.asked.append((self.name, "force_flush"))
        return True

    def shutdown(self, timeout: float) -> bool:
        self.asked.append((self.name, "shutdown"))
        return True

    def stats(self) -> dict[str, int]:
        return {}


def test_shutdown_goes_in_reverse_order_and_once() -> None:
    asked: list[tuple[str, str]] = []
    guard = Guard()
    guard.adopt(Recorder("logs", asked))
    guard.adopt(Recorder("traces", asked))

    guard.shutdown()
    guard.shutdown()

    assert asked == [("traces", "shutdown"), ("logs", "shutdown")]


def test_fork_without_hooks_is_noticed_by_the_pid() -> None:
    asked: list[tuple[str, str]] = []
    guard = Guard()
    guard.adopt(Recorder("logs", asked))
    guard.pid -= 1

    guard.ensure_process()

    assert asked == [("logs", "after_fork")]
    assert guard.pid == os.getpid()
    guard.worker.stop(60)


EXITS = """
import os, signal, sys
from django_obs.lifecycle import guard

# What a shell's background job or nohup has switched off for everything below.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

class Loud:
    name = "loud"
    def after_fork(self): pass
    def force_flush(self, timeout): return True
    def shutdown(self, timeout):
        os.write(1, b"flushed")
        return True
    def stats(self): return {}

guard.adopt(Loud())
guard.arm(5.0)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGABRT", "SIGQUIT", "SIGHUP"])
def test_default_signal_flushes_and_still_kills(name: str) -> None:
    done = run_python(EXITS + f"os.kill(os.getpid(), signal.{name})\nsignal.pause()")

    assert done.stdout == "flushed"
    assert done.returncode == -getattr(signal, name)


def test_disposition_set_back_to_default_flushes() -> None:
    done = run_python(
        EXITS
        + """
previous = signal.signal(signal.SIGTERM, lambda *_: None)
assert previous is signal.SIG_DFL
signal.signal(signal.SIGTERM, previous)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.raise_signal(signal.SIGTERM)
"""
    )

    assert done.stdout == "flushed"
    assert done.returncode == -signal.SIGTERM


def test_second_signal_does_not_cut_the_flush_short() -> None:
    done = run_python(
        EXITS
        + """
def slow(timeout):
    os.write(1, b"begun ")
    os.kill(os.getpid(), signal.SIGTERM)
    os.write(1, b"done")
    return True
guard.pipelines[0].shutdown = slow
"""
    )

    assert done.stdout == "begun done"
    assert done.returncode == 0


def test_exit_of_another_thread_waits_for_the_flush() -> None:
    done = run_python(
        EXITS
        + """
import threading
flushing = threading.Event()
# Started now: Python 3.12 starts no thread at its end.
threading.Thread(target=lambda: flushing.wait() and os._exit(5), daemon=True).start()
def slow(timeout):
    flushing.set()
    threading.Event().wait(0.2)
    os.write(1, b"done")
    return True
guard.pipelines[0].shutdown = slow
"""
    )

    assert done.stdout == "done"


def test_handler_of_the_program_is_left_alone() -> None:
    done = run_python(
        EXITS
        + """
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"mine "))
signal.raise_signal(signal.SIGTERM)
"""
    )

    assert done.stdout == "mine flushed"
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("last_line", "returncode"),
    [("sys.exit(3)", 3), ("os._exit(4)", 4), ("raise SystemError", 1), ("os.kill(os.getpid(), signal.SIGINT)", -2)],
)
def test_other_ways_out_flush_once(last_line: str, returncode: int) -> None:
    done = run_python(EXITS + last_line)

    assert done.stdout == "flushed"
    assert done.returncode == returncode


def test_forked_child_flushes_at_os_exit() -> None:
    done = run_python(
        EXITS
        + """
if os.fork() == 0:
    os._exit(0)
os.wait()
os.write(1, b" parent ")
"""
    )

    assert done.stdout == "flushed parent flushed"


@pytest.mark.parametrize(
    ("last_line", "returncode"), [("os._exit(4)", 4), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)]
)
def test_handler_that_raises_during_the_flush_keeps_no_process_alive(last_line: str, returncode: int) -> None:
    done = run_python(
        EXITS
        + f"""
def interrupted(timeout):
    signal.raise_signal(signal.SIGINT)
guard.pipelines[0].shutdown = interrupted
try:
    {last_line}
except KeyboardInterrupt:
    os.write(1, b"alive")
"""
    )

    assert done.stdout == ""
    assert done.returncode == returncode


def test_jobs_that_are_due_together_wake_the_thread_once() -> None:
    worker, ran = Worker("of a test"), []
    for name, due in (("one", 10.0), ("soon", 10.04), ("later", 10.2)):
        worker.every(0.1, lambda name=name: ran.append(name))  # type: ignore[misc]
        worker.jobs[-1].due = due
    worker._run_jobs(10.0)
    assert ran == ["one", "soon"]
    assert [job.due for job in worker.jobs] == [10.1, 10.1, 10.2]

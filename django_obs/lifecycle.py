"""What lives as long as the process: worker threads, what a fork does to them, and the flush at every exit.

``Worker`` is a named daemon thread that runs jobs by the clock. ``Guard`` owns the pipelines of the signals: it starts
them anew in a forked child and flushes them, all together within one deadline, however the process ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

logger = logging.getLogger("django_obs")


class Job:
    """A callable and the clock it runs by."""

    __slots__ = ("due", "early", "run", "seconds")

    def __init__(self, seconds: float, run: Callable[[], None]) -> None:
        self.seconds = seconds
        self.run = run
        self.due = monotonic() + seconds
        # Due so soon it runs along with another one: jobs of one period wake the thread together from then on.
        self.early = min(seconds, 0.1) / 2


class Worker:
    """A named daemon thread that runs jobs by the clock, started on first use in each process.

    Nothing wakes it but the clock, ``wake()``, ``hurry()`` and ``flush()``: a thread that every record wakes costs a
    hand-off of the interpreter lock per record.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: list[Job] = []
        self.running = False
        self._reset()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._bell = locked()
        self._waiting: list[threading.Event] = []
        self._failed: set[Callable[[], None]] = set()
        self._stopping = False
        self._stopped = False

    def every(self, seconds: float, run: Callable[[], None]) -> Job:
        """Run the job every so many seconds, from now on and in every process that uses this worker."""
        job = Job(seconds, run)
        self.jobs.append(job)
        if self.running:
            self.wake()
        return job

    def ensure(self) -> None:
        """Start the thread in this process unless it runs or was stopped. Never raises, never waits."""
        if self.running or self._stopped:
            return
        # A signal handler that logs may come in here while this very thread is starting the worker.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                # Made here, not before: gevent may have patched threading since, and its greenlets must not wait for
                # a lock of the unpatched module.
                self._bell = locked()
                thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                thread.start()
                self._thread = thread
                self.running = True
        except RuntimeError:
            # No more threads, or the interpreter shuts down: jobs run at the flush, in the thread that asks for it.
            pass
        finally:
            self._starting.release()

    def wake(self) -> None:
        """Let the thread run all jobs now. Safe in a signal handler that has interrupted another call of it."""
        self._make_due()
        self._ring()

    def hurry(self, job: Job) -> None:
        """Let the thread run this job now, with those that are due soon. As safe as `wake`."""
        job.due = 0.0
        self._ring()

    def _make_due(self) -> None:
        for job in self.jobs:
            job.due = 0.0

    def _ring(self) -> None:
        with suppress(RuntimeError, ValueError):  # it rings already
            self._bell.release()

    def flush(self, timeout: float) -> bool:
        """Run all jobs and wait for it, at most so many seconds; tell whether they came to their end."""
        if not self.running:
            self._make_due()
            self._run_jobs(monotonic())
            return True
        if threading.current_thread() is self._thread:
            return False
        done = threading.Event()
        # In this order: whoever finds the event finds the jobs due.
        self._make_due()
        self._waiting.append(done)
        self._ring()
        return done.wait(timeout)

    def stop(self, timeout: float) -> bool:
        """Run all jobs a last time, end the thread, and tell whether both were done in so many seconds."""
        deadline = monotonic() + timeout
        if self._stopped:
            return True
        if self.jobs and not self.flush(timeout):
            self._stopped = self._stopping = True
            # What comes now finds nobody: it is handled by who brings it, or counted.
            self.running = False
            return False
        self._stopped = self._stopping = True
        self.wake()
        thread, self.running = self._thread, False
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - monotonic()))
            return not thread.is_alive()
        return True

    def after_fork(self) -> None:
        """Forget the parent's thread; the next ``ensure()`` starts one of this process."""
        self.running = False
        self._reset()
        now = monotonic()
        for job in self.jobs:
            job.due = now + job.seconds

    def _run(self) -> None:
        bell = self._bell
        while True:
            now = monotonic()
            next_due = min((job.due for job in self.jobs), default=now + 60.0)
            bell.acquire(timeout=max(0.0, next_due - now))
            # Taken before the jobs run: who asks for a flush while they do waits for the next round.
            waiting, self._waiting = self._waiting, []
            self._run_jobs(monotonic())
            for event in waiting:
                event.set()
            if self._stopping:
                return

    def _run_jobs(self, now: float) -> None:
        for job in list(self.jobs):
            if job.due - job.early <= now:
                job.due = now + job.seconds
                try:
                    job.run()
                except Exception:
                    if job.run not in self._failed:
                        self._failed.add(job.run)
                        logger.warning("%s: %r failed; reported once", self.name, job.run, exc_info=True)


def locked() -> threading.Lock:
    """Return a bell: a lock that is held until it rings. An Event has a lock inside that its own user may hold."""
    bell = threading.Lock()
    bell.acquire()
    return bell


class Opening:
    """Held by a worker's thread while it imports modules or makes a client, and by a fork.

    A child that is forked in the middle of an import would find locks of modules that no thread of its own will ever
    release.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.forking = False

    def before_fork(self) -> None:
        # Not for ever: a fork matters more.
        self.forking = self.lock.acquire(timeout=10)

    def after_fork_in_parent(self) -> None:
        if self.forking:
            self.forking = False
            self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock, self.forking = threading.Lock(), False


opening = Opening()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=opening.before_fork,
        after_in_parent=opening.after_fork_in_parent,
        after_in_child=opening.after_fork_in_child,
    )


class Pipeline(Protocol):
    """What the guard asks of a signal. All timeouts are seconds."""

    name: str

    def after_fork(self) -> None:
        """Forget what belongs to the parent: queued items, locks, connections."""

    def force_flush(self, timeout: float) -> bool:
        """Deliver what is queued; tell whether all of it was."""

    def shutdown(self, timeout: float) -> bool:
        """Deliver what is queued and stop; tell whether all of it was."""

    def stats(self) -> dict[str, int]:
        """Return what this process has counted: totals, and what is queued now."""


# Signals whose default is to end the process without running a line of Python.
FATAL_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGABRT", "SIGQUIT", "SIGHUP") if hasattr(signal, name)
)
# What the log pipeline keeps of the deadline, so that it can still say what the others have lost.
LOGS_RESERVE = 0.1


class Guard:
    """The owner of all pipelines in this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.flush_timeout = 5.0
        self.worker = Worker("django_obs-worker")
        self.pipelines: list[Pipeline] = []
        self.on_start: list[Callable[[], None]] = []
        self._armed = False
        self._started = False
        self._closed = False
        self.exiting: threading.Thread | None = None  # which flushes on the way out
        self._exited = threading.Event()

    def adopt(self, pipeline: Pipeline) -> None:
        """Own a pipeline. Pipelines are shut down in the reverse order of adoption."""
        self.pipelines.append(pipeline)

    def arm(self, flush_timeout: float) -> None:
        """Hook into fork and exit. Starts no thread and opens nothing."""
        self.flush_timeout = flush_timeout
        if self._armed:
            return
        self._armed = True
        atexit.register(self.exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.after_fork)
        _chain_uwsgi_fork_hook(self.ensure_process)
        _intercept_exits(self)

    def ensure_process(self) -> None:
        """Notice a fork that ran no hook, and start this process's worker. Called once per request and task."""
        # os.getpid() is a system call of 154 ns: affordable once per request, not once per record.
        if os.getpid() != self.pid:
            self.after_fork()
        if not self._started:
            self._start()

    @property
    def closed(self) -> bool:
        """Whether the process has begun to end."""
        return self._closed

    def _start(self) -> None:
        if self._closed:
            return
        self._started = True
        self.worker.ensure()
        for callback in self.on_start:
            try:
                callback()
            except Exception:
                logger.warning("%r failed", callback, exc_info=True)

    def after_fork(self) -> None:
        """Make the child's pipelines its own."""
        if os.getpid() == self.pid:
            return
        self.pid = os.getpid()
        self._started = self._closed = False
        self.exiting = None
        self._exited = threading.Event()
        self.worker.after_fork()
        for pipeline in self.pipelines:
            try:
                pipeline.after_fork()
            except Exception:
                logger.warning("%s: after_fork failed", pipeline.name, exc_info=True)

    def force_flush(self, timeout: float | None = None) -> bool:
        """Deliver what all pipelines have queued, within so many seconds for all together."""
        return self._each("force_flush", self.flush_timeout if timeout is None else timeout)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Flush and stop all pipelines, within so many seconds for all together. Safe to call again."""
        if self._closed or os.getpid() != self.pid:
            return True
        self._closed = True
        return self._each("shutdown", self.flush_timeout if timeout is None else timeout)

    def exit(self) -> None:
        """Shut down because the process ends. Where another thread does that already, wait for it."""
        thread = threading.current_thread()
        if self.exiting is not None:
            if self.exiting is not thread:
                self._exited.wait(self.flush_timeout)
            return
        self.exiting = thread
        try:
            self.shutdown()
        finally:
            self.exiting = None
            self._exited.set()

    def _each(self, verb: str, timeout: float) -> bool:
        deadline = monotonic() + timeout
        complete = True
        waiting = list(reversed(self.pipelines))
        for pipeline in waiting:
            left = deadline - monotonic()
            if pipeline is not waiting[-1]:
                left = max(left - LOGS_RESERVE, left * 0.5)
            try:
                delivered = getattr(pipeline, verb)(max(0.0, left))
            except Exception:
                logger.warning("%s: %s failed", pipeline.name, verb, exc_info=True)
                delivered = False
            if not delivered:
                complete = False
                left = deadline - monotonic()
                logger.warning(
                    "%s: not everything was delivered, %d items are left in the queue after %.1f of %g s",
                    pipeline.name,
                    pipeline.stats().get("queued", 0),
                    timeout - left,
                    timeout,
                )
        return complete


def _chain_uwsgi_fork_hook(hook: Callable[[], None]) -> None:
    # uWSGI forks in C and runs no at-fork hooks of Python unless it is told to.
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    previous = getattr(uwsgi, "post_fork_hook", None)

    def post_fork_hook() -> None:
        if previous is not None:
            previous()
        hook()

    uwsgi.post_fork_hook = post_fork_hook


def _intercept_exits(guard: Guard) -> None:
    """Flush before the ways out that run no ``atexit`` function: default signal dispositions and ``os._exit``.

    Handlers that a server sets are never touched. Only where the disposition is, or becomes again, SIG_DFL, one of ours
    stands in for it: it flushes, then dies of the same signal. uvicorn sets SIG_DFL back and raises SIGTERM once more
    after its graceful shutdown, and its gunicorn worker resets SIGABRT, so looking once would not do. Who asks for
    the disposition is told SIG_DFL.
    """
    set_signal, get_signal, exit_now = signal.signal, signal.getsignal, os._exit

    def die(signum: int, frame: Any) -> None:
        # A supervisor that loses patience while we flush (hypercorn's terminates what it has just asked to stop) must
        # not cut the flush short; the process is about to end, and within the time that it may take.
        if guard.exiting is threading.current_thread():
            return
        try:
            guard.exit()
        finally:
            # Whatever another handler raises in the middle of the flush: who was told to end ends.
            set_signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def signal_(signalnum: int, handler: Any) -> Any:
        if handler == signal.SIG_DFL and signalnum in FATAL_SIGNALS:
            handler = die
        previous = set_signal(signalnum, handler)
        return signal.SIG_DFL if previous is die else previous

    def getsignal(signalnum: int) -> Any:
        handler = get_signal(signalnum)
        return signal.SIG_DFL if handler is die else handler

    def _exit(status: int) -> Any:
        try:
            guard.exit()
        finally:
            exit_now(status)

    signal.signal = signal_
    signal.getsignal = getsignal
    os._exit = _exit
    if threading.current_thread() is threading.main_thread():
        for signalnum in FATAL_SIGNALS:
            if get_signal(signalnum) == signal.SIG_DFL:
                set_signal(signalnum, die)


guard = Guard()

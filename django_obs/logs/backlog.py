"""The bounded queue between the threads that log and the listener."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque

from django_obs.logs.entry import LEVEL, Stamp

# Levels in between count as the standard one below them.
STEPS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def step(levelno: int) -> int:
    for each in STEPS:
        if levelno >= each:
            return each
    return logging.DEBUG


def nothing_dropped() -> Counter[int]:
    # All keys from the start: another thread may be adding up while one counts.
    return Counter(dict.fromkeys(STEPS, 0))


class Backlog:
    """A bounded queue that knows its length, and sheds the least severe first when it is full.

    Putting takes no lock while there is room. `queue.Queue`'s names where the meaning is the same.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.stamps: deque[Stamp] = deque()
        # What is made room for at once, so that the search is paid for once in a while.
        self._room = max(1, maxsize // 16)
        self.append = self.stamps.append
        # Threads that log while another makes room may overfill the queue, but not without end.
        self._brim = maxsize + max(64, maxsize // 8)
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent will write."""
        # Reentrant: a signal handler may log while its thread makes room.
        self._lock = threading.RLock()
        self.stamps.clear()
        # Stamps that are out of the queue for a moment, while it is decided which of them are shed.
        self.out = 0
        self.dropped = nothing_dropped()
        # A queue without room and with nothing less severe than this; 0 if that is not known.
        self._least = 0

    def qsize(self) -> int:
        return len(self.stamps) + self.out

    def empty(self) -> bool:
        return not self.stamps

    def full(self) -> bool:
        return self.qsize() >= self.maxsize

    def put_nowait(self, stamp: Stamp) -> bool:
        """Queue a stamp, shedding the least severe if the queue is full; tell whether this one was taken."""
        if self.qsize() >= self.maxsize and not self._make_room(stamp):
            return False
        self.stamps.append(stamp)
        return True

    def get_nowait(self) -> Stamp:
        try:
            return self.stamps.popleft()
        except IndexError:
            raise queue.Empty from None

    def get_batch(self, limit: int) -> list[Stamp]:
        """Take up to so many stamps, the oldest first."""
        stamps = self.stamps
        # The lock keeps the order of stamps while room is being made: they are all out of the queue for a moment.
        with self._lock:
            self._least = 0
            if len(stamps) <= limit:
                limit = len(stamps)
            return [stamps.popleft() for _ in range(limit)]

    def _make_room(self, newcomer: Stamp) -> bool:
        """Shed what is less severe than the newcomer, a part of the queue at once; tell if there is room for it."""
        if not self._lock.acquire(blocking=self.qsize() >= self._brim):
            return True
        try:
            if self.qsize() < self.maxsize:
                return True
            own = step(newcomer[LEVEL])
            if own > self._least:
                self._shed_below(own)
                if self.qsize() < self.maxsize:
                    return True
            # Nothing waits that is less severe: the newest goes, as the oldest tell how it began.
            self.dropped[own] += 1
            return False
        finally:
            self._lock.release()

    def _shed_below(self, own: int) -> None:
        stamps = self.stamps
        waiting = Counter(step(stamp[LEVEL]) for stamp in tuple(stamps))
        quota: dict[int, int] = {}
        wanted = self._room
        for level in sorted(waiting):
            if level >= own or not wanted:
                break
            quota[level] = min(wanted, waiting[level])
            wanted -= quota[level]
        if not quota:
            # So that the next one need not look through the whole queue to be told the same.
            self._least = min(waiting, default=0)
            return
        kept: list[Stamp] = []
        for _ in range(len(stamps)):
            try:
                stamp = stamps.popleft()
            except IndexError:  # a signal handler that ended the process from here has written the others
                break
            level = step(stamp[LEVEL])
            if quota.get(level):
                quota[level] -= 1
                self.dropped[level] += 1
            else:
                kept.append(stamp)
                self.out += 1
        stamps.extendleft(reversed(kept))
        self.out -= len(kept)

    def take_dropped(self) -> Counter[int]:
        """Return how many were shed of each level, and count anew."""
        with self._lock:
            dropped, self.dropped = self.dropped, nothing_dropped()
            return dropped

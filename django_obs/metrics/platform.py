"""What the store needs of Python and of the system, and whether it is there."""

from __future__ import annotations

import errno
import mmap
import sys
import time
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# A process that holds a lock needs microseconds; one that was stopped in a debugger must not stop the others.
LOCK_PATIENCE = 0.25


def lock(fd: int, kind: int) -> bool:
    """Lock a file against other processes; False if it was not to be had within LOCK_PATIENCE seconds."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.lockf(fd, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
        else:
            return True


def unsupported() -> str | None:
    """Tell what is missing for lanes; None if nothing is."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is not CPython"
    # A record is a load, an addition and a store that no other thread may come between.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without the global interpreter lock"
    if fcntl is None or not hasattr(mmap, "MAP_ANONYMOUS"):
        return f"{sys.platform} has no POSIX record locks or no fixed mappings"
    return None

"""The end of the line: standard output or error, which may block, break, fill up or be shared with other processes."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from time import monotonic, sleep
from typing import Any

# What one write() puts into a pipe in one piece, whoever else writes to it. POSIX guarantees 512; Linux 4096.
ATOMIC = getattr(select, "PIPE_BUF", 512)
# Seconds that a line longer than that waits for a pipe without anything in it, where the kernel takes 64 KiB at once.
PATIENCE = 0.05


class Sink:
    """Writes bytes to a stream, or to ``"stdout"`` or ``"stderr"``: what ``sys`` calls so when the write happens.

    Never waits for a reader: what a pipe, socket or terminal does not take now is handed back.
    """

    def __init__(self, stream: str | Any = "stdout") -> None:
        self.stream = stream
        self._known: tuple[int, int, int] | None = None
        self._blocks = self._pipes = False

    @property
    def target(self) -> Any:
        stream = self.stream
        if not isinstance(stream, str):
            return stream
        found = getattr(sys, stream)
        if isinstance(found, io.IOBase):
            return found
        # Celery puts an object there that logs what is printed: our own lines would come back to us for ever.
        return getattr(sys, f"__{stream}__")

    @property
    def is_terminal(self) -> bool:
        try:
            return bool(self.target.isatty())
        except (AttributeError, ValueError):
            return False

    def write(self, data: bytes) -> bytes:
        """Write lines; return what could not be written now. Raises OSError or ValueError if it is broken."""
        target = self.target
        if target is None:
            raise OSError(errno.EBADF, f"there is no {self.stream}")
        try:
            descriptor = target.fileno()
        except (AttributeError, OSError, ValueError):
            # Captured by a test, or replaced by an object that only looks like a stream.
            target.write(data.decode())
            target.flush()
            return b""
        if self._may_block(descriptor):
            return self._write_in_pieces(descriptor, data)
        return self._write_once(descriptor, data)

    def _may_block(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        known = (descriptor, found.st_dev, found.st_ino)
        if known != self._known:
            # Files never block in the sense of select(); /dev/null and its like neither.
            kind = found.st_mode
            self._blocks = (
                hasattr(select, "poll") and not stat.S_ISREG(kind) and (not stat.S_ISCHR(kind) or os.isatty(descriptor))
            )
            self._pipes = stat.S_ISFIFO(kind)
            self._known = known
        return self._blocks

    def _write_once(self, descriptor: int, data: bytes) -> bytes:
        try:
            written = os.write(descriptor, data)
        except BlockingIOError:
            return data
        return data[written:]

    def _write_in_pieces(self, descriptor: int, data: bytes) -> bytes:
        # Pieces of whole lines that the kernel takes in one go: workers of one server share a pipe, and greater writes
        # of several processes come out mixed when it is nearly full.
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        start, end = 0, len(data)
        while start < end:
            stop = end
            if end - start > ATOMIC:
                stop = data.rfind(b"\n", start, start + ATOMIC) + 1
                if not stop:
                    stop = data.find(b"\n", start) + 1 or end
            if not self._is_ready(descriptor, poll, stop - start):
                break
            written = self._write_piece(descriptor, data[start:stop])
            start += written
            if start < stop:
                break
        return data[start:]

    def _is_ready(self, descriptor: int, poll: select.poll, size: int) -> bool:
        if not poll.poll(0):
            return False
        if size > ATOMIC:
            waiting, read = waiting_in(descriptor), False
            deadline = monotonic() + PATIENCE
            while waiting and monotonic() < deadline:
                sleep(0.001)
                before, waiting = waiting, waiting_in(descriptor)
                read = read or waiting < before
            # Where somebody reads it will find its room; where nobody does, the write might never return.
            return not waiting or read or not self._pipes or fits(descriptor, waiting, size)
        return True

    def _write_piece(self, descriptor: int, piece: bytes) -> int:
        try:
            return os.write(descriptor, piece)
        except BlockingIOError:
            # Somebody has made the shared description non-blocking.
            return 0


def fits(descriptor: int, waiting: int, size: int) -> bool:
    """Tell whether a pipe that holds so many bytes surely has room for so many more."""
    try:
        import fcntl

        room = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except (ImportError, AttributeError, OSError):
        return False
    # Linux counts pages, of which any two neighbours hold one page of bytes at least.
    return 2 * (waiting + ATOMIC) + size <= room


def waiting_in(descriptor: int) -> int:
    """Return the bytes in a pipe that nobody has read yet, 0 where that cannot be told."""
    try:
        import fcntl
        import struct
        import termios

        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0])
    except (ImportError, OSError):
        return 0

"""Lanes: one column of float64 per process, in a file that its owner holds under a kernel lock.

The kernel drops the lock when the owner dies, however it dies; the next process takes the lane and goes on from the
values that it finds. So files number as many as processes ever lived at once, and no count is ever folded or lost.
"""

from __future__ import annotations

import array
import ctypes
import errno
import itertools
import math
import mmap
import os
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from .platform import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"OBSLANE1"
HEADER = struct.Struct("=8sQdQ32s")  # magic, pid, start in seconds since the epoch, generation of the index, role
HEADER_SIZE = 4096
# Counters of the store itself, in the header behind the fields: as float64 cells of the header.
DROPPED = 8
UNSTORED = 9

# Blocks are reserved in the unit in which the kernel maps them: 16 KiB on some ARM machines.
PAGE = max(4096, mmap.PAGESIZE)
MAP_FIXED = 0x10  # Linux and macOS agree

# The second cell of a gauge: zero until the process has the gauge, then this, or the time when it was set.
HAVE = 1.0

# How often a metric was pointed at cells. Who keeps numbers of cells looks whether it is still the same.
MOVES = [0]

# The lanes that this process owns. Closing any descriptor of such a file would drop its lock.
owned: dict[tuple[int, int], Lane] = {}


class Column:
    """Memory for a lane at an address that never changes.

    Made anonymous; a file is mapped over it (MAP_FIXED), and after a fork another one. So `cells`, and every slice
    of it that a metric keeps, stay right whatever lies behind them.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.size = HEADER_SIZE + 8 * slots
        self._memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        view = memoryview(self._memory)
        self.header = view[:HEADER_SIZE].cast("d")
        self.cells = view[HEADER_SIZE:].cast("d")
        self._mmap = ctypes.CDLL(None, use_errno=True).mmap
        self._mmap.restype = ctypes.c_void_p
        self._mmap.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long if sys.maxsize > 2**32 else ctypes.c_longlong,
        )

    def show(self, fd: int | None) -> None:
        """Put the file of `fd` behind the cells, or fresh zeros of this process alone."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd is None else mmap.MAP_SHARED
        place = self._mmap(
            self._address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags | MAP_FIXED, -1 if fd is None else fd, 0
        )
        if place != self._address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def reserve(fd: int, offset: int, size: int) -> None:
    """Make the file system set blocks aside: a full disk is an OSError here and would be a SIGBUS in the mapping."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, size)
        except OSError as error:
            # Where the file system cannot, glibc writes zeros, and musl says so.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        else:
            return
    data = os.pread(fd, size, offset).ljust(size, b"\0")
    if os.pwrite(fd, data, offset) != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Held(Exception):
    """Another process, or another store of this one, has the lane."""


def identify(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


class Lane:
    """A lane that this process owns."""

    def __init__(self, path: Path, number: int, fd: int, identity: tuple[int, int]) -> None:
        self.path = path
        self.number = number
        self.fd = fd
        self.identity = identity
        self.started = time.time()
        self.reserved = 0
        owned[identity] = self

    @classmethod
    def take(cls, directory: Path, size: int, generation: int, slots: int) -> Lane:
        """Take the first lane that nobody holds, of `size` bytes, and set blocks aside for its first `slots` cells.

        Raises OSError if the directory cannot be written or the disk is full.
        """
        for number in itertools.count():
            lane: Lane | None = None
            while lane is None:
                try:
                    lane = cls._try(directory / f"lane-{number:04d}", number, generation)
                except Held:
                    break
            if lane is None:
                continue
            try:
                if os.fstat(lane.fd).st_size < size:
                    os.ftruncate(lane.fd, size)
                lane.reserve(max(slots, 1))
            except BaseException:
                lane.release()
                raise
            return lane
        raise AssertionError("count() has no end")

    @classmethod
    def _try(cls, path: Path, number: int, generation: int) -> Lane | None:
        """Take this lane; None if it must be tried again. Raises Held."""
        with suppress(FileNotFoundError):
            if identify(os.stat(path, follow_symlinks=False)) in owned:
                raise Held
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            identity = identify(os.fstat(fd))
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise Held from None
                raise
            with suppress(FileNotFoundError):
                if identify(os.stat(path, follow_symlinks=False)) == identity:
                    if cls._fits(fd, generation):
                        return cls(path, number, fd, identity)
                    # Not cut but removed: a child that was forked without our hooks may still have it mapped.
                    os.unlink(path)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @staticmethod
    def _fits(fd: int, generation: int) -> bool:
        """Tell whether a lane is new, or holds counts in the slots of this index."""
        data = os.pread(fd, HEADER.size, 0)
        if not data.strip(b"\0"):
            return True
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            return False
        return not generation or HEADER.unpack(data)[3] == generation

    def reserve(self, slots: int) -> None:
        """Set blocks aside for the first `slots` cells."""
        need = -(-(HEADER_SIZE + 8 * slots) // PAGE) * PAGE
        if need > self.reserved:
            reserve(self.fd, self.reserved, need - self.reserved)
            self.reserved = need

    def write_header(self, generation: int, role: str) -> None:
        fields = HEADER.pack(MAGIC, os.getpid(), self.started, generation, role.encode("ascii", "replace"))
        os.pwrite(self.fd, fields, 0)

    @property
    def lost(self) -> bool:
        """Tell whether the file was removed or cut under us."""
        state = os.fstat(self.fd)
        return state.st_nlink == 0 or state.st_size < self.reserved

    def release(self) -> None:
        """Give the lane to whom wants it next."""
        owned.pop(self.identity, None)
        os.close(self.fd)


def forget_owned() -> None:
    """Close what the parent owned: a forked child holds none of its locks."""
    for lane in list(owned.values()):
        lane.release()


class LaneState(NamedTuple):
    """A lane as a reader finds it; `started` in seconds since the epoch.

    `pid` is what the owner calls itself, `holder` what the reader may call it: a container has pids of its own. 0 if
    the owner is dead or is not to be seen from here.
    """

    pid: int
    role: str
    alive: bool
    started: float
    number: int
    dropped: int
    unstored: int
    holder: int


def read_all(directory: Path, generation: int, slots: int) -> Iterator[tuple[LaneState, array.array[float]]]:
    """Read the first `slots` cells of every lane; what is damaged is left out, what is short is zero."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith("lane-"))
    except OSError:
        return
    for name in names:
        try:
            number = int(name.removeprefix("lane-"))
            holder, data = _read(directory / name, HEADER_SIZE + 8 * slots)
        except (OSError, ValueError):
            continue
        if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
            continue
        _, pid, started, its_generation, role = HEADER.unpack_from(data)
        if generation and its_generation != generation:
            continue
        dropped, unstored = (
            int(count) if math.isfinite(count) else 0 for count in struct.unpack_from("=2d", data, 8 * DROPPED)
        )
        column = array.array("d", data[HEADER_SIZE : len(data) // 8 * 8])
        if len(column) < slots:
            column.extend(itertools.repeat(0.0, slots - len(column)))
        name = role.rstrip(b"\0").decode("ascii", "replace")
        seen = pid if holder == UNKNOWN else holder or 0
        yield LaneState(pid, name, holder is not None, started, number, dropped, unstored, seen), column


def longest(directory: Path) -> int:
    """Tell how many cells the longest of the lanes has."""
    cells = 0
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("lane-"):
                with suppress(OSError):
                    cells = max(cells, (entry.stat(follow_symlinks=False).st_size - HEADER_SIZE) // 8)
    return cells


def _read(path: Path, size: int) -> tuple[int | None, bytes]:
    """Read by read() and not through a mapping: reading a hole of a mapped file takes memory."""
    mine = owned.get(identify(os.stat(path, follow_symlinks=False)))
    if mine is not None:
        return os.getpid(), os.pread(mine.fd, size, 0)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return holder_of(fd), os.pread(fd, size, 0)
    finally:
        os.close(fd)


def blank(directory: Path, cells: dict[int, bytes]) -> None:
    """Write bytes into cells, by their first slot, into all lanes that nobody holds."""
    for name in os.listdir(directory):
        path = directory / name
        if not name.startswith("lane-") or identify(os.stat(path, follow_symlinks=False)) in owned:
            continue
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not is_held(fd):
                for slot, values in cells.items():
                    if HEADER_SIZE + 8 * slot < os.fstat(fd).st_size:
                        os.pwrite(fd, values, HEADER_SIZE + 8 * slot)
        finally:
            os.close(fd)


# struct flock of 64-bit Linux: type, whence, start, length, pid. Elsewhere a lock that is taken and given back does.
_FLOCK = struct.Struct("hhqqi") if sys.platform == "linux" and sys.maxsize > 2**32 else None


UNKNOWN = -1  # a holder that this system does not name


def is_held(fd: int) -> bool:
    """Tell whether another process holds the lane: the kernel's truth, no pid is looked up."""
    return holder_of(fd) is not None


def holder_of(fd: int) -> int | None:
    """Return the pid of who holds the lane, as seen from here; 0 if not to be seen from here, None if nobody does."""
    if _FLOCK is not None:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0).ljust(32, b"\0")
        kind, _, _, _, pid = _FLOCK.unpack_from(fcntl.fcntl(fd, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else int(pid)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return UNKNOWN
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return None

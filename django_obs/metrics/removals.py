"""Removals: which slots are off the page, by remove() or clear() in any process.

A file with a counter per slot, odd while the slot is off the page, and before them one that counts all changes. A
label set that comes back gets the slot that it had: so programs that clear() a gauge and set it anew, again and again,
fill nothing up, and a child that another process still holds can never count for another label set.
"""

from __future__ import annotations

import array
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WORD = 4
# Words that are compared at once to find what has changed.
BLOCK = 256


class Removals:
    """The file, and the copy of it that this process has seen. Changes are made under the lock of the index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._changes = 0
        self._counts: array.array[int] = array.array("I")
        self.slots: set[int] = set()
        self._gone: set[int] = set()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def refresh(self) -> set[int]:
        """Read what has changed; give the slots that are removed and were not, or were and are not."""
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return set()
        changes = int.from_bytes(os.pread(self._fd, WORD, 0), sys.byteorder)
        if changes == self._changes:
            return set()
        data = os.pread(self._fd, os.fstat(self._fd).st_size, WORD)
        counts = array.array("I", data[: len(data) // WORD * WORD])
        before = set(self.slots)
        for start in range(0, len(counts), BLOCK):
            block = counts[start : start + BLOCK]
            if block != self._counts[start : start + BLOCK]:
                for slot, count in enumerate(block, start):
                    self._note(slot, count)
        self._changes = changes
        return before ^ self.slots

    def _note(self, slot: int, count: int) -> None:
        known = self._counts
        if slot >= len(known):
            known.extend([0] * (slot + 1 - len(known)))
        if (count + 1) // 2 > (known[slot] + 1) // 2:
            self._gone.add(slot)
        known[slot] = count
        if count % 2:
            self.slots.add(slot)
        else:
            self.slots.discard(slot)

    def take_gone(self) -> set[int]:
        """Give the slots that were removed since this was last asked, even if they have come back."""
        gone, self._gone = self._gone, set()
        return gone

    def change(self, slots: Iterable[int]) -> None:
        """Take slots off the page, or put them back if they are off. The caller has refreshed."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            for slot in slots:
                self._note(slot, self._add_one(fd, WORD * (slot + 1)))
            self._changes = self._add_one(fd, 0)
        finally:
            os.close(fd)

    @staticmethod
    def _add_one(fd: int, offset: int) -> int:
        count = (int.from_bytes(os.pread(fd, WORD, offset), sys.byteorder) + 1) & 0xFFFFFFFF
        os.pwrite(fd, count.to_bytes(WORD, sys.byteorder), offset)
        return count

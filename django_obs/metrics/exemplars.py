"""Exemplars: the newest one per cell, in a file beside the lane.

Records of a fixed size, each with its checksum, overwritten in place by the lane's owner. An exemplar is kept in memory
and written at most once a second, so a request pays for a dict entry; what a killed process loses is one second of
examples and no count.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from typing import TYPE_CHECKING

from prometheus_client.samples import Exemplar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

RECORD_SIZE = 256
RECORD = struct.Struct("<IIdd232s")  # checksum of what follows, slot, value, time, labels as name NUL value NUL ...
LABELS_SIZE = 232
INTERVAL = 1.0


def encode(slot: int, exemplar: Exemplar) -> bytes | None:
    """Encode a record; None if the labels take more than LABELS_SIZE bytes."""
    labels = "\0".join(text for pair in exemplar.labels.items() for text in pair).encode("utf-8", "replace")
    if len(labels) > LABELS_SIZE:
        return None
    at = time.time() if exemplar.timestamp is None else float(exemplar.timestamp)
    body = RECORD.pack(0, slot, exemplar.value, at, labels)[4:]
    return zlib.crc32(body).to_bytes(4, "little") + body


def decode(record: bytes) -> Exemplar | None:
    """Decode a record; None if it was torn."""
    if zlib.crc32(record[4:]) != int.from_bytes(record[:4], "little"):
        return None
    _, _, value, at, data = RECORD.unpack(record)
    texts = data.rstrip(b"\0").decode("utf-8", "replace").split("\0") if data[0] else []
    if len(texts) % 2:
        texts.append("")
    return Exemplar(dict(zip(texts[::2], texts[1::2], strict=True)), value, round(at, 3))


class ExemplarFile:
    """The exemplars of one process."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._fd: int | None = None
        self._waiting: dict[int, Exemplar] = {}
        self._places: dict[int, int] = {}
        self._written = 0.0
        self._writing = threading.Lock()
        self.lost = 0

    def open(self, path: Path) -> None:
        """Go on with the file beside the lane; it is made with the first exemplar."""
        self.close()
        self._path = path

    def close(self) -> None:
        """Close the file and forget what waits."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._path = None
        self._waiting = {}
        self._places = {}
        self._written = 0.0
        self._writing = threading.Lock()  # in a forked child, one of the parent's threads may hold the old one

    def keep(self, slot: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of a cell."""
        self._waiting[slot] = exemplar
        if time.monotonic() - self._written > INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write what waits; what cannot be written is counted in `lost`."""
        self._written = time.monotonic()
        if not self._waiting or self._path is None or not self._writing.acquire(blocking=False):
            return
        waiting, self._waiting = self._waiting, {}
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
                self._places = {
                    int.from_bytes(data[i + 4 : i + 8], "little"): i
                    for i in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE)
                }
            for slot, exemplar in waiting.items():
                if (record := encode(slot, exemplar)) is None:
                    self.lost += 1
                    continue
                place = self._places.setdefault(slot, len(self._places) * RECORD_SIZE)
                os.pwrite(self._fd, record, place)
        except OSError:
            self.lost += len(waiting)
        finally:
            self._writing.release()


def read_newest(paths: Iterable[Path]) -> dict[int, Exemplar]:
    """Read the newest exemplar of each slot from many files."""
    newest: dict[int, tuple[float, bytes]] = {}
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        for start in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
            record = data[start : start + RECORD_SIZE]
            _, slot, _, at, _ = RECORD.unpack(record)
            if slot not in newest or newest[slot][0] < at:
                newest[slot] = at, record
    decoded = {slot: decode(record) for slot, (_, record) in newest.items()}
    return {slot: exemplar for slot, exemplar in decoded.items() if exemplar is not None}

"""In the servers of the soak: a wall clock that can be set from outside, by eight bytes of a file.

``time.time`` and ``time.time_ns`` alone; what C code asks the system for (``datetime.now``) is not shifted.
"""

from __future__ import annotations

import mmap
import os
import time

path = os.environ.get("SOAK_CLOCK")
if path:
    with open(path, "rb") as file:
        shift = memoryview(mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)).cast("d")
    real_time, real_time_ns = time.time, time.time_ns

    def shifted_time() -> float:
        return real_time() + shift[0]

    def shifted_time_ns() -> int:
        return real_time_ns() + int(shift[0]) * 1_000_000_000

    time.time, time.time_ns = shifted_time, shifted_time_ns

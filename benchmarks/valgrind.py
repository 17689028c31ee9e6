"""Requests to callgrind from the program that it runs: start and stop counting.

Valgrind's client requests are a sequence of instructions that does nothing on a real processor (valgrind.h, "Client
requests"). Sent from inside, they leave start-up out of the count, and out of the slow part of the run.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

# ('C' << 24) | ('T' << 16), as callgrind.h numbers its requests.
CALLGRIND = 0x43540000
DUMP_STATS, ZERO_STATS, START, STOP = CALLGRIND, CALLGRIND + 1, CALLGRIND + 4, CALLGRIND + 5

AMD64 = bytes.fromhex(
    "4889f8"  # mov rax, rdi: the request, an array of six words
    "31d2"  # xor edx, edx: the answer if nobody listens
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi by 3, 13, 61, 51: the preamble
    "4887db"  # xchg rbx, rbx: a client request
    "4889d0"  # mov rax, rdx
    "c3"
)


class Callgrind:
    """The callgrind that this process runs under; without one, every call does nothing."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            msg = f"instructions are counted on x86_64 only, this is {platform.machine()}"
            raise RuntimeError(msg)
        self.code = mmap.mmap(-1, len(AMD64), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.code.write(AMD64)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.code))
        self.call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def request(self, number: int) -> None:
        self.call(ctypes.byref((ctypes.c_uint64 * 6)(number)))

    def start(self) -> None:
        """Count from here on."""
        self.request(START)
        self.request(ZERO_STATS)

    def stop(self) -> None:
        """Count no more, and write what was counted to the next file of ``--callgrind-out-file``."""
        self.request(DUMP_STATS)
        self.request(STOP)

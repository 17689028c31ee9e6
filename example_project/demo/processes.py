"""Child processes that are ready when they answer, and gone when their owner is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self


class StartError(Exception):
    """A process that did not come up, with what it said."""


def free_port() -> int:
    """Return a loopback port that nobody listens on, and that on Linux nobody else is given as long as we live."""
    probe = socket.socket()
    # Who sets this as well can bind the port and listen on it, as servers do. Until then connections are refused.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    if sys.platform == "linux":
        # The descriptor stays open, without an object that would close it or warn. No program that is started gets it.
        probe.detach()
    else:
        # Elsewhere nobody could bind the port beside us.
        probe.close()
    return port


def is_free(port: int) -> bool:
    """Tell whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        # As servers do: connections of a predecessor that linger in TIME_WAIT do no harm.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answers(port: int) -> bool:
    """Tell whether somebody accepts connections on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def poll(ready: Callable[[], bool], timeout: float) -> bool:
    """Ask `ready` until it says so; False after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Process:
    """A child in a process group of its own, whose stdout and stderr are files.

    Ctrl-C in the terminal reaches its owner alone, who stops children in order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        directory: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.out = directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """Return what it wrote so far: stdout, then stderr."""
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def wait_ready(self, ready: Callable[[], bool], timeout: float = 120.0) -> Self:
        """Wait until `ready()`; raise `StartError` if the process ends before, or after `timeout` seconds."""
        if not poll(lambda: not self.running or ready(), timeout) or not self.running:
            state = "is not ready" if self.running else f"ended with status {self.popen.returncode}"
            self.stop()
            last = "\n".join(self.said().strip().splitlines()[-20:])
            raise StartError(f"{self.name} {state}. It said:\n{last}")
        return self

    def wait_port(self, port: int, timeout: float = 120.0) -> Self:
        """Wait until it accepts connections on a loopback port."""
        return self.wait_ready(lambda: answers(port), timeout)

    def finish(self, timeout: float = 120.0) -> Self:
        """Wait until it ends; raise `StartError` if it fails or takes longer than `timeout` seconds."""
        if not poll(lambda: not self.running, timeout) or self.popen.returncode != 0:
            status = self.stop()
            msg = f"{self.name} failed with status {status}. It said:\n{self.said().strip()}"
            raise StartError(msg)
        return self

    def stop(self, signum: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Ask it to stop, kill its whole group after `timeout` seconds, and return its status."""
        if self.running:
            self.popen.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
        # Also when the process itself is gone: a child of its own may be left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

"""The collector that every stack exports to: rotel, a real one, which throws away what it has decoded."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Collector(NamedTuple):
    """A running collector."""

    endpoint: str
    """Where it takes OTLP over HTTP."""
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, seconds: float = 30.0) -> None:
    """Wait until something listens there; RuntimeError if the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    msg = f"{process.args} does not listen on port {port}"
    raise RuntimeError(msg)


@contextmanager
def collector(directory: Path):
    """Run a collector and yield it."""
    spec = importlib.util.find_spec("rotel")
    agent = Path(spec.submodule_search_locations[0]) / "rotel-agent"
    http, grpc = free_port(), free_port()
    command = [
        str(agent),
        "start",
        f"--otlp-http-endpoint=127.0.0.1:{http}",
        f"--otlp-grpc-endpoint=127.0.0.1:{grpc}",
        "--exporter=blackhole",
    ]
    # The agent is linked with a shared libpython, which an interpreter outside of the system's paths brings along.
    environ = os.environ | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}
    with open(directory / "collector.log", "wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        wait_for_port(http, process)
        yield Collector(f"http://127.0.0.1:{http}", process.pid)
    finally:
        process.terminate()
        process.wait(10)

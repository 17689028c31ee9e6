"""A real OpenTelemetry collector, from the `rotel` package, that forwards what it receives."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from example_project.demo.processes import Process, StartError, free_port


def find_rotel() -> Path:
    """Return the collector's binary; raise `StartError` with the reason where there is none."""
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        msg = f"The package rotel is not installed, and may have no wheel for {sysconfig.get_platform()}."
        raise StartError(msg)
    binary = Path(spec.origin).with_name("rotel-agent")
    if not binary.exists():
        msg = f"The package rotel has no binary at {binary}."
        raise StartError(msg)
    return binary


def rotel_env() -> dict[str, str]:
    """Return the environment in which the binary finds the libpython that it is linked with."""
    variable = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    paths = [sysconfig.get_config_var("LIBDIR"), os.environ.get(variable)]
    return os.environ | {variable: os.pathsep.join(path for path in paths if path)}


class Collector(Process):
    """A running collector on loopback: `url` for OTLP over HTTP, `grpc_url` for OTLP over gRPC.

    Raises `StartError` where there is no binary for this platform, or it does not run.
    """

    def __init__(self, directory: Path, *, forward_to: str, http_port: int = 0, grpc_port: int = 0) -> None:
        http_port, grpc_port = http_port or free_port(), grpc_port or free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        self.grpc_url = f"http://127.0.0.1:{grpc_port}"
        command: list[str | Path] = [find_rotel(), "start"]
        options = {
            "otlp-http-endpoint": f"127.0.0.1:{http_port}",
            "otlp-grpc-endpoint": f"127.0.0.1:{grpc_port}",
            "exporter": "otlp",
            "otlp-exporter-endpoint": forward_to,
            "otlp-exporter-protocol": "http",
            "batch-timeout": "100ms",
            # Both would lie in the system's temporary directory, for all users alike.
            "pid-file": directory / "collector.pid",
            "log-file": directory / "collector.log",
        }
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        super().__init__("collector", command, directory=directory, env=rotel_env())
        self.wait_port(http_port).wait_port(grpc_port)

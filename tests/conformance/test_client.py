from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The tests of a checkout, or of the source distribution, of the version that is installed.
CHECKOUT = os.environ.get("PROMETHEUS_CLIENT_CHECKOUT")
# What has no part in the store is left out, and so is test_multiprocess: the mode that the store stands in for.
# The source distribution comes without `openmetrics`.
FILES = (
    "openmetrics", "test_asgi.py", "test_core.py", "test_exposition.py", "test_graphite_bridge.py", "test_parser.py",
    "test_samples.py", "test_wsgi.py",
)  # fmt: skip


@pytest.mark.skipif(CHECKOUT is None, reason="PROMETHEUS_CLIENT_CHECKOUT names no checkout of prometheus_client")
def test_the_clients_own_tests_pass_on_the_store(tmp_path: Path) -> None:
    copy = tmp_path / "client_tests"
    subprocess.run(["cp", "-r", str(Path(str(CHECKOUT)) / "tests"), str(copy)], check=True)
    run = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "tests.conformance.client_plugin", "-p", "no:cacheprovider"),
            *("-p", "no:django", "-c", os.devnull, "--rootdir", str(tmp_path)),
            # Benchmarks want a plugin of pytest; how a TLS handshake with the client's own server fails is a race.
            *("-k", "not benchmark and not WsgiTLS"),
            *(str(copy / name) for name in FILES if (copy / name).exists()),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

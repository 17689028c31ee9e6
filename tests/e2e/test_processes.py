"""Nothing is lost, nothing comes twice, and no exit waits longer than it may: each kind of process, each way out.

All cases take half an hour; without ``DJANGO_OBS_ALL_EXITS`` in the environment those run that differ most.
"""

from __future__ import annotations

import os

import pytest

from tests.e2e.exits import FLUSH_TIMEOUT, REQUESTS, bench, cases, is_kill

# What a server takes itself, and the import of the exporter on a machine under load.
GRACE = 20.0
USUAL = {
    "gunicorn sync: SIGTERM",
    "gunicorn sync: abort after timeout",
    "gunicorn sync: recycling",
    "gunicorn sync: SIGKILL",
    "gunicorn sync --preload: os._exit in a child",
    "gunicorn uvicorn-worker: SIGTERM",
    "uvicorn: SIGINT",
    "uvicorn: collector hangs",
    "script: exception",
    "script: os._exit",
    "celery prefork: SIGTERM",
}
CASES = [
    pytest.param(kind, way, id=f"{kind.name}: {way}")
    for kind, way in cases()
    if os.environ.get("DJANGO_OBS_ALL_EXITS") or f"{kind.name}: {way}" in USUAL
]


@pytest.fixture(scope="module")
def shared_bench():
    with bench() as made:
        yield made


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_exit_loses_and_doubles_nothing(shared_bench, kind, way):
    if kind.needs == "celery":
        pytest.importorskip("redis")
    result = shared_bench.measure(kind, way)

    if way != "recycling":
        assert result.done >= REQUESTS
    assert result.doubled() == 0
    assert result.samples >= result.done
    assert result.seconds < FLUSH_TIMEOUT + GRACE
    if is_kill(kind, way):
        return
    assert result.lost_lines() == 0, result.said
    if way == "collector hangs":
        assert "not everything was delivered" in result.said
    else:
        assert result.lost_spans() == 0, result.said

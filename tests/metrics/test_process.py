from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from django_obs.metrics.process import ProcessReader, collect
from django_obs.metrics.scraper import Scraper

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


def test_own_process_is_read() -> None:
    usage = ProcessReader().read(os.getpid())
    assert usage is not None
    assert usage.cpu == pytest.approx(sum(os.times()[:2]), abs=1)
    assert usage.resident < usage.virtual
    assert usage.open_fds == pytest.approx(len(os.listdir("/proc/self/fd")), abs=2)
    assert usage.threads >= 1


def test_start_is_when_the_process_began() -> None:
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        after = time.time()
        usage = ProcessReader().read(process.pid)
        process.communicate(b"\n")
    assert usage is not None
    # The kernel tells when it booted in whole seconds.
    assert before - 2 <= usage.started <= after + 2


def test_process_that_is_gone_is_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessReader().read(process.pid) is None  # a zombie
    process.wait()
    assert ProcessReader().read(process.pid) is None


def test_system_without_proc_has_nothing_to_read(tmp_path: Path) -> None:
    assert ProcessReader(tmp_path).read(os.getpid()) is None


def test_name_of_the_program_cannot_confuse_the_fields(tmp_path: Path) -> None:
    fields = ["S", *map(str, range(4, 53))]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) S 1 (b)) {' '.join(fields)}")
    (tmp_path / "stat").write_text("cpu 1 2\nbtime 1000\n")
    usage = ProcessReader(tmp_path).read(7)
    assert usage is not None
    ticks = os.sysconf("SC_CLK_TCK")
    assert usage.cpu == (14 + 15) / ticks
    assert usage.threads == 20
    assert usage.started == 1000 + 22 / ticks
    assert usage.virtual == 23
    assert usage.open_fds is None
    assert usage.max_fds is None


def test_processes_that_can_be_seen_from_here_are_collected() -> None:
    lanes = [
        SimpleNamespace(holder=os.getpid(), role="web", number=3),
        SimpleNamespace(holder=0, role="web", number=4),
    ]
    families = {family.name: family for family in collect(lanes, ProcessReader())}
    (sample,) = families["process_cpu_seconds"].samples
    assert sample.name == "process_cpu_seconds_total"
    assert sample.labels == {"role": "web", "lane": "3"}
    assert set(families) == {
        "process_cpu_seconds",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_open_fds",
        "process_max_fds",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace of pids")
def test_same_pid_in_another_namespace_is_another_process(tmp_path: Path) -> None:
    """As with a site and its runmetrics in two containers that share the directory."""
    worker = """
import os, sys, time
from pathlib import Path
from prometheus_client import Counter
from django_obs.metrics import adoption
from django_obs.metrics.store import Store
store = Store(lambda: Path(sys.argv[1]))
adoption.install(store)
Counter("jobs", "j").inc()
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", worker, str(tmp_path / "m")]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            pytest.skip("namespaces of pids are not to be had here")
        assert int(said) < 10
        (lane,) = Scraper(lambda: tmp_path / "m").lanes()
        assert lane.alive
        assert lane.pid == int(said)
        # A child namespace can be seen from its parent, by a pid of the parent.
        assert lane.holder > 10
        usage = ProcessReader().read(lane.holder)
        assert usage is not None
        assert abs(usage.started - lane.started) < 60
        # From a sibling it cannot be seen.
        look = (
            "import sys; from pathlib import Path; from django_obs.metrics.scraper import Scraper;"
            "lane, = Scraper(lambda: Path(sys.argv[1])).lanes(); print(lane.alive, lane.holder)"
        )
        other = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", look, str(tmp_path / "m")]
        seen = subprocess.run(other, cwd=root, capture_output=True, text=True, timeout=60)
        assert seen.stdout == "True 0\n", seen.stderr
        assert process.stdin is not None
        process.stdin.close()

"""Dead processes: counters go on, gauges do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# What the page shows of a gauge that the living process has set to 1, one that died has set to 5, and one that died
# before, whose lane was taken over, to 3.
MODES = {
    "all": {"alive": 1, "dead": 5},
    "liveall": {"alive": 1},
    "min": 1, "livemin": 1,
    "max": 5, "livemax": 1,
    "sum": 9, "livesum": 1,
    "mostrecent": 5, "livemostrecent": 1,
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_gauge_mode_decides_what_the_dead_leave(run_apart: Callable[[str], str], mode: str) -> None:
    run_apart(f"""
        mode, expected = {mode!r}, {MODES[mode]!r}
        adoption.install(store)
        gauge = Gauge("busy", "b", ["queue"], multiprocess_mode=mode).labels("q")
        gauge.set(1)
        pids = {{"alive": os.getpid()}}
        in_child(lambda: gauge.set(3))
        child = Child(lambda: gauge.set(5))
        pids["dead"] = child.pid
        child.step()
        child.end()
        if isinstance(expected, dict):
            assert samples() == {{
                ("busy", (("pid", str(pids[who])), ("queue", "q"))): number for who, number in expected.items()
            }}
        else:
            assert samples() == {{("busy", (("queue", "q"),)): expected}}
    """)


def test_gauge_of_a_killed_process_is_no_phantom(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        busy = Gauge("busy", "b", multiprocess_mode="livesum")
        done = Counter("done", "d")
        store.open()
        for _ in range(5):
            child = Child(lambda: (done.inc(), busy.inc(2)))
            child.step()
            assert value("busy") == 2
            child.end()
            assert value("busy") == 0
        assert value("done_total") == 5
        assert len(scraper.lanes()) == 2
    """)


def test_process_without_the_gauge_has_no_part_in_it(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc()
        def work():
            for mode in ("all", "min", "max", "livemin"):
                Gauge("busy_" + mode, "b", multiprocess_mode=mode).set(-3 if mode == "max" else 3)
        child = Child(work)
        child.step()
        in_child(jobs.inc)
        assert value("busy_all", pid=str(child.pid)) == 3
        assert [key for key in samples() if key[0] == "busy_all"] == [("busy_all", (("pid", str(child.pid)),))]
        assert (value("busy_min"), value("busy_livemin"), value("busy_max")) == (3, 3, -3)
        child.end()
        in_child(jobs.inc)
        assert (value("busy_min"), value("busy_livemin"), value("busy_max")) == (3, None, -3)
    """)


def test_recent_gauges_that_nobody_set_are_not_shown(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Gauge("busy", "b", multiprocess_mode="mostrecent")
        store.open()
        assert samples() == {}
    """)


def test_gauge_may_be_nan(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        gauge = Gauge("busy", "b", multiprocess_mode="livemax")
        gauge.set(float("nan"))
        assert math.isnan(value("busy"))
    """)


def test_gauges_of_two_processes_with_one_pid_are_told_apart(run_apart: Callable[[str], str]) -> None:
    """Containers that share the directory each have a pid 7; two samples of one name would spoil the page."""
    run_apart("""
        import struct
        adoption.install(store)
        busy = Gauge("busy", "b")
        busy.set(1)
        child = Child(lambda: busy.set(2))
        child.step()
        with open(directory / "lane-0001", "r+b") as file:
            file.seek(8)
            file.write(struct.pack("=Q", os.getpid()))
        assert sorted(samples().values()) == [1, 2]
        child.end()
        assert sorted(samples().values()) == [1]
    """)


def test_label_named_pid_gives_way_to_the_process(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Gauge("busy", "b", ["pid"]).labels("mine").set(1)
        assert samples() == {("busy", (("pid", str(os.getpid())),)): 1}
        assert scraper.text().count("pid=") == 1
    """)


def test_nan_count_ends_with_its_process(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        seconds = Histogram("seconds", "s")
        store.open()
        def spoil():
            seconds.observe(1); seconds.observe(float("nan"))
        in_child(spoil)
        assert math.isnan(value("seconds_sum"))
        assert value("seconds_count") == 1
        in_child(lambda: seconds.observe(2))
        assert value("seconds_sum") == 2
        assert value("seconds_count") == 2
    """)


def test_lane_taken_over_keeps_its_counts(run_apart: Callable[[str], str]) -> None:
    code = """
        adoption.install(store)
        Counter("jobs", "j").inc(2)
        assert value("jobs_total") == {}
        assert REGISTRY.get_sample_value("jobs_total") == 2
        assert len(scraper.lanes()) == 1
    """
    for run in range(1, 4):
        run_apart(code.format(2 * run))


def test_scrape_does_not_wait_for_who_holds_the_archive(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        import fcntl
        adoption.install(store)
        busy = Gauge("busy", "b", multiprocess_mode="max")
        store.open()
        in_child(lambda: busy.set(3))
        in_child(lambda: busy.set(2))  # folds
        def hold():
            global fd
            fd = os.open(directory / "archive", os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX)
        child = Child(hold)
        child.step()
        assert value("busy") == 3
        in_child(lambda: busy.set(4))
        assert value("busy") == 4
        child.end()
    """)


def test_counters_never_go_backwards_through_500_kills(run_apart: Callable[[str], str]) -> None:
    """Workers are killed in the midst of their first records and of opening their lanes, four at a time."""
    run_apart("""
        import random
        adoption.install(store)
        random.seed(4)
        jobs = Counter("jobs", "j", ["kind"])
        seconds = Histogram("seconds", "s")
        busy = Gauge("busy", "b", multiprocess_mode="livesum")
        shared = os.pipe()
        def work(tell):
            n = 0
            while True:
                busy.inc()
                jobs.labels("all").inc()
                jobs.labels(str(n % 50)).inc()
                seconds.observe(0.2)
                busy.dec()
                os.write(tell, b".")
                n += 1
        before, done, longest = {}, 0, 0
        kills = 0
        while kills < 500:
            pids, told = [], []
            for _ in range(4):
                read, write = os.pipe()
                pid = os.fork()
                if not pid:
                    try:
                        work(write)
                    finally:
                        os._exit(1)
                os.close(write)
                pids.append(pid); told.append(read)
            for pid, read in zip(pids, told):
                for _ in range(random.choice((0, 1, 3, 20))):
                    done += len(os.read(read, 1))
                os.kill(pid, signal.SIGKILL)
                kills += 1
            for pid, read in zip(pids, told):
                os.waitpid(pid, 0)
                while left := os.read(read, 65536):
                    done += len(left)
                os.close(read)
            now = samples()
            for key, number in before.items():
                assert now[key] >= number or key[0] == "busy", (key, number, now[key])
            assert scraper.text().endswith("\\n")
            before = now
            assert now.get(("busy", ()), 0) == 0
        assert 0 <= value("jobs_total", kind="all") - done <= kills
        assert 0 <= value("seconds_count") - done <= kills
        assert len(scraper.lanes()) <= 5
        assert scraper.read().damaged == 0
    """)

"""The store of a process: when it opens, what it keeps, what it does when things go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import Counter

if TYPE_CHECKING:
    from collections.abc import Callable


def test_nothing_recorded_leaves_no_file(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("late", "l", ["kind"]).labels("a")
        store.tend()
        store.set_role("command")
        assert not directory.exists()
        assert scraper.text() == ""
        assert scraper.lanes() == []
    """)


def test_first_record_opens_and_shows_zeros_of_all_metrics(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        first, other = Counter("first", "f"), Counter("other", "o", ["kind"])
        other.labels("a")
        first.inc()
        assert value("first_total") == 1
        assert value("other_total", kind="a") == 0
    """)


def test_files_are_for_the_owner_alone(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("jobs", "j").inc(exemplar={"trace_id": "1"})
        assert directory.stat().st_mode & 0o777 == 0o700
        assert sorted(p.name for p in directory.iterdir()) == ["exemplars-0000", "index", "lane-0000"]
        assert {p.stat().st_mode & 0o777 for p in directory.iterdir()} == {0o600}
    """)


def test_forked_child_counts_in_its_own_lane(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc(2)
        in_child(lambda: jobs.inc(5))
        assert value("jobs_total") == 7
        assert [lane.alive for lane in scraper.lanes()] == [True, False]
        in_child(lambda: jobs.inc(5))
        assert value("jobs_total") == 12
        assert len(scraper.lanes()) == 2
    """)


def test_child_of_an_unopened_parent_opens_for_itself(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        in_child(jobs.inc)
        in_child(jobs.inc)
        assert not store.opened
        assert value("jobs_total") == 2
        assert len(scraper.lanes()) == 1
    """)


def test_bound_methods_kept_from_before_a_fork_count_for_the_child(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        seconds = Histogram("seconds", "s")
        count, observe = jobs.labels("a").inc, seconds.observe
        count(); observe(1)
        def child():
            count(10); observe(2)
            assert jobs.labels("a")._value.get() == 10  # its own, as in prometheus_client's multiprocess mode
        in_child(child)
        assert jobs.labels("a")._value.get() == 1
        assert value("jobs_total", kind="a") == 11
        assert value("seconds_count") == 2
        assert value("seconds_sum") == 3
    """)


def test_fork_without_hooks_is_noticed_by_the_pid_check(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        import ctypes
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc()
        pid = ctypes.PyDLL(None).fork()  # no os.register_at_fork, as in a server that forks in C
        if not pid:
            store.check_pid()
            jobs.inc(10)
            os._exit(0)
        os.waitpid(pid, 0)
        assert value("jobs_total") == 11
        assert len(scraper.lanes()) == 2
    """)


def test_uwsgi_forks_are_noticed_by_its_own_hook(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        import ctypes, types
        calls = []
        sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")
        uwsgi.post_fork_hook = lambda: calls.append(os.getpid())
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc()
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            uwsgi.post_fork_hook()
            jobs.inc(10)
            os._exit(0 if calls else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert value("jobs_total") == 11
        assert len(scraper.lanes()) == 2
    """)


def test_role_and_pid_are_in_the_lane(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        store.set_role("web")
        Counter("jobs", "j").inc()
        [lane] = scraper.lanes()
        assert (lane.pid, lane.role, lane.alive) == (os.getpid(), "web", True)
        assert abs(lane.started - time.time()) < 60
        store.set_role("worker" * 20)
        assert scraper.lanes()[0].role == ("worker" * 20)[:32]
        assert scraper.lanes()[0].started == lane.started
    """)


def test_threads_lose_no_record(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        sys.setswitchinterval(1e-6)
        jobs = Counter("jobs", "j", ["kind"])
        seconds = Histogram("seconds", "s")
        def work():
            for _ in range(30_000):
                jobs.labels("a").inc()
                seconds.observe(0.25)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert value("jobs_total", kind="a") == 120_000
        assert value("seconds_count") == 120_000
        assert value("seconds_sum") == 30_000
    """)


def test_threads_that_open_the_store_together_lose_no_record(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        sys.setswitchinterval(1e-6)
        jobs = Counter("jobs", "j", ["kind"])
        ready = threading.Barrier(8)
        def work(n):
            ready.wait()
            for i in range(200):
                jobs.labels(str(i)).inc()
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert {value("jobs_total", kind=str(i)) for i in range(200)} == {8}
    """)


@pytest.mark.parametrize(
    "record", ["Counter.inc", "Gauge.inc", "Gauge.dec", "Gauge.set", "Histogram.observe", "Summary.observe"]
)
def test_metric_that_another_thread_gives_its_cells_meanwhile_counts(
    run_apart: Callable[[str], str], record: str
) -> None:
    kind, verb = record.split(".")
    run_apart(f"""
        adoption.install(store)
        metric = {kind}("m", "m", ["kind"]).labels("a")
        if hasattr(metric, "_cell"):
            del metric._cell
        observable = metric._raise_if_not_observable
        def meanwhile():
            observable()
            store.adopt(metric)
        metric._raise_if_not_observable = meanwhile
        metric.{verb}(2)
        assert abs(metric._cell[()]) == 2.0
    """)


def test_removed_label_set_leaves_the_page_of_all_processes(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        def other():
            jobs.labels("a").inc(5); jobs.labels("b").inc(5)
        child = Child(other, store.tend, lambda: jobs.labels("a").inc(3))
        child.step()
        jobs.labels("a").inc()
        jobs.remove("a")
        assert value("jobs_total", kind="a") is None
        assert value("jobs_total", kind="b") == 5
        child.step()  # learns of it
        child.step()  # and begins again
        assert value("jobs_total", kind="a") == 3
        jobs.labels("a").inc()
        assert value("jobs_total", kind="a") == 4
        child.end()
    """)


def test_removed_label_set_comes_back_without_the_counts_of_the_dead(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        depth = Gauge("depth", "d", ["queue"], multiprocess_mode="sum")
        store.open()
        def work():
            jobs.labels("a").inc(5); depth.labels("q").set(7)
        in_child(work)
        in_child(work)  # folds the gauge of the first
        assert value("jobs_total", kind="a") == 10
        assert value("depth", queue="q") == 14
        jobs.clear(); depth.clear()
        assert samples() == {}
        jobs.labels("a").inc(1); depth.labels("q").set(2)
        assert value("jobs_total", kind="a") == 1
        assert value("depth", queue="q") == 2
    """)


def test_clear_and_set_in_turns_fills_nothing_up(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        depth = Gauge("depth", "d", ["queue"], multiprocess_mode="livesum")
        for n in range(100):
            depth.clear()
            for queue in "ab":
                depth.labels(queue).set(n)
            if n == 0:
                size, slots = store.stats()["index_bytes"], store.stats()["slots"]
        assert (store.stats()["index_bytes"], store.stats()["slots"]) == (size, slots)
        assert value("depth", queue="a") == 99
    """)


@pytest.mark.skipif(not hasattr(Counter, "remove_by_labels"), reason="prometheus_client has it since 0.24")
def test_remove_by_labels_removes_what_matches(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind", "state"])
        for kind in "ab":
            for state in "xy":
                jobs.labels(kind, state).inc()
        jobs.remove_by_labels({"kind": "a"})
        assert {dict(labels)["kind"] for _, labels in samples()} == {"b"}
        jobs.labels("a", "x").inc()
        assert value("jobs_total", kind="a", state="x") == 1
    """)


def test_label_sets_beyond_the_cap_share_one_series(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        store.max_series = 10
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        for n in range(30):
            jobs.labels(str(n)).inc()
        jobs.labels("3").inc()
        assert value("jobs_total", kind="3") == 2
        assert value("jobs_total", kind=OVERFLOW) == 20
        assert sum(samples().values()) == 31
        assert len(jobs._metrics) == 11
        assert jobs.labels("29") is jobs.labels("28")
        assert scraper.read().dropped == 22
        in_child(lambda: jobs.labels("unheard").inc())
        assert value("jobs_total", kind=OVERFLOW) == 21
        (directory / "index").unlink()
        store.tend()
        jobs.labels("unheard").inc()
        assert value("jobs_total", kind=OVERFLOW) == 1
    """)


def test_metric_without_labels_has_its_place_beyond_the_cap(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        store.max_series = 1
        adoption.install(store)
        for name in "abc":
            Counter(name, name).inc()
        assert [value(f"{name}_total") for name in "abc"] == [1, 1, 1]
    """)


def test_removed_series_make_room_under_the_cap(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        store.max_series = 4
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        for n in range(6):
            jobs.labels(str(n)).inc()
        assert value("jobs_total", kind=OVERFLOW) == 2
        jobs.clear()
        jobs.labels("new").inc()
        assert samples() == {("jobs_total", (("kind", "new"),)): 1}
    """)


def test_changed_buckets_are_a_new_metric_and_the_newest_is_shown(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        old = Histogram("seconds", "s", buckets=(1, 2), registry=None)
        old.observe(1.5)
        def deploy():
            new = Histogram("seconds", "s", buckets=(1, 2, 3), registry=None)
            new.observe(2.5)
        in_child(deploy)
        assert value("seconds_bucket", le="3.0") == 1
        assert value("seconds_count") == 1
        def roll_back():
            Histogram("seconds", "s", buckets=(1, 2), registry=None).observe(1)
        in_child(roll_back)
        assert value("seconds_bucket", le="3.0") is None
        assert value("seconds_count") == 2
    """)


def test_changed_help_is_the_same_metric(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("jobs", "old", registry=None).inc()
        Counter("jobs", "new", registry=None).inc()
        assert "# HELP jobs_total new" in scraper.text()
        assert value("jobs_total") == 2
    """)


def test_lazily_translated_help_is_stored(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        from django.utils.functional import lazystr
        adoption.install(store)
        Counter("jobs", lazystr("translated")).inc()
        assert "# HELP jobs_total translated" in scraper.text()
    """)


def test_same_metric_in_two_registries_is_one_on_the_page(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("jobs", "j", registry=CollectorRegistry()).inc()
        Counter("jobs", "j", registry=CollectorRegistry()).inc(2)
        assert value("jobs_total") == 3
    """)


def test_cleaned_directory_is_opened_anew_by_the_clock(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs, busy = Counter("jobs", "j", ["kind"]), Gauge("busy", "b", multiprocess_mode="livesum")
        held = jobs.labels("a")
        held.inc(3); busy.set(4)
        shutil.rmtree(directory)
        held.inc()
        assert samples() == {}
        store.tend()
        held.inc(2)
        assert value("jobs_total", kind="a") == 2  # as after a restart: nothing half
        assert value("busy") == 4
        assert value("busy") == 4 and scraper.lanes()[0].alive
    """)


def test_cleaned_index_alone_makes_all_lanes_void(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        first, second = Counter("first", "f"), Counter("second", "s")
        first.inc(3); second.inc(5)
        child = Child(lambda: second.inc(7))
        child.step()
        (directory / "index").unlink()
        assert samples() == {}
        store.tend()
        second.inc()
        assert value("second_total") == 1 and value("first_total") == 0
        child.end()
        in_child(second.inc)  # finds the lane of the other index and takes none of its counts
        assert value("second_total") == 2 and value("first_total") == 0
    """)


def test_child_forked_after_the_cleaning_opens_anew(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc(5)
        shutil.rmtree(directory)
        in_child(lambda: jobs.inc(2))
        assert value("jobs_total") == 2
    """)


def test_directory_that_cannot_be_made_keeps_counts_until_it_can(run_apart: Callable[[str], str]) -> None:
    out = run_apart("""
        directory.parent.joinpath("metrics").write_text("a file is in the way")
        adoption.install(store)
        jobs, seconds = Counter("jobs", "j", ["kind"]), Histogram("seconds", "s")
        jobs.labels("a").inc(2); seconds.observe(1)
        assert jobs.labels("a")._value.get() == 2
        store.tend()
        in_child(lambda: jobs.labels("a").inc(100))
        os.unlink(directory)
        store.tend()
        jobs.labels("a").inc()
        assert value("jobs_total", kind="a") == 3
        assert value("seconds_sum") == 1
    """)
    assert out.count("Metrics cannot be stored") == 1


def test_directory_callable_that_raises_is_no_error_of_the_request(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        def nowhere():
            raise PermissionError("not yours")
        adoption.install(Store(nowhere))
        jobs = Counter("jobs", "j")
        jobs.inc(2)
        assert REGISTRY.get_sample_value("jobs_total") == 2
    """)


def test_locked_index_holds_no_request_up(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        import fcntl
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("a").inc()
        def hold():
            global fd
            fd = os.open(directory / "index", os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX)
        child = Child(hold)
        child.step()
        began = time.monotonic()
        jobs.labels("b").inc(2)  # in private memory
        assert time.monotonic() - began < 30
        assert value("jobs_total", kind="b") is None
        assert value("jobs_total", kind="a") == 1
        child.end()
        store.tend()
        assert value("jobs_total", kind="b") == 2
    """)


def test_closed_store_gives_its_lane_to_the_next(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc(2)
        store.close()
        jobs.inc()  # no error, no lane
        assert [lane.alive for lane in scraper.lanes()] == [False]
        assert value("jobs_total") == 2
    """)


def test_private_process_has_no_lane(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        store.private = True
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("a").inc()
        assert jobs.labels("a")._value.get() == 1
        assert not directory.exists()
    """)


def test_two_stores_of_one_process_take_two_lanes(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("jobs", "j").inc()
        other = Store(lambda: directory)
        other.open()
        assert [lane.alive for lane in scraper.lanes()] == [True, True]
        assert value("jobs_total") == 1
    """)

"""Metrics of prometheus_client record to the store, whoever made them and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


def test_metrics_made_before_install_keep_their_counts(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        early = Counter("early", "e", ["kind"])
        early.labels("a").inc(3)
        private = Histogram("private", "p", registry=None)
        private.observe(0.3)
        other = Summary("other", "o", registry=CollectorRegistry())
        other.observe(2)
        level = Gauge("level", "l", multiprocess_mode="livesum")
        level.set(5)
        adoption.install(store)
        store.open()
        assert value("early_total", kind="a") == 3
        assert (value("private_count"), value("private_bucket", le="0.5")) == (1, 1)
        assert (value("other_count"), value("other_sum")) == (1, 2)
        assert value("level") == 5
        early.labels("a").inc()
        private.observe(0.3)
        level.inc()
        assert value("early_total", kind="a") == 4
        assert value("private_count") == 2
        assert value("level") == 6
    """)


def test_metric_made_before_install_opens_the_store_at_its_next_record(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        early = Counter("early", "e")
        early.inc(3)
        adoption.install(store)
        early.inc()
        assert value("early_total") == 4
        assert early._value.get() == 4
    """)


def test_recent_gauge_set_before_install_counts_as_set(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        version = Gauge("version", "v", multiprocess_mode="mostrecent")
        version.set(7)
        adoption.install(store)
        store.open()
        assert value("version") == 7
    """)


def test_metrics_stay_who_they_are(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        early = Counter("early", "e", ["kind"])
        adoption.install(store)
        late = Counter("late", "l", ["kind"])
        store.open()
        assert type(early) is type(late) is Counter
        assert REGISTRY._names_to_collectors["early_total"] is early
        assert type(late.labels("a")) is Counter
        assert repr(late) == "prometheus_client.metrics.Counter(late)"
    """)


def test_subclass_records_through_its_own_methods(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        class Doubled(Counter):
            def inc(self, amount=1, exemplar=None):
                super().inc(2 * amount, exemplar)
        jobs = Doubled("jobs", "j", ["kind"])
        jobs.labels("a").inc(3)
        assert value("jobs_total", kind="a") == 6
    """)


def test_local_registry_shows_what_this_process_counted(run_apart: Callable[[str], str]) -> None:
    code = """
        adoption.install(store)
        jobs, seconds = Counter("jobs", "j"), Histogram("seconds", "s", buckets=(1,))
        jobs.inc(2); seconds.observe(0.5)
        assert REGISTRY.get_sample_value("jobs_total") == 2
        assert REGISTRY.get_sample_value("seconds_bucket", {"le": "1.0"}) == 1
        assert REGISTRY.get_sample_value("seconds_sum") == 0.5
        jobs.reset()
        assert REGISTRY.get_sample_value("jobs_total") == 0
        jobs.inc()
        assert REGISTRY.get_sample_value("jobs_total") == 1
    """
    run_apart(code)
    run_apart(code + "    assert value('jobs_total') == 2\n")


def test_wrong_labels_raise_what_prometheus_client_raises(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        def failures():
            two = Counter("two", "t", ["a", "b"], registry=None)
            plain = Counter("plain", "p", registry=None)
            awkward = Gauge("awkward", "a", ["class", "self"], registry=None)
            hidden = Summary("hidden", "h", ["tree"], registry=None)
            two.labels("x", "y")
            class Unprintable:
                __str__ = None
            calls = [
                lambda: two.labels(), lambda: two.labels("x"), lambda: two.labels("x", "y", "z"),
                lambda: two.labels(a="x"), lambda: two.labels(b="x"), lambda: two.labels(a="x", c="y"),
                lambda: two.labels(a="x", b="y", c="z"), lambda: two.labels("x", c="y"),
                lambda: two.labels(Unprintable(), "y"), lambda: two.labels("x", "y").labels("x", "y"),
                lambda: two.inc(), lambda: plain.labels("x"), lambda: plain.labels(), lambda: plain.inc(-1),
                lambda: two.labels("x", "y").inc(-1), lambda: plain.inc("x"), lambda: plain.inc(None),
                lambda: awkward.labels("x"), lambda: awkward.labels(**{"class": "x"}), lambda: awkward.set(1),
                lambda: hidden.labels(), lambda: hidden.observe(1), lambda: hidden.labels("x").observe("1"),
                lambda: two.remove("x"), lambda: plain.remove("x"), lambda: two.remove_by_labels({"c": "x"}),
                lambda: two.remove_by_labels(["a"]), lambda: two.count_exceptions(),
                lambda: plain.inc(exemplar={"long": "x" * 200}), lambda: plain.inc(exemplar={"__a": "x"}),
                lambda: Histogram("h", "h", ["a"], registry=None).observe(1),
                lambda: Histogram("h", "h", registry=None).observe("x"),
                lambda: Gauge("g", "g", registry=None, multiprocess_mode="mostrecent").inc(),
                lambda: Gauge("g", "g", registry=None).set("x"), lambda: Gauge("g", "g", registry=None).inc("x"),
            ]
            types = []
            for call in calls:
                try:
                    call()
                    types.append(None)
                except Exception as error:
                    types.append(type(error))
            return types
        expected = failures()
        assert None not in expected
        adoption.install(store)
        assert failures() == expected
        store.open()
        assert failures() == expected
    """)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("class", "from"), ("self", "tree"), ("b-r", "é")])
def test_labels_are_found_by_position_and_by_name(run_apart: Callable[[str], str], names: tuple[str, ...]) -> None:
    run_apart(f"""
        names = {names!r}
        adoption.install(store)
        jobs = Counter("jobs", "j", names)
        texts = [f"v{{n}}" for n in range(len(names))]
        child = jobs.labels(*texts)
        assert jobs.labels(*texts) is child
        assert jobs.labels(**dict(zip(names, texts))) is child
        assert jobs.labels(**dict(reversed(list(zip(names, texts))))) is child
        child.inc()
        assert value("jobs_total", **dict(zip(names, texts))) == 1
    """)


def test_labels_that_are_no_strings_are_told_apart(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["status"])
        for label in (200, 200, 200.0, True, 1, "1", None, "None"):
            jobs.labels(label).inc()
        found = {dict(labels)["status"]: number for (name, labels), number in samples().items()}
        assert found == {"200": 2, "200.0": 1, "True": 1, "1": 2, "None": 2}
    """)


def test_decorators_and_timers_record(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        failures, busy = Counter("failures", "f"), Gauge("busy", "b", multiprocess_mode="livesum")
        seconds, brief = Histogram("seconds", "s"), Summary("brief", "b")
        with busy.track_inprogress(), seconds.time(), brief.time():
            assert value("busy") == 1
        try:
            with failures.count_exceptions():
                raise ValueError
        except ValueError:
            pass
        assert (value("busy"), value("failures_total")) == (0, 1)
        assert (value("seconds_count"), value("brief_count")) == (1, 1)
    """)


def test_observations_at_the_edges_fall_where_prometheus_client_puts_them(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        observed = (-1, 0, 0.5, 1, 1.0000001, 2, 3, math.inf, True)
        def fill(name):
            histogram = Histogram(name, "h", buckets=(0, 1, 2), registry=None)
            for amount in observed:
                histogram.observe(amount)
            return [(s.name.partition("_")[2], s.labels, s.value) for f in histogram.collect() for s in f.samples][:-1]
        expected = fill("a")
        adoption.install(store)
        assert fill("b") == expected
        [family] = scraper.collect()
        assert [(s.name.partition("_")[2], s.labels, s.value) for s in family.samples] == expected
    """)


def test_nan_observation_is_in_the_sum_and_in_no_bucket(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        histogram = Histogram("seconds", "s")
        histogram.observe(float("nan"))
        histogram.observe(1)
        assert value("seconds_count") == 1
        assert math.isnan(value("seconds_sum"))
    """)


def test_gauge_takes_what_float_takes(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        from decimal import Decimal
        adoption.install(store)
        gauge = Gauge("level", "l", multiprocess_mode="livesum")
        for given, expected in ((3, 3), ("2.5", 2.5), (Decimal("1.5"), 1.5), (True, 1)):
            gauge.set(given)
            assert value("level") == expected
    """)


def test_gauge_with_a_function_is_collected_and_not_stored(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        Gauge("early", "e").set_function(lambda: 7)
        adoption.install(store)
        late = Gauge("late", "l", ["kind"])
        late.labels("a").set(3)
        late.labels("b").set(4)
        late.labels("a").set_function(lambda: 8)
        Info("build", "b").info({"version": "1"})
        Enum("state", "s", states=["on", "off"]).state("off")
        assert [key for key in samples() if key[0] == "early"] == []
        assert [number for (name, labels), number in samples().items() if name == "late"] == [4]
        others = {f.name: f for f in adoption.other_families() if not f.name.startswith(("python", "process"))}
        assert sorted(others) == ["build", "early", "late", "state"]
        assert others["early"].samples[0].value == 7
        assert others["late"].samples[0].labels == {"kind": "a"}
    """)


def test_exemplars_are_kept_for_the_newest(run_apart: Callable[[str], str]) -> None:
    run_apart(r"""
        import re
        adoption.install(store)
        jobs, seconds = Counter("jobs", "j"), Histogram("seconds", "s", buckets=(1, 2))
        jobs.inc(1, {"trace_id": "a"})
        seconds.observe(1.5, {"trace_id": "b"})
        seconds.observe(1.6, {"trace_id": "c"})
        in_child(lambda: jobs.inc(2, {"trace_id": "d"}))
        store.tend()
        found = {tuple(e.labels.items()): e.value for e in scraper.exemplars().values()}
        assert found == {(("trace_id", "c"),): 1.6, (("trace_id", "d"),): 2}
        page = scraper.read()
        lines = [line for f in page.families for line in page.lines(f, exemplars=scraper.exemplars())]
        # The time is in seconds, with or without a fraction.
        for start in ('seconds_bucket{le="2.0"} 2.0 # {trace_id="c"} 1.6', 'jobs_total 3.0 # {trace_id="d"} 2.0'):
            assert any(re.match(re.escape(start) + r" \d{10}(\.|$)", l) for l in lines), lines
        [sample] = [s for f in jobs.collect() for s in f.samples if s.name == "jobs_total"]
        assert sample.exemplar.labels == {"trace_id": "a"}  # of this process
    """)


def test_signal_handler_in_the_midst_of_labels_does_not_deadlock(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        count = iter(range(10**9))
        going = True
        def handle(*_):
            jobs.labels(f"signal{next(count)}").inc()
            if going:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        end = time.monotonic() + 1
        n = 0
        while time.monotonic() < end:
            jobs.labels(str(n)).inc()
            n += 1
        # A signal that is on its way would wind the clock up again.
        going = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        store.tend()
        assert sum(samples().values()) == n + next(count)
    """)


def test_fork_while_threads_make_label_sets_does_not_deadlock(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        ended = threading.Event()
        def work():
            n = 0
            while not ended.is_set() and n < 5000:
                jobs.labels(f"{threading.get_ident()}-{n}").inc()
                n += 1
        threads = [threading.Thread(target=work) for _ in range(2)]
        for t in threads: t.start()
        for _ in range(30):
            in_child(lambda: [jobs.labels(f"child{n}").inc() for n in range(5)])
        ended.set()
        for t in threads: t.join()
        assert value("jobs_total", kind="child0") == 30
    """)


@pytest.mark.parametrize(
    "lack",
    [
        "sys.implementation.name = 'pypy'",
        "sys._is_gil_enabled = lambda: False",
        "sys.modules['django_obs.metrics.platform'].fcntl = None",
    ],
)
def test_platform_without_lanes_keeps_prometheus_client_as_it_is(run_apart: Callable[[str], str], lack: str) -> None:
    out = run_apart(f"""
        {lack}
        assert adoption.install(store) is False
        assert adoption.install(store) is False
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("a").inc(2)
        store.open(); store.tend(); store.set_role("web"); store.check_pid(); store.close()
        assert REGISTRY.get_sample_value("jobs_total", {{"kind": "a"}}) == 2
        assert not directory.exists()
        assert scraper.text() == ""
    """)
    assert out.count("Metrics are not shared between processes") == 1

"""The page: the sum of all lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def test_text_is_what_prometheus_client_writes(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        from prometheus_client import disable_created_metrics, generate_latest
        disable_created_metrics()
        adoption.install(store)
        registry = CollectorRegistry()
        jobs = Counter("jobs_total", 'back\\\\slash and\\nline', ["kind", "a"], registry=registry)
        jobs.labels('quo"te', "back\\\\slash").inc(1234567)
        jobs.labels("new\\nline", "é").inc(0.1)
        Gauge("level", "l", registry=registry, multiprocess_mode="livesum").set(-math.inf)
        seconds = Histogram("seconds", "s", ["kind", "zone"], registry=registry, unit="seconds", buckets=(-1, 0.5, 1e7))
        seconds.labels("a", "b").observe(0.1)
        Histogram("plain", "p", ["kind", "zone"], registry=registry).labels("a", "b").observe(3e9)
        Summary("size", "s", ["x"], registry=registry).labels("").observe(0.30000000000000004)
        Counter("dotted.name", "d", ["dotted.label"], registry=registry).labels("x").inc()
        ours, theirs = scraper.text().splitlines(), generate_latest(registry).decode().splitlines()
        assert sorted(ours) == sorted(theirs)
    """)


def test_families_are_readable_by_both_parsers_of_prometheus_client(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        from prometheus_client.openmetrics import exposition
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
        from prometheus_client.parser import text_string_to_metric_families as lenient
        adoption.install(store)
        for cls in (Counter, Gauge, Histogram, Summary):
            metric = cls("m_" + cls.__name__.lower(), "m", ["kind"])
            getattr(metric.labels("a"), "inc" if cls in (Counter, Gauge) else "observe")(1)
        assert len(list(lenient(scraper.text()))) == 4
        assert len(list(strict(exposition.generate_latest(scraper).decode()))) == 4
    """)


def test_label_value_that_utf8_cannot_carry_fails_no_page(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        Counter("jobs", "j", ["name"]).labels("lone \\ud800 surrogate").inc()
        assert scraper.text().encode().endswith(b'jobs_total{name="lone ? surrogate"} 1.0\\n')
    """)


def test_new_series_and_definitions_appear_on_a_scraper_that_stays(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        for n in range(5):
            jobs.labels(str(n)).inc()
            Counter(f"more{n}", "m").inc()
            assert len(samples()) == 2 * (n + 1)
    """)


def test_created_times_are_those_of_the_first_process(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        store.open()
        [family] = scraper.read().families
        created = family.rows()[0].created
        assert abs(created - time.time()) < 60
        in_child(jobs.inc)
        assert scraper.read().families[0].rows()[0].created == created
    """)


def test_owner_scrapes_its_own_lane_and_keeps_its_lock(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j")
        jobs.inc()
        for _ in range(3):
            assert value("jobs_total") == 1
        in_child(jobs.inc)
        assert [lane.alive for lane in scraper.lanes()] == [True, False]
    """)


def test_scrapes_in_threads_agree(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        texts = set()
        def scrape():
            for n in range(50):
                texts.add(scraper.text().count("jobs_total{"))
        threads = [threading.Thread(target=scrape) for _ in range(4)]
        for t in threads: t.start()
        for n in range(300): jobs.labels(str(n)).inc()
        for t in threads: t.join()
        assert scraper.text().count("jobs_total{") == 300
    """)


def test_page_is_of_one_moment(run_apart: Callable[[str], str]) -> None:
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("a").inc()
        page = scraper.read()
        jobs.labels("b").inc(); jobs.labels("a").inc()
        assert scraper.read().text().count("jobs_total{") == 2
        assert page.text().splitlines()[2:] == ['jobs_total{kind="a"} 1.0']
    """)

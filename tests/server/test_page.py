from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Enum, Gauge, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from django_obs.metrics.collectors import Collectors
from django_obs.metrics.exposition import OPENMETRICS, PLAIN, TEXT, Format
from django_obs.metrics.scraper import Scraper
from django_obs.server.page import MetricsPage
from tests.server.worker import Worker

STRICT = Format(OPENMETRICS, "1.0.0")
Labels = dict[str, str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**environ: str) -> Worker:
        workers.append(Worker(tmp_path, **environ))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.process.poll() is None:
            worker.close()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def page(tmp_path: Path, registry: CollectorRegistry) -> MetricsPage:
    return MetricsPage(Scraper(lambda: tmp_path / "metrics"), Collectors(registry, patience=60.0))


class Samples(dict[tuple[str, tuple[tuple[str, str], ...]], float]):
    def __init__(self, page: MetricsPage, dialect: Format = PLAIN) -> None:
        parse = parse_openmetrics if dialect.openmetrics else parse_text
        self.text = page.render(dialect).decode()
        for family in parse(self.text):
            for sample in family.samples:
                self[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        return self.get((name, tuple(sorted(labels.items()))))

    def sum(self, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(value for (found, pairs), value in self.items() if found == name and wanted <= set(pairs))


def test_requests_of_all_processes_are_summed(start: Callable[..., Worker], page: MetricsPage) -> None:
    for worker in (start(), start()):
        for path in ("/", "/items/7/", "/items/8/", "/fail/", "/nowhere/"):
            worker.get(path)
        worker.do(
            "from django.test import override_settings\n"
            "loaders = [('django.template.loaders.locmem.Loader', {'page.html': 'hello'})]\n"
            "engine = {'BACKEND': 'django.template.backends.django.DjangoTemplates', 'OPTIONS': {'loaders': loaders}}\n"
            "with override_settings(TEMPLATES=[engine]):\n"
            "    client.get('/template/')"
        )
    samples = Samples(page)
    value = samples.value
    assert value("django_http_requests_before_middlewares_total") == 12
    assert value("django_http_responses_before_middlewares_total") == 12
    assert value("django_http_requests_total_by_method_total", method="GET") == 12
    assert value("django_http_requests_total_by_transport_total", transport="http") == 12
    name = "django_http_requests_total_by_view_transport_method_total"
    assert value(name, view="item", transport="http", method="GET") == 4
    assert samples.sum(name) == 10  # no view was found for two
    name = "django_http_responses_total_by_status_view_method_total"
    assert value(name, status="200", view="item", method="GET") == 4
    assert value(name, status="404", view="<unnamed view>", method="GET") == 2
    assert value("django_http_responses_total_by_status_total", status="500") == 2
    assert value("django_http_responses_total_by_charset_total", charset="utf-8") == 12
    assert value("django_http_responses_total_by_templatename_total", templatename="page.html") == 2
    assert value("django_http_exceptions_total_by_type_total", type="ValueError") == 2
    assert samples.sum("django_http_exceptions_total_by_view_total") == 2
    assert value("django_http_requests_latency_including_middlewares_seconds_count") == 12
    assert samples.sum("django_http_requests_latency_seconds_by_view_method_count") == 12
    assert value("django_http_requests_body_total_bytes_bucket", le="0.0") == 12
    assert value("django_http_responses_body_total_bytes_count") == 12
    otel = {
        "http_request_method": "GET",
        "http_response_status_code": "500",
        "http_route": "/fail/",
        "url_scheme": "http",
        "error_type": "ValueError",
        "network_protocol_version": "1.1",
    }
    assert value("http_server_request_duration_seconds_count", **otel) == 2
    assert value("http_server_active_requests", http_request_method="GET", url_scheme="http") == 0


def test_page_is_accepted_by_promtool(start: Callable[..., Worker], page: MetricsPage) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("service promtool: not installed")
    worker = start()
    for path in ("/queries/", "/fail/", "/stream/", "/template/"):
        worker.get(path)
    for dialect in (PLAIN, Format(TEXT, "1.0.0")):
        done = subprocess.run([promtool, "check", "metrics"], input=page.render(dialect), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("version", ["0.0.1", "1.0.0"])
def test_page_is_accepted_by_the_strict_parser(start: Callable[..., Worker], page: MetricsPage, version: str) -> None:
    worker = start()
    worker.get("/queries/")
    worker.do(
        "from prometheus_client import Counter, Gauge, Histogram, Summary\n"
        "Counter('odd', 'Quotes \" and \\\\ and \\nlines', ['a']).labels('\"\\\\\\n').inc()\n"
        "Gauge('height_metres', 'With a unit', unit='metres', multiprocess_mode='sum').set(-1.5)\n"
        "Summary('sizes', 's').observe(float('inf'))"
    )
    samples = Samples(page, Format(OPENMETRICS, version))
    assert samples.text.endswith("# EOF\n")
    assert samples.value("odd_total", a='"\\\n') == 1
    assert samples.value("height_metres") == -1.5


def test_exemplars_are_shown_in_openmetrics_only(start: Callable[..., Worker], page: MetricsPage) -> None:
    worker = start()
    trace_id = "ab" * 16
    worker.do(
        "from prometheus_client import Histogram\n"
        "h = Histogram('work_seconds', 'w', buckets=(1, 2))\n"
        f"h.observe(1.5, exemplar={{'trace_id': {trace_id!r}}})\n"
        "from django.apps import apps\n"
        "apps.get_app_config('django_obs').metrics.force_flush(1)"
    )
    assert trace_id not in page.render(PLAIN).decode()
    (found,) = [
        sample.exemplar
        for family in parse_openmetrics(page.render(STRICT).decode())
        for sample in family.samples
        if sample.exemplar
    ]
    assert found.labels == {"trace_id": trace_id}
    assert found.value == 1.5


def test_request_leaves_its_trace_as_exemplar(start: Callable[..., Worker], page: MetricsPage) -> None:
    worker = start(DJANGO_OBS_TRACES_ENABLED="true", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    worker.do(
        "trace_id = client.get('/').headers['X-Trace-Id']\n"
        "from django.apps import apps\n"
        "apps.get_app_config('django_obs').metrics.force_flush(1)\n"
        "import pathlib, os\n"
        "(pathlib.Path(os.environ['DJANGO_OBS_RUNTIME_DIR']) / 'trace_id').write_text(trace_id)"
    )
    trace_id = (page.scraper.directory().parent / "trace_id").read_text()
    with_exemplar = [line for line in page.render(STRICT).decode().splitlines() if trace_id in line]
    names = {line.partition("{")[0] for line in with_exemplar}
    assert names == {
        "http_server_request_duration_seconds_bucket",
        "django_http_requests_latency_seconds_by_view_method_bucket",
    }


def test_live_processes_are_shown_by_role_and_lane(start: Callable[..., Worker], page: MetricsPage) -> None:
    first, second = start(), start()
    first.get("/")
    second.get("/")
    samples = Samples(page)
    assert samples.value("django_obs_lanes", state="live") == 2
    for lane in "01":
        assert samples.value("process_resident_memory_bytes", role="web", lane=lane) > 2**20  # type: ignore[operator]
        assert abs(samples.value("process_start_time_seconds", role="web", lane=lane) - time.time()) < 60  # type: ignore[operator]
        assert samples.value("process_open_fds", role="web", lane=lane) > 2  # type: ignore[operator]
    assert {lane.pid for lane in page.scraper.lanes()} == {first.process.pid, second.process.pid}
    second.kill()
    samples = Samples(page)
    assert samples.value("django_obs_lanes", state="live") == 1
    assert samples.value("django_obs_lanes", state="free") == 1
    assert samples.value("process_open_fds", role="web", lane="1") is None
    assert samples.value("django_http_requests_before_middlewares_total") == 2


def test_database_and_cache_are_counted(start: Callable[..., Worker], page: MetricsPage) -> None:
    worker = start()
    worker.do(
        "from django.core.management import call_command\n"
        "from django.db import connection\n"
        # What Django's own commands do is nobody's work, so the connection is made before.
        "connection.ensure_connection()\n"
        "call_command('migrate', verbosity=0)"
    )
    before = Samples(page)
    worker.get("/queries/")
    worker.do(
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('CREATE TABLE t (n)')\n"
        "    cursor.executemany('INSERT INTO t VALUES (%s)', [(1,), (2,), (3,)])\n"
        "    try:\n"
        "        cursor.execute('SELECT nothing FROM nowhere')\n"
        "    except Exception:\n"
        "        pass\n"
        "from django.core.cache import cache\n"
        "cache.get_many(['there', 'missing'])"
    )
    after = Samples(page)

    def grown(name: str, **labels: str) -> float:
        return (after.value(name, **labels) or 0) - (before.value(name, **labels) or 0)

    database = {"alias": "default", "vendor": "sqlite"}
    assert after.value("django_db_new_connections_total", **database) == 1
    assert grown("django_db_execute_total", **database) == 2 + 1 + 3 + 1
    assert grown("django_db_execute_many_total", **database) == 3
    assert grown("django_db_query_duration_seconds_count", **database) == 5
    assert after.value("django_db_errors_total", **database, type="OperationalError") == 1
    assert after.value("django_cache_get_total", backend="locmem") == 4
    assert after.value("django_cache_get_hits_total", backend="locmem") == 2
    assert after.value("django_cache_get_misses_total", backend="locmem") == 2
    cache = {"alias": "default", "backend": "locmem"}
    assert after.value("django_cache_operation_duration_seconds_count", **cache, operation="set") == 1
    # This backend makes a get_many() of single gets.
    assert after.value("django_cache_operation_duration_seconds_count", **cache, operation="get") == 4


def test_collectors_run_here_and_own_values_are_not_shown(
    start: Callable[..., Worker], page: MetricsPage, registry: CollectorRegistry
) -> None:
    worker = start()
    worker.do(
        "from prometheus_client import Gauge\nGauge('depth', 'd', multiprocess_mode='sum', registry=None).set(7)\n"
    )

    class Queue:
        def collect(self) -> Iterator[Metric]:
            yield GaugeMetricFamily("queue_length", "q", 42)
            # Its name is taken by what the processes have recorded.
            yield CounterMetricFamily("django_http_requests_before_middlewares", "mine", 999)
            yield GaugeMetricFamily("depth", "mine", 999)

        def describe(self) -> list[Metric]:
            return []

    worker.get("/")
    registry.register(Queue())
    Info("build", "b", registry=registry).info({"version": "7"})
    Enum("state", "s", states=["on", "off"], registry=registry).state("off")
    Gauge("ticks", "t", registry=registry).set_function(lambda: 3)
    Gauge("zone_ticks", "t", ["zone"], registry=registry).labels("a").set_function(lambda: 4)
    Gauge("own", "o", registry=registry).set(5)
    samples = Samples(page, STRICT)
    assert samples.value("queue_length") == 42
    assert samples.value("depth") == 7
    assert samples.value("django_http_requests_before_middlewares_total") == 1
    assert samples.value("build_info", version="7") == 1
    assert samples.value("state", state="off") == 1
    assert samples.value("ticks") == 3
    assert samples.value("zone_ticks", zone="a") == 4
    assert samples.value("own") is None


def test_collector_that_fails_costs_its_own_samples_only(
    page: MetricsPage, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def collect(self) -> Iterator[Metric]:
            yield GaugeMetricFamily("half", "h", 1)
            raise RuntimeError("the queue does not answer")

        def describe(self) -> list[Metric]:
            return []

    registry.register(Broken())
    Gauge("ticks", "t", registry=registry).set_function(lambda: 3)
    for count in (1, 2):
        samples = Samples(page)
        assert samples.value("half") is None
        assert samples.value("ticks") == 3
        assert samples.value("django_obs_collector_failures_total") == count


def test_collector_that_hangs_costs_a_limited_wait_once(page: MetricsPage, registry: CollectorRegistry) -> None:
    page.collectors.patience = 1.0
    release = threading.Event()

    class Hanging:
        def collect(self) -> Iterator[Metric]:
            release.wait(120)
            yield GaugeMetricFamily("late", "l", 1)

        def describe(self) -> list[Metric]:
            return []

    registry.register(Hanging())
    try:
        began = time.monotonic()
        assert Samples(page).value("django_obs_collector_timeouts_total") == 1
        assert 0.9 < time.monotonic() - began < 60
        began = time.monotonic()
        assert Samples(page).value("late") is None
        assert time.monotonic() - began < 0.9
    finally:
        release.set()
    deadline = time.monotonic() + 60
    while Samples(page).value("late") != 1:
        assert time.monotonic() < deadline


def test_names_restrict_the_page(start: Callable[..., Worker], page: MetricsPage) -> None:
    start().get("/")
    text = page.render(PLAIN, frozenset({"django_http_requests_total_by_method_total", "django_obs_lanes"})).decode()
    families = {family.name for family in parse_text(text)}
    assert families == {"django_http_requests_total_by_method", "django_obs_lanes"}


def test_scrapes_at_the_same_time_share_the_work(page: MetricsPage, registry: CollectorRegistry) -> None:
    entered, release = threading.Event(), threading.Event()
    asked = threading.Semaphore(0)
    rounds: list[int] = []

    class Turnstile:
        """The lock of the page, which tells who has come to it."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            asked.release()
            self.lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            self.lock.release()

    page._lock = Turnstile()  # type: ignore[assignment]

    class Slow:
        def collect(self) -> Iterator[Metric]:
            rounds.append(1)
            entered.set()
            release.wait(60)
            yield GaugeMetricFamily("slow", "s", 1)

        def describe(self) -> list[Metric]:
            return []

    registry.register(Slow())
    threads = [threading.Thread(target=page.render, args=(PLAIN,)) for _ in range(20)]
    threads[0].start()
    assert entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert asked.acquire(timeout=60)
    release.set()
    for thread in threads:
        thread.join(60)
    # The one that was on its way, and one for all who asked meanwhile.
    assert len(rounds) == 2


def test_directory_that_is_not_there_is_an_empty_page(page: MetricsPage) -> None:
    assert page.ready() is None
    samples = Samples(page, STRICT)
    assert samples.value("django_obs_lanes", state="live") == 0


def test_directory_that_cannot_be_had_is_a_reason_not_to_be_ready(registry: CollectorRegistry) -> None:
    def directory() -> Any:
        raise PermissionError(13, "Permission denied", "/somewhere")

    page = MetricsPage(Scraper(directory), Collectors(registry))
    assert "Permission denied" in str(page.ready())
    with pytest.raises(PermissionError):
        page.render(PLAIN)


def test_names_beyond_ascii_are_escaped_as_agreed(start: Callable[..., Worker], page: MetricsPage) -> None:
    worker = start()
    worker.do("from prometheus_client import Counter\nCounter('häuser.bau', 'h', ['straße']).labels('ü').inc()")
    assert 'h_user_bau_total{stra_e="ü"} 1.0' in page.render(PLAIN).decode()
    allowed = page.render(Format(TEXT, "1.0.0", "allow-utf-8")).decode()
    assert '{"häuser.bau_total","straße"="ü"} 1.0' in allowed


def test_failure_of_who_looks_on_costs_no_scrape(page: MetricsPage, caplog: pytest.LogCaptureFixture) -> None:
    page.readers.append(lambda store: 1 / 0)

    assert b"django_obs_scrapes_total 1.0" in page.render(PLAIN)
    assert b"django_obs_scrapes_total 2.0" in page.render(PLAIN)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]

"""Copies of spans and lines: in this process, to a real port, with real signals behind."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from django_obs.conf import LogSettings, TraceSettings, get_settings
from django_obs.lifecycle import Worker
from django_obs.log_export import LogExport
from django_obs.logs.entry import Entry
from django_obs.logs.pipeline import LogPipeline
from django_obs.runtime import WatchOrder
from django_obs.server.recent import Recent
from django_obs.traces.pipeline import TracePipeline
from django_obs.watch import PATIENCE, Watch
from tests.server.conftest import serving
from tests.server.test_app import Port
from tests.traces.support import collector, free_port, socket_server, wait_for


class Site:
    """The signals of a process, watched or not."""

    def __init__(self, endpoint: str) -> None:
        self.traces = TracePipeline(TraceSettings(endpoint=endpoint), service_name="shop", environ={})
        self.worker = Worker("test-logs")
        self.logs = LogPipeline(LogSettings(format="json"), worker=self.worker, one_off=False)
        self.exported: list[Entry] = []
        self.watch = Watch(
            resource=lambda: self.traces.provider.resource_attributes,
            listener=self.logs.listener,
            flush_lines=self.logs.force_flush,
        )
        self.watch.attach(self.traces.provider)

    def request(self, name: str = "GET /") -> None:
        """Make a span and a line, as a request does."""
        with self.traces.tracer.start_as_current_span(name):
            self.log(f"{name} done")

    def log(self, message: str) -> None:
        listener = self.logs.listener
        listener.put((time.time(), 20, "INFO", "shop", message, None, "", None, {"n": 1}, None, None))
        listener.drain()

    def threads(self) -> int:
        return sum(thread.name == "django_obs-watch" for thread in threading.enumerate())

    def close(self) -> None:
        for pipeline in (self.traces, self.watch, self.logs):
            pipeline.shutdown(5.0)


@pytest.fixture
def make_site(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], Site]]:
    made: list[Site] = []

    def make(endpoint: str = "http://127.0.0.1:9/v1/traces") -> Site:
        made.append(Site(endpoint))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Any]:
    """A port that keeps what it is sent, and the order that leads there."""
    application = Port(tmp_path).application
    with serving(application.inner_door, body_limit=application.body_limit) as listener:
        application.order = lambda seconds=600.0: WatchOrder(  # type: ignore[attr-defined]
            f"http://127.0.0.1:{listener.port}", application.token, time.time() + seconds
        )
        yield application


def messages(recent: Recent) -> set[str]:
    return {line.message for line in recent.lines()}


def names(recent: Recent) -> set[str]:
    return {summary.name for summary in recent.traces()}


def test_spans_and_lines_are_copied_while_watched(make_site: Any, port: Any) -> None:
    site = make_site()
    site.request("before")
    site.watch.obey(port.order())
    site.request("during")
    # What has arrived counts as sent when its answer is read; at an end before that it counts as nothing.
    wait_for(lambda: site.watch.stats()["sent"] == 2)
    site.watch.obey(None)
    site.request("after")
    site.watch.force_flush(5.0)

    assert names(port.recent) == {"during"}
    assert messages(port.recent) == {"during done"}
    (line,) = port.recent.lines()
    assert (line.logger, line.attributes, line.source.service) == ("shop", {"n": 1}, "shop")
    assert site.watch.stats() == {"queued": 0, "sent": 2, "dropped": 0}
    wait_for(lambda: site.threads() == 0)


def test_copy_has_the_very_bytes_of_the_collector(make_site: Any, port: Any) -> None:
    with collector() as received:
        site = make_site(received.endpoint)
        site.watch.obey(port.order())
        copies = []
        put = site.watch.copier.put
        site.watch.copier.put = lambda copies_, groups: (copies.append(groups), put(copies_, groups))
        site.request()
        site.traces.force_flush(20.0)
        (body,) = [body for path, body in received.bodies if path == "/v1/traces"]
    (spans, lines) = sorted(copies, key=lambda groups: b"shop" in groups[0][0])
    assert spans[0][2] in body
    assert lines[0][1] == 1


def test_order_that_is_renewed_goes_on(make_site: Any, port: Any) -> None:
    site = make_site()
    site.watch.obey(port.order(60))
    copier = site.watch.copier
    site.watch.obey(port.order(120))
    assert site.watch.copier is copier
    site.request("still")
    wait_for(lambda: "still" in names(port.recent))


def test_copies_end_by_themselves_where_nobody_polls(make_site: Any, port: Any) -> None:
    site = make_site()
    site.watch.obey(port.order(0.3))
    site.request("one")
    wait_for(lambda: site.watch.copier is None)
    wait_for(lambda: site.threads() == 0)
    assert is_bare(site)


def is_bare(site: Site) -> bool:
    """Tell whether nothing stands between the signals and their exporters."""
    return site.traces.provider.sink is site.traces.exporter and site.logs.listener.exporter is None


def count_calls(work: Callable[[], None]) -> int:
    """Count calls of Python functions in this thread."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    # Callbacks of the collector are calls as well.
    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


@pytest.mark.skipif("coverage" in sys.modules, reason="somebody else counts here")
def test_unwatched_process_pays_nothing(make_site: Any, port: Any) -> None:
    site = make_site()
    unwatched = Site("http://127.0.0.1:9/v1/traces")
    unwatched.watch = None  # type: ignore[assignment]
    for each in (site, unwatched):
        # No thread: one that writes a line before the request does takes calls away from what is counted.
        each.worker.running = True
        for _ in range(5):
            each.request()
    cost = count_calls(unwatched.request)
    assert is_bare(site)
    assert site.threads() == 0
    assert count_calls(site.request) == cost

    site.watch.obey(port.order())
    site.request()
    assert count_calls(site.request) > cost
    site.watch.obey(None)

    assert is_bare(site)
    assert count_calls(site.request) == cost
    for each in (site, unwatched):
        each.worker.running = False  # there is no thread that a flush could wait for
    unwatched.traces.shutdown(1.0)
    unwatched.logs.shutdown(1.0)


@pytest.mark.skipif("coverage" in sys.modules, reason="somebody else counts here")
def test_watched_request_pays_three_calls_for_its_spans(make_site: Any, port: Any) -> None:
    site = make_site()

    def request() -> None:
        with site.traces.tracer.start_as_current_span("GET /"):
            pass

    request()
    request()
    cost = count_calls(request)
    site.watch.obey(port.order())
    request()
    # A line costs the caller nothing: it is copied where it is written.
    assert count_calls(request) <= cost + 3


def test_lines_that_are_exported_are_copied_too(make_site: Any, port: Any) -> None:
    with collector() as received, override_settings(DJANGO_OBS={"TRACES": {"ENDPOINT": received.endpoint}}):
        site = make_site()
        export = LogExport(get_settings(), resource=dict, flush_lines=site.logs.force_flush)
        site.logs.listener.exporter = export
        site.watch.obey(port.order())
        site.log("Both")
        wait_for(lambda: messages(port.recent) == {"Both"})
        assert export.force_flush(20.0)
        site.watch.obey(None)
        assert site.logs.listener.exporter is export
        export.shutdown(20.0)
    assert [path for path, _ in received.bodies] == ["/v1/logs"]


# -- When one side fails


def test_nobody_there_is_said_once_and_ends_it(make_site: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "django_obs")
    site = make_site()
    nowhere = f"http://127.0.0.1:{free_port()}"
    for attempt in range(3):
        site.watch.obey(WatchOrder(nowhere, "token", time.time() + 60 + attempt))
        site.request()
        wait_for(lambda: site.watch.copier is None)
    assert is_bare(site)
    assert [record.getMessage() for record in caplog.records].count(
        "Copies for who watches are not taken: nobody is there. None are sent until the next order."
    ) == 1
    assert site.watch.stats()["dropped"] > 0


def test_order_that_comes_while_copies_give_up_takes_their_place(make_site: Any, port: Any) -> None:
    site = make_site()
    sink, exporter = site.traces.provider.sink, site.logs.listener.exporter
    site.watch.obey(port.order()._replace(token="old"))
    old = site.watch.copier
    # As its thread does, which gets no further for now.
    old.ended = True
    site.watch.obey(port.order())
    new = site.watch.copier
    old._on_end(old)

    assert site.watch.copier is new is not old
    site.request()
    wait_for(lambda: port.recent.stats()["lines"] == 1)
    site.watch.obey(None)
    assert (site.traces.provider.sink, site.logs.listener.exporter) == (sink, exporter)


def test_order_that_two_threads_see_at_once_begins_once(make_site: Any, port: Any) -> None:
    site = make_site()
    sink = site.traces.provider.sink
    together, second, order = threading.Barrier(4), threading.Barrier(2), port.order()
    prepared: list[int] = []

    def prepare() -> None:
        prepared.append(1)
        with suppress(threading.BrokenBarrierError):
            second.wait(0.3)  # let another in, if it can come in

    site.watch.prepare = prepare

    def obey() -> None:
        together.wait(60)
        site.watch.obey(order)

    threads = [threading.Thread(target=obey) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert prepared == [1]
    site.watch.obey(None)
    assert site.traces.provider.sink is sink


def test_wrong_token_ends_it(make_site: Any, port: Any) -> None:
    site = make_site()
    site.watch.obey(port.order()._replace(token="guess"))
    site.request()
    wait_for(lambda: site.watch.copier is None)
    assert port.recent.stats()["lines"] == 0


def test_watcher_that_hangs_holds_up_no_collector(make_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_obs.watch.TIMEOUT", 0.3)
    asked = threading.Semaphore(0)
    with collector() as received, hanging(asked.release) as port:
        site = make_site(received.endpoint)
        site.watch.obey(WatchOrder(f"http://127.0.0.1:{port}", "token", time.time() + 600))
        site.request("first")
        assert asked.acquire(timeout=60)
        # It hangs now, and the collector gets all the same what came before and what comes.
        site.request("second")
        assert site.traces.force_flush(60.0)
        assert {"first", "second"} <= set(received.names())
        for number in range(PATIENCE * 4):
            if site.watch.copier is not None:
                site.request(f"more {number}")
                asked.acquire(timeout=1)
        wait_for(lambda: site.watch.copier is None)
        assert is_bare(site)


def test_collector_that_hangs_holds_up_no_watcher(make_site: Any, port: Any) -> None:
    asked = threading.Event()
    with hanging(asked.set) as collector_port:
        site = make_site(f"http://127.0.0.1:{collector_port}/v1/traces")
        site.watch.obey(port.order())
        site.request("first")
        site.traces.worker.wake()
        assert asked.wait(60)
        site.request("second")
        wait_for(lambda: names(port.recent) == {"first", "second"})
        assert site.traces.exporter.exported == 0


@contextmanager
def hanging(asked: Callable[[], object]) -> Iterator[int]:
    """A server that takes a request and never answers; yields its port."""
    released = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(1)
        asked()
        released.wait(60)

    with socket_server(hang) as port:
        try:
            yield port
        finally:
            released.set()


def test_copies_that_wait_are_bounded(make_site: Any, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site()
    site.watch.obey(port.order())
    copier = site.watch.copier
    copier.worker.jobs.clear()  # nothing is sent
    group = (b"", 10, b"x" * 100_000)
    for _ in range(100):
        copier.put(copier.spans, [group])
    assert copier.spans.bytes <= 2 * 1024 * 1024
    assert copier.spans.dropped == 1000 - copier.spans.waiting
    assert site.watch.stats()["dropped"] == copier.spans.dropped


def test_port_that_begins_anew_on_the_same_address_is_found(make_site: Any, tmp_path: Path) -> None:
    site = make_site()
    application = Port(tmp_path).application
    order = None
    for name in ("first", "second"):
        with serving(application, body_limit=application.body_limit) as listener:
            # A port of its own each time; the connection that was kept is closed by the other side.
            order = WatchOrder(f"http://127.0.0.1:{listener.port}", application.token, time.time() + 60)
            site.watch.obey(order)
            site.request(name)
            wait_for(lambda wanted=name: wanted in names(application.recent))  # type: ignore[misc]


def test_connection_that_was_closed_meanwhile_costs_no_copy(make_site: Any, tmp_path: Path) -> None:
    from django_obs.server.listener import Limits

    site = make_site()
    application = Port(tmp_path).application
    limits = Limits(idle_seconds=0.05)
    with serving(application, body_limit=application.body_limit, limits=limits) as listener:
        site.watch.obey(WatchOrder(f"http://127.0.0.1:{listener.port}", application.token, time.time() + 60))
        for number in range(4):
            site.request(f"r{number}")
            wait_for(lambda wanted=f"r{number}": wanted in names(application.recent))  # type: ignore[misc]
            wait_for(lambda: not listener._connections)
        assert site.watch.stats()["dropped"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_sends_its_own_copies(make_site: Any, port: Any) -> None:
    site = make_site()
    site.watch.obey(port.order())
    site.request("parent")
    wait_for(lambda: "parent" in names(port.recent))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for pipeline in (site.logs, site.watch, site.traces):
                pipeline.after_fork()
            site.worker.after_fork()
            site.request("child")
            site.watch.force_flush(20.0)
            wait_for(lambda: site.watch.stats()["sent"] == 2)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    wait_for(lambda: names(port.recent) == {"parent", "child"})
    site.request("parent again")
    wait_for(lambda: "parent again" in names(port.recent))

"""Ended traces that wait for the worker: what may wait, who encodes it, and that nothing is lost on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from django_obs.lifecycle import Worker
from django_obs.traces import held as held_module
from django_obs.traces.held import BATCH, LIMIT, SPANS, Held
from tests.traces.support import ListSink, make_provider, wait_for


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("encoder of a test")
    yield made
    made.stop(5)


def provider_with(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ListSink, Held]:
    # Its clock shall not come in between.
    monkeypatch.setattr(held_module, "INTERVAL", 3600.0)
    provider, sink = make_provider()
    provider.held = Held(sink, provider.encode, worker)
    # Not before: a job that is new to a thread is run once.
    worker.ensure()
    return provider, sink, provider.held


class Mutable:
    def __init__(self) -> None:
        self.text = "then"

    def __str__(self) -> str:
        return self.text


def test_ended_trace_waits_and_is_encoded_by_the_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    threads: list[str] = []
    offer = sink.offer
    monkeypatch.setattr(sink, "offer", lambda groups: (threads.append(threading.current_thread().name), offer(groups)))
    with provider.get_tracer("t").start_as_current_span("root", attributes={"a": 1, "b": "x", "c": None, "d": b"y"}):
        provider.get_tracer("t").start_span("child").end()
    assert (sink.groups, held.spans()) == ([], 2)

    assert worker.flush(60)

    assert (sink.names(), held.spans()) == (["child", "root"], 0)
    assert threads == ["encoder of a test"]


@pytest.mark.parametrize("add", ["attribute", "of the child", "event", "sequence", "name", "key"])
def test_trace_that_somebody_may_still_change_is_encoded_at_once(
    add: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    value: Any = [1, 2] if add == "sequence" else Mutable()
    with provider.get_tracer("t").start_as_current_span("root") as root:
        if add == "of the child":
            provider.get_tracer("t").start_span("child", attributes={"k": value}).end()
        elif add == "event":
            root.add_event("happened", {"k": value})
        elif add == "name":
            root.update_name(value)
        elif add == "key":
            root.set_attribute(value, 1)
        else:
            root.set_attribute("k", value)
    assert (len(sink.spans()), held.spans()) == (2 if add == "of the child" else 1, 0)


def test_many_traces_do_not_wait_for_the_clock(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    for number in range(BATCH):
        provider.get_tracer("t").start_span(f"{number}").end()
    wait_for(lambda: held.spans() == 0)
    held.encode()  # returns when the worker has
    assert sink.names() == [str(number) for number in range(BATCH)]


def test_threads_that_end_the_last_of_many_together_do_not_wait_either(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    for number in range(BATCH - 1):
        provider.get_tracer("t").start_span(f"{number}").end()
    # Another thread has put its own, and not looked yet how many there are.
    held._traces.append(held._traces[0])
    provider.get_tracer("t").start_span("last").end()
    wait_for(lambda: held.spans() == 0)
    held.encode()
    assert sink.names().count("last") == 1


def test_whoever_ends_one_trace_too_many_encodes_it(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_module, "BATCH", LIMIT + 1)
    provider, sink, held = provider_with(worker, monkeypatch)
    for number in range(LIMIT + 1):
        provider.get_tracer("t").start_span(f"{number}").end()
    assert (sink.names(), held.spans()) == ([str(LIMIT)], LIMIT)
    held.encode()
    assert sorted(sink.names(), key=int) == [str(number) for number in range(LIMIT + 1)]


def test_trace_of_many_spans_is_a_row_by_itself(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    with provider.get_tracer("t").start_as_current_span("root"):
        for _ in range(SPANS):
            provider.get_tracer("t").start_span("child").end()
    assert (len(sink.spans()), held.spans()) == (SPANS + 1, 0)


def test_nothing_waits_where_no_worker_runs() -> None:
    provider, sink = make_provider()
    provider.held = held = Held(sink, provider.encode, Worker("never started"))
    provider.get_tracer("t").start_span("alone").end()
    assert (sink.names(), held.spans()) == (["alone"], 0)


def test_nothing_waits_for_another_sink(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, _, held = provider_with(worker, monkeypatch)
    provider.sink = other = ListSink()
    provider.get_tracer("t").start_span("captured").end()
    assert (other.names(), held.spans()) == (["captured"], 0)


def test_all_that_waited_is_encoded_when_encode_returns(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that finds nothing waiting must not miss what another thread is just encoding."""
    provider, sink, held = provider_with(worker, monkeypatch)
    entered, go_on = threading.Event(), threading.Event()
    offer = sink.offer

    def slow(groups: Any) -> None:
        entered.set()
        assert go_on.wait(60)
        offer(groups)

    monkeypatch.setattr(sink, "offer", slow)
    provider.get_tracer("t").start_span("slow").end()
    other = threading.Thread(target=held.encode)
    other.start()
    assert entered.wait(60)
    late = threading.Timer(0.05, go_on.set)
    late.start()
    held.encode()
    assert sink.names() == ["slow"]
    other.join(60)


def test_handler_of_a_signal_encodes_what_its_thread_was_about_to(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    offer, interrupted = sink.offer, []

    def interrupting(groups: Any) -> None:
        offer(groups)
        if not interrupted:
            interrupted.append(True)
            held.encode()

    monkeypatch.setattr(sink, "offer", interrupting)
    for name in ("one", "two", "three"):
        provider.get_tracer("t").start_span(name).end()
    held.encode()
    assert sorted(sink.names()) == ["one", "three", "two"]


def test_child_leaves_the_traces_to_its_parent(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    provider.get_tracer("t").start_span("parent's").end()
    taken, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with held._lock:
            taken.set()
            go_on.wait(60)

    # A thread of the parent, of which the child has the lock and not the thread.
    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)
    held.after_fork()
    held.encode()
    assert (held.spans(), sink.groups) == (0, [])
    go_on.set()
    thread.join(60)


def test_span_that_cannot_be_encoded_costs_itself_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, sink, held = provider_with(worker, monkeypatch)
    with provider.get_tracer("t").start_as_current_span("root"):
        broken = provider.get_tracer("t").start_span("broken")
        broken.kind_field = None  # type: ignore[attr-defined]
        broken.end()
    held.encode()
    assert (sink.names(), provider.failed) == (["root"], 1)

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections import Counter

import pytest

from django_obs.logs.backlog import Backlog, step
from django_obs.logs.entry import Stamp

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def stamp(level: int, number: int = 0) -> Stamp:
    return (float(number), level, "", "", "", None, "", None, None, None, None)


def levels(backlog: Backlog) -> Counter[int]:
    return Counter(each[1] for each in backlog.get_batch(10**6))


def test_what_goes_in_comes_out_in_order() -> None:
    backlog = Backlog(10)
    for number in range(5):
        assert backlog.put_nowait(stamp(INFO, number))
    assert backlog.qsize() == 5
    assert [each[0] for each in backlog.get_batch(3)] == [0, 1, 2]
    assert backlog.get_nowait()[0] == 3
    assert backlog.get_nowait()[0] == 4
    assert backlog.empty()
    with pytest.raises(queue.Empty):
        backlog.get_nowait()


def test_full_queue_sheds_the_least_severe_for_a_more_severe_one() -> None:
    backlog = Backlog(32)
    for number in range(32):
        backlog.put_nowait(stamp((DEBUG, INFO, WARNING)[number % 3], number))
    assert backlog.full()
    for number in range(32, 37):
        assert backlog.put_nowait(stamp(ERROR, number))
    assert backlog.dropped.total() == backlog.dropped[DEBUG] > 0
    batch = backlog.get_batch(100)
    assert Counter(each[1] for each in batch)[ERROR] == 5
    assert [each[0] for each in batch] == sorted(each[0] for each in batch)
    assert len(batch) + backlog.take_dropped().total() == 37


def test_full_queue_sheds_upwards_level_by_level() -> None:
    backlog = Backlog(20)
    for level in [DEBUG] * 5 + [INFO] * 5 + [WARNING] * 10:
        backlog.put_nowait(stamp(level))
    for _ in range(20):
        backlog.put_nowait(stamp(ERROR))
    # All that was less severe has gone, nothing of what came for it.
    assert backlog.dropped == Counter({DEBUG: 5, INFO: 5, WARNING: 10})
    assert levels(backlog) == Counter({ERROR: 20})


def test_full_queue_refuses_what_is_not_more_severe_than_all_it_holds() -> None:
    backlog = Backlog(4)
    for number in range(4):
        backlog.put_nowait(stamp(WARNING, number))
    assert not backlog.put_nowait(stamp(INFO))
    assert not backlog.put_nowait(stamp(WARNING, 4))
    assert [each[0] for each in backlog.get_batch(10)] == [0, 1, 2, 3]
    assert backlog.take_dropped() == Counter({INFO: 1, WARNING: 1})
    assert backlog.take_dropped() == Counter()


def test_level_in_between_counts_as_the_one_below() -> None:
    backlog = Backlog(1)
    backlog.put_nowait(stamp(25))
    assert not backlog.put_nowait(stamp(INFO + 9))
    assert not backlog.put_nowait(stamp(3))
    assert backlog.dropped == Counter({INFO: 1, DEBUG: 1})


def test_refusing_takes_no_look_at_the_whole_queue() -> None:
    backlog = Backlog(100)
    for _ in range(100):
        backlog.put_nowait(stamp(INFO))
    assert not backlog.put_nowait(stamp(INFO))
    assert backlog._least == INFO
    # Once something has left, it may have been the last of its level.
    backlog.get_batch(1)
    assert backlog._least == 0


def test_nothing_is_lost_or_doubled_or_out_of_order_between_threads() -> None:
    backlog = Backlog(500)
    total, threads = 20_000, 4
    taken: list[Stamp] = []
    stop = threading.Event()

    def put(thread: int) -> None:
        for number in range(total):
            # The level carries which thread it is.
            backlog.put_nowait((float(number), (DEBUG, INFO, WARNING, ERROR)[thread], *stamp(0)[2:]))

    def take() -> None:
        while not stop.is_set() or not backlog.empty():
            taken.extend(backlog.get_batch(64))

    taker = threading.Thread(target=take)
    putters = [threading.Thread(target=put, args=(thread,)) for thread in range(threads)]
    for each in (taker, *putters):
        each.start()
    for each in putters:
        each.join()
    stop.set()
    taker.join()
    dropped = backlog.take_dropped()
    found = Counter(each[1] for each in taken)
    for level in (DEBUG, INFO, WARNING, ERROR):
        assert found[level] + dropped[level] == total
        numbers = [each[0] for each in taken if each[1] == level]
        assert numbers == sorted(set(numbers))


def test_length_stays_bounded_while_many_threads_log() -> None:
    backlog = Backlog(64)
    longest = 0
    # Hand over the interpreter as often as it can be, also while room is being made.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def put() -> None:
        nonlocal longest
        for number in range(3000):
            backlog.put_nowait(stamp((DEBUG, ERROR)[number % 2]))
            longest = max(longest, len(backlog.stamps))

    threads = [threading.Thread(target=put) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    sys.setswitchinterval(interval)
    # The brim, one of each thread that was about to put it, and the one that is looked at.
    assert longest <= 64 + 64 + 6 + 1
    assert backlog.qsize() == len(backlog.stamps)


def test_child_starts_with_an_empty_queue_and_a_lock_of_its_own() -> None:
    backlog = Backlog(1)
    backlog.put_nowait(stamp(INFO))
    backlog.put_nowait(stamp(INFO))
    held = backlog._lock
    held.acquire()
    backlog.after_fork()
    assert backlog.empty()
    assert backlog.dropped == Counter()
    assert backlog.get_batch(1) == []
    held.release()


def test_handler_that_empties_the_queue_in_the_middle_of_shedding_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backlog = Backlog(40)
    for number in range(40):
        backlog.put_nowait(stamp((DEBUG, INFO)[number % 2], number))
    taken: list[Stamp] = []
    looked_at = 0

    def step_interrupted(levelno: int) -> int:
        nonlocal looked_at
        looked_at += 1
        if looked_at == 60:  # counting has looked at each once, for 20 it is decided what becomes of them
            taken.extend(backlog.get_batch(100))
        return step(levelno)

    monkeypatch.setattr("django_obs.logs.backlog.step", step_interrupted)
    assert backlog.put_nowait(stamp(ERROR, 40))
    taken.extend(backlog.get_batch(100))
    assert len(taken) + backlog.dropped.total() == 41
    assert len({each[0] for each in taken}) == len(taken)

"""Many threads of many processes that share one standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A parent with its threads running forks children with theirs, as a preloading server does; all write to one pipe.
PROGRAM = """
import logging, os, sys, threading
from django_obs.conf import LogSettings
from django_obs.lifecycle import guard
from django_obs.logs.pipeline import LogPipeline

threads, forks, total, long = map(int, sys.argv[1:])
pipeline = LogPipeline(LogSettings(overflow="block", queue_size=2000, flush_interval=0.01), worker=guard.worker)
pipeline.install()
guard.adopt(pipeline)
guard.arm(60.0)
logger = logging.getLogger("shop")

def log(process, thread):
    for number in range(total // (threads * (forks + 1))):
        filler = "x" * 9000 if long and number % long == 0 else ""
        logger.info("line", extra={"process_": process, "thread_": thread, "number": number, "filler": filler})

def work(process):
    running = [threading.Thread(target=log, args=(process, thread)) for thread in range(threads)]
    for each in running:
        each.start()
    return running

logger.info("before the fork")
running = work(0)
children = []
for process in range(1, forks + 1):
    pid = os.fork()
    if not pid:
        for each in work(process):
            each.join()
        # The way gunicorn's children end.
        sys.exit(0)
    children.append(pid)
for each in running:
    each.join()
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(threads: int, forks: int, total: int, long: int = 0) -> list[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (threads, forks, total, long))],
        capture_output=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.splitlines()


def check(lines: list[bytes], threads: int, forks: int, total: int) -> None:
    parsed = [json.loads(line) for line in lines]
    assert [line["message"] for line in parsed].count("before the fork") == 1
    numbers: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for line in parsed:
        if line["message"] == "line":
            numbers[line["process_"], line["thread_"]].append(line["number"])
    each = total // (threads * (forks + 1))
    assert len(numbers) == threads * (forks + 1)
    # Whole, in order per thread, none lost, none doubled.
    assert all(found == list(range(each)) for found in numbers.values())


def test_lines_of_threads_and_forks_arrive_whole_and_in_order() -> None:
    check(run(4, 2, 12_000), 4, 2, 12_000)


def test_lines_longer_than_a_pipe_takes_at_once_arrive_whole() -> None:
    check(run(2, 3, 2_000, long=7), 2, 3, 2_000)


@pytest.mark.slow
def test_200000_lines_of_8_threads_in_each_of_5_processes_arrive() -> None:
    check(run(8, 4, 200_000), 8, 4, 200_000)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, logging
from django_obs.conf import LogSettings
from django_obs.context import bind
from django_obs.lifecycle import guard
from django_obs.logs.pipeline import LogPipeline

pipeline = LogPipeline(LogSettings(flush_interval=0.01), worker=guard.worker)
pipeline.install()
guard.adopt(pipeline)
guard.arm(60.0)

def work(number):
    bind(greenlet=number)
    for step in range(20):
        logging.getLogger("shop").info("line", extra={"step": step})
        gevent.sleep(0)

gevent.joinall([gevent.spawn(work, number) for number in range(20)])
"""

ASYNCIO = """
import asyncio, logging
from asgiref.sync import sync_to_async
from django_obs.conf import LogSettings
from django_obs.context import bind
from django_obs.lifecycle import guard
from django_obs.logs.pipeline import LogPipeline

pipeline = LogPipeline(LogSettings(flush_interval=0.01), worker=guard.worker)
pipeline.install()
guard.adopt(pipeline)
guard.arm(60.0)

def log(step):
    logging.getLogger("shop").info("line", extra={"step": step})

async def work(number):
    bind(greenlet=number)
    for step in range(20):
        await (sync_to_async(log)(step) if step % 2 else asyncio.create_task(asyncio.to_thread(log, step)))

async def main():
    await asyncio.gather(*(work(number) for number in range(20)))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["gevent", "asyncio"])
def test_lines_of_tasks_carry_what_their_task_has_bound(kind: str) -> None:
    if kind == "gevent":
        pytest.importorskip("gevent")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", GEVENT if kind == "gevent" else ASYNCIO],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: defaultdict[int, list[int]] = defaultdict(list)
    for line in done.stdout.splitlines():
        parsed = json.loads(line)
        # In development mode, asyncio logs what has held up its loop.
        if parsed["logger"] == "shop":
            found[parsed["greenlet"]].append(parsed["step"])
    assert found == {number: list(range(20)) for number in range(20)}

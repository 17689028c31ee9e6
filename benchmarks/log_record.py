"""Cost of one ``logger.info()`` with three extra fields: ours against the synchronous standard library.

Interleaved, CPU time, best of many rounds; ratios repeat where absolute figures do not. Run:
``python -m benchmarks.log_record [--rounds 30] [--lines 4000] [--to pipe]``
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import time
from collections.abc import Callable

from pythonjsonlogger.json import JsonFormatter
from pythonjsonlogger.orjson import OrjsonFormatter

from django_obs.conf import LogSettings
from django_obs.context import Scope, current
from django_obs.lifecycle import Worker
from django_obs.logs.listener import LogListener
from django_obs.logs.pipeline import LogPipeline
from django_obs.logs.sink import Sink

FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"


class Nowhere(logging.Handler):
    """What the standard library takes for itself: finding the caller and making the record."""

    def handle(self, record: logging.LogRecord) -> bool:
        return True


def run(logger: logging.Logger, lines: int) -> None:
    for number in range(lines):
        logger.info("order %s paid", number, extra={"order_id": number, "amount": 12.5, "currency": "EUR"})


def thread_time(work: Callable[[], object]) -> float:
    start = time.thread_time_ns()
    work()
    return time.thread_time_ns() - start


def open_target(kind: str) -> int:
    if kind == "null":
        return os.open(os.devnull, os.O_WRONLY)
    readable, writable = os.pipe()
    # A process of its own, as a reader in this one would take the interpreter from what is measured.
    subprocess.Popen(["cat"], stdin=readable, stdout=subprocess.DEVNULL)
    os.close(readable)
    return writable


def drain(listener: LogListener) -> None:
    listener.drain()
    while listener.queued():
        # The pipe is full; waiting for its reader costs no CPU.
        time.sleep(0.0002)
        listener.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--to", choices=["null", "pipe"], default="null")
    options = parser.parse_args()

    target = open_target(options.to)
    stream = os.fdopen(target, "w", encoding="utf-8")
    worker = Worker("benchmark")
    # The listener is driven by hand, so that both halves can be timed apart.
    worker.running = True
    pipeline = LogPipeline(
        LogSettings(queue_size=options.lines * 2),
        worker=worker,
        service_name="shop",
        ids=lambda: ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"),
        sink=Sink(stream),
    )
    scope = Scope("request")
    scope.request_id = "0b5e1a60-6b8f-4b6e-9f43-3b1f3f0f9c11"
    current.set(scope)

    def synchronous(formatter: logging.Formatter) -> logging.Handler:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        return handler

    handlers = {
        "no handler's work": Nowhere(),
        "stdlib + python-json-logger (json)": synchronous(JsonFormatter(FIELDS)),
        "stdlib + python-json-logger (orjson)": synchronous(OrjsonFormatter(FIELDS)),
        "django_obs": pipeline.handler,
    }
    logger = logging.getLogger("benchmark.shop")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    caller: dict[str, list[float]] = {name: [] for name in handlers}
    listener: dict[str, list[float]] = {name: [] for name in handlers}
    for _ in range(options.rounds):
        for name, handler in handlers.items():
            logger.handlers = [handler]
            caller[name].append(thread_time(lambda: run(logger, options.lines)) / options.lines)
            listener[name].append(thread_time(lambda: drain(pipeline.listener)) / options.lines)
    print(f"{'CPU ns per line, best round':40} {'caller':>8} {'listener':>9} {'total':>8}")
    for name in handlers:
        print(
            f"{name:40} {min(caller[name]):8.0f} {min(listener[name]):9.0f}"
            f" {min(caller[name]) + min(listener[name]):8.0f}"
        )
    for name in list(handlers)[1:3]:
        caller_ratio = min(caller["django_obs"]) / min(caller[name])
        total_ratio = (min(caller["django_obs"]) + min(listener["django_obs"])) / min(caller[name])
        print(f"django_obs / {name}: caller {caller_ratio:.2f}, caller and listener {total_ratio:.2f}")
    assert pipeline.stats()["dropped"] == 0


if __name__ == "__main__":
    main()

"""Stores in processes of their own: install() changes prometheus_client's classes for good."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

PRELUDE = """
import logging, math, os, pathlib, shutil, signal, sys, threading, time
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from django_obs.metrics import adoption
from django_obs.metrics.scraper import Scraper
from django_obs.metrics.store import OVERFLOW, Store

logging.basicConfig(stream=sys.stdout, format="%(message)s")
directory = pathlib.Path(sys.argv[1])
store = Store(lambda: directory)
scraper = Scraper(lambda: directory)

def samples():
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in scraper.collect() for s in f.samples}

def value(name, **labels):
    return samples().get((name, tuple(sorted(labels.items()))))

def in_child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

class Child:
    '''A forked process that does one thing after another, when it is told to.'''

    def __init__(self, *steps):
        self.told, tell = os.pipe()
        done, self.done = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            for step in steps:
                os.read(self.told, 1)
                step()
                os.write(self.done, b".")
            os.read(self.told, 1)
            os._exit(0)
        self.tell, self.wait = tell, done

    def step(self):
        os.write(self.tell, b".")
        assert os.read(self.wait, 1)

    def end(self, how=signal.SIGKILL):
        os.kill(self.pid, how)
        os.waitpid(self.pid, 0)
"""


@pytest.fixture
def run_apart(tmp_path: Path) -> Callable[[str], str]:
    """Run code after PRELUDE in a fresh interpreter; give what it printed. The store lies in tmp_path / "metrics"."""

    def run_apart(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c",
             PRELUDE + textwrap.dedent(code), str(tmp_path / "metrics")],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_apart

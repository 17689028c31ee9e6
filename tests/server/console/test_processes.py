from __future__ import annotations

import os
from pathlib import Path

import pytest

from django_obs.metrics.lanes import LaneState
from django_obs.metrics.process import ProcessReader
from django_obs.server.console.processes import CPU_OVER, ProcessTable

TICKS = os.sysconf("SC_CLK_TCK")
BOOT = 1000.0
# Pids above the highest that Linux gives: this process, whose pid may be any other, is in the table as well.
ONE, TWO, THREE, FOUR = range(2**22 + 1, 2**22 + 5)


class Machine:
    """A ``/proc`` of files, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory
        (self.proc / "stat").write_text(f"btime {BOOT:.0f}\n")
        self.now = BOOT + 1000
        self.table = ProcessTable(ProcessReader(self.proc), clock=lambda: self.now, now=lambda: self.now)

    def run(self, pid: int, *, cpu: float, started: float = 500) -> None:
        """Let a process have used so many seconds of CPU, that began so many seconds after boot."""
        fields = ["S", *["0"] * 49]
        fields[11], fields[17], fields[19] = str(round(cpu * TICKS)), "4", str(round(started * TICKS))
        fields[21] = "1000"
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / str(pid) / "stat").write_text(f"{pid} (python) {' '.join(fields)}")

    def cpu(self, pid: int) -> float | None:
        return next(row.cpu for row in self.table.rows([lane(pid)]) if row.pid == pid)


def lane(pid: int, role: str = "web", *, alive: bool = True, number: int = 0, started: float = BOOT) -> LaneState:
    return LaneState(pid, role, alive, started, number, 0, 0, pid if alive else 0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_cpu_is_that_since_the_last_look(machine: Machine) -> None:
    machine.run(ONE, cpu=50)
    assert machine.cpu(ONE) == pytest.approx(0.1)  # of its life: there was no look before
    machine.now += 10
    machine.run(ONE, cpu=55)
    assert machine.cpu(ONE) == pytest.approx(0.5)


def test_looks_in_quick_succession_see_the_same(machine: Machine) -> None:
    machine.run(ONE, cpu=50)
    machine.cpu(ONE)
    machine.now += CPU_OVER / 2
    machine.run(ONE, cpu=52)
    assert machine.cpu(ONE) == pytest.approx(0.1)
    machine.now += CPU_OVER / 2
    assert machine.cpu(ONE) == pytest.approx(2 / CPU_OVER)


def test_pid_that_comes_back_is_another_process(machine: Machine) -> None:
    machine.run(ONE, cpu=50)
    machine.cpu(ONE)
    machine.now += 10
    machine.run(ONE, cpu=1, started=1000)

    assert machine.cpu(ONE) == pytest.approx(0.1)


def test_dead_are_neither_shown_nor_remembered(machine: Machine) -> None:
    machine.run(ONE, cpu=50)
    machine.run(TWO, cpu=50)
    machine.table.rows([lane(ONE), lane(TWO, number=1)])
    assert len(machine.table._marks) == 2

    rows = machine.table.rows([lane(ONE, alive=False), lane(TWO, number=1)])

    assert [row.pid for row in rows] == [TWO, os.getpid()]
    assert len(machine.table._marks) == 1


def test_rows_are_by_role_and_this_process_is_the_last(machine: Machine) -> None:
    machine.run(ONE, cpu=50)
    machine.run(os.getpid(), cpu=1)

    rows = machine.table.rows(
        [lane(THREE, "web", started=BOOT + 2), lane(ONE, "task"), lane(TWO, "web"), lane(FOUR, "")]
    )

    assert [(row.role, row.pid) for row in rows] == [
        ("?", FOUR),
        ("task", ONE),
        ("web", TWO),
        ("web", THREE),
        ("runmetrics", os.getpid()),
    ]
    task = rows[1]
    assert (task.threads, task.memory, task.age) == (4, 1000 * os.sysconf("SC_PAGE_SIZE"), 500)
    # Of another container: its lane alone tells of it.
    assert (rows[2].cpu, rows[2].memory, rows[2].threads) == (None, None, None)
    assert rows[2].age == 1000

"""What a stack adds to the start of every process: the CPU time of ``manage.py check``."""

from __future__ import annotations

import os
import subprocess

from benchmarks.cpu import spread
from benchmarks.environments import python
from benchmarks.process import ROOT, Bench, environ
from benchmarks.stacks import Stack


def startup(bench: Bench, stacks: list[Stack], rounds: int) -> dict[str, dict[str, float]]:
    """Measure milliseconds of CPU, user and system, of ``manage.py check``; rounds are interleaved."""
    samples: dict[str, list[float]] = {stack.name: [] for stack in stacks}
    variables = {stack.name: environ(bench, stack) for stack in stacks}
    # The first round compiles what is not compiled, and does not count.
    for number in range(rounds + 1):
        for stack in stacks:
            spent = check(stack, variables[stack.name])
            if number:
                samples[stack.name].append(spent)
    return {name: spread(values) for name, values in samples.items()}


def check(stack: Stack, variables: dict[str, str]) -> float:
    process = subprocess.Popen(
        [python(stack), "-m", "benchmarks.project.manage", "check"],
        env=variables,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        msg = f"manage.py check fails with {stack.name}"
        raise RuntimeError(msg)
    return (usage.ru_utime + usage.ru_stime) * 1000

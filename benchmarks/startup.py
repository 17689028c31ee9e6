"""What a stack adds to the start of every process: ``manage.py check``, in CPU time and in instructions.

Bytecode is cached, in a directory of the run's own: a process that has to compile what it imports is another matter,
and takes three times as long without any stack.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from statistics import median

from benchmarks.cpu import spread
from benchmarks.environments import python
from benchmarks.process import ROOT, Bench, environ
from benchmarks.stacks import Stack


def startup(bench: Bench, stacks: list[Stack], rounds: int) -> dict[str, dict[str, float]]:
    """Measure milliseconds of CPU, user and system, and user-mode instructions.

    Rounds go from stack to stack; ``added`` is the median of what a stack took more than the first one in the same
    round, which a change of the weather between rounds does not touch.
    """
    samples: dict[str, list[float]] = {stack.name: [] for stack in stacks}
    variables = {stack.name: environ(bench, stack) for stack in stacks}
    # The first round fills the cache, and does not count.
    for number in range(rounds + 1):
        for stack in stacks:
            spent = check(stack, variables[stack.name])
            if number:
                samples[stack.name].append(spent)
    first = samples[stacks[0].name]
    return {
        stack.name: spread(samples[stack.name])
        | {
            "added": median(own - bare for own, bare in zip(samples[stack.name], first, strict=True)),
            "instructions": instructions(bench, stack, variables[stack.name]),
        }
        for stack in stacks
    }


def command(stack: Stack) -> list[str]:
    return [python(stack), "-m", "benchmarks.project.manage", "check"]


def check(stack: Stack, variables: dict[str, str]) -> float:
    process = subprocess.Popen(
        command(stack), env=variables, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        msg = f"manage.py check fails with {stack.name}"
        raise RuntimeError(msg)
    return (usage.ru_utime + usage.ru_stime) * 1000


def instructions(bench: Bench, stack: Stack, variables: dict[str, str]) -> int:
    out = bench.directory / f"startup-{stack.name}.callgrind"
    valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
    subprocess.run(
        [*valgrind, *command(stack)],
        env=variables,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    total = re.search(r"^(?:summary|totals): (\d+)", Path(out).read_text(), re.MULTILINE)
    return int(total[1])

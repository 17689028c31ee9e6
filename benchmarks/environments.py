"""The interpreters: the benchmark's own, and one for each peer, whose packages would get into the others' way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.stacks import Stack

ENVIRONMENTS = Path(__file__).resolve().parent.parent / ".tox" / "bench-peers"


def python(stack: Stack) -> str:
    """Return the interpreter of a stack; makes its environment at first use, with the pinned requirements."""
    if not stack.requirements:
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    directory = ENVIRONMENTS / f"{stack.name}-{version}"
    interpreter = directory / "bin" / "python"
    if not (directory / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *stack.requirements], check=True)
        (directory / "complete").touch()
    return str(interpreter)

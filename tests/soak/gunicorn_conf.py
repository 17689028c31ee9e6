"""The limits of workers that `SOAK_LIMIT` asks for: ``AS:64`` is 64 MiB beyond what one has, ``NOFILE:40`` a number."""

from __future__ import annotations

import os
import resource
from typing import Any


def post_fork(server: Any, worker: Any) -> None:
    name, _, number = os.environ.get("SOAK_LIMIT", "").partition(":")
    if not name:
        return
    limit = int(number)
    if name == "AS":
        with open("/proc/self/statm") as file:
            limit = limit * 1024 * 1024 + int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))

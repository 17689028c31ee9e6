from __future__ import annotations

from benchmarks.project.settings import *  # noqa: F403

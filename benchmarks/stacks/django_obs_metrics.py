from __future__ import annotations

from benchmarks.stacks.django_obs import *  # noqa: F403
from benchmarks.stacks.django_obs import flush as flush
from benchmarks.stacks.django_obs import samples as samples

DJANGO_OBS = {"LOGS": {"ENABLED": False}, "TRACES": {"ENABLED": False}}

"""``manage.py obs status``: where the processes of this project meet, and which are alive."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from django_obs.conf import get_settings, without_credentials
from django_obs.runtime import control_file, runtime_dir

from .durations import duration, moment
from .filter import show_filter
from .rows import show

if TYPE_CHECKING:
    from django_obs.metrics.lanes import LaneState

HELP = "show where the processes of this project meet, and which are alive"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare nothing: there is one status."""


def run(out: Any, **options: Any) -> None:
    """Show what is on, where, and who is alive."""
    settings = get_settings()
    signals = [name for name in ("logs", "traces", "metrics") if getattr(settings, name).enabled]
    show(
        out,
        ("Service", settings.service_name),
        ("Signals", ", ".join(signals) or "none"),
        ("Directory", str(runtime_dir())),
    )
    control = control_file()
    if settings.logs.enabled:
        show_filter(out, control)
    control.poll()
    if control.watch is not None:
        left = duration(control.watch.until - time.time())
        show(out, ("Watched", f"until {moment(control.watch.until)} (in {left})"))
    if settings.traces.enabled:
        collector = without_credentials(settings.traces.endpoint)
        show(out, ("Collector", f"{collector} ({settings.traces.protocol})"))
    if settings.metrics.enabled:
        show_processes(out)


def show_processes(out: Any) -> None:
    from django_obs.metrics.scraper import Scraper
    from django_obs.server.assembly import store_directory

    states = [state for state in Scraper(store_directory).lanes() if state.alive]
    show(out, ("Processes", str(len(states)) if states else "none has counted anything yet"))
    for state in sorted(states, key=lambda each: (each.role, each.started)):
        out.write(f"  {process(state)}")


def process(state: LaneState) -> str:
    since = f"since {moment(state.started)} ({duration(time.time() - state.started)})"
    return f"{state.pid:>8}  {state.role or 'process':<10}  {since}"

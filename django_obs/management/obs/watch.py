"""``manage.py obs watch``: have all processes send copies of their spans and lines to the admin port for a while."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from .durations import duration, moment, seconds_of
from .port import HINT, Port, Unreachable
from .rows import show

HELP = "show recent requests and lines at the admin port, for a while"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare how long, the way back, and where."""
    parser.add_argument(
        "--for",
        dest="seconds",
        type=seconds_of,
        metavar="DURATION",
        help="how long, such as 90s, 10m or 2h; without: show what holds",
    )
    parser.add_argument("--off", action="store_true", help="watch no longer, whoever asked for it")
    parser.add_argument("--url", help="the admin port, if it is not the one that runs here for this project")


def run(out: Any, *, seconds: float | None, off: bool, url: str | None, **options: Any) -> None:
    """Show whether the processes are watched, after it was changed if that is asked for."""
    if off and seconds is not None:
        raise CommandError("Give either --for or --off, not both.")
    port = Port.find(url)
    try:
        if off:
            state = port.ask("DELETE", "/watch")
        elif seconds is not None:
            state = port.ask("PUT", "/watch", seconds=str(seconds))
        else:
            state = port.ask("GET", "/watch")
    except Unreachable as error:
        raise CommandError(f"The admin port does not answer at {error}. {HINT}.") from None
    left = state.get("seconds")
    if not state.get("watched") or not isinstance(left, int | float):
        show(out, ("Watched", "no (obs watch --for 10m begins)"), ("At", port.url))
        return
    show(
        out,
        ("Watched", f"until {moment(time.time() + left)} (in {duration(left)}), obs watch --off ends it"),
        ("For", ", ".join(map(str, state.get("holders") or [])) or "earlier"),
        ("At", port.url),
    )

"""``manage.py obs filter``: show or change the log filter of all processes."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from django_obs.conf import get_settings, is_default, origin_of
from django_obs.runtime import ControlFile, FilterOrder, control_file, user_name

from .durations import duration, moment, seconds_of
from .rows import show

HELP = "show or change the log filter of all processes, without a restart"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the directives, how long they hold, and the way back."""
    parser.add_argument(
        "directives", nargs="?", metavar="DIRECTIVES", help="such as info,shop=debug; without: show what holds"
    )
    parser.add_argument(
        "--for", dest="seconds", type=seconds_of, metavar="DURATION", help="how long, such as 90s, 10m, 2h or 1d"
    )
    parser.add_argument("--reset", action="store_true", help="go back to the filter of the settings")


def run(out: Any, *, directives: str | None, seconds: float | None, reset: bool, **options: Any) -> None:
    """Show the filter in force, after it was changed if that is asked for."""
    if not get_settings().logs.enabled:
        raise CommandError(f"There is no filter: {origin_of('logs', 'enabled')} switches the logs off.")
    if reset and directives is not None:
        raise CommandError("Give either directives or --reset, not both.")
    if seconds is not None and directives is None:
        raise CommandError("--for tells how long directives hold; give them as well: obs filter DIRECTIVES --for 10m")
    control = control_file()
    if reset:
        order(control, None, None)
    elif directives is not None:
        refuse_unreadable(directives)
        order(control, directives, seconds)
    show_filter(out, control)


def refuse_unreadable(directives: str) -> None:
    from django_obs.logs.directives import DirectiveError, parse

    if not directives.strip():
        raise CommandError("There are no directives. To go back to the filter of the settings: obs filter --reset")
    try:
        parse(directives)
    except DirectiveError as error:
        raise CommandError(f"The filter was not changed. {error}") from None


def order(control: ControlFile, directives: str | None, seconds: float | None) -> None:
    source = f"manage.py obs filter, run by {user_name(os.geteuid())}"
    try:
        control.set_filter(directives, seconds=seconds, source=source)
    except (OSError, ValueError) as error:
        raise CommandError(f"The filter was not changed. {control.path}: {error}") from None


def show_filter(out: Any, control: ControlFile) -> None:
    """Show the filter in force, where it comes from and how long it holds."""
    control.poll()
    ordered = control.filter
    configured = get_settings().logs.filter
    origin = "the default" if is_default("logs", "filter") else origin_of("logs", "filter")
    if ordered is None:
        show(out, ("Filter", configured), ("From", origin), ("Until", "further notice"))
    else:
        show(
            out,
            ("Filter", ordered.text),
            ("From", ordered.source),
            ("Until", until(ordered)),
            ("Then", f"{configured} ({origin})"),
        )


def until(ordered: FilterOrder) -> str:
    if ordered.until is None:
        return "further notice (obs filter --reset ends it)"
    return f"{moment(ordered.until)} (in {duration(ordered.until - time.time())})"

"""See and steer django_obs in every running process of the project."""

from __future__ import annotations

import os
import re
import time
from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from django_obs.conf import get_settings, is_default, origin_of
from django_obs.runtime import ControlFile, FilterOrder, RuntimeDirError, control_file, runtime_dir, user_name

if TYPE_CHECKING:
    from django_obs.metrics.lanes import LaneState

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)\s*", re.IGNORECASE | re.ASCII)
# Who wants it longer wants it in the settings.
LONGEST = 365 * UNITS["d"]


def seconds_of(text: str) -> float:
    """Return the seconds that ``90s``, ``10m`` or ``1h30m`` are. Raises ArgumentTypeError."""
    expected = "expected a number and s, m, h or d, such as 90s, 10m or 1h30m"
    total, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise ArgumentTypeError(f"{text!r} is no duration, {expected}")
        if not part[2]:
            raise ArgumentTypeError(f"{text!r} lacks a unit behind {part[1]}, {expected}")
        if part[2].lower() not in UNITS:
            raise ArgumentTypeError(f"{text!r} has the unknown unit {part[2]!r}, {expected}")
        total += float(part[1]) * UNITS[part[2].lower()]
        position = part.end()
    if not 0 < total <= LONGEST:
        raise ArgumentTypeError(f"{text!r} must be more than 0s and at most {LONGEST // UNITS['d']}d")
    return total


def duration(seconds: float) -> str:
    """Write a duration for people, in its two largest units: ``9m 41s``."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def moment(seconds: float) -> str:
    """Write seconds since the epoch for people."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")  # noqa: UP017


class Command(BaseCommand):
    help = "Shows and changes what django_obs does in every running process of this project."
    # It is wanted most when something is wrong.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True, metavar="filter|status")
        filter_ = commands.add_parser(
            "filter", help="show or change the log filter of all processes, without a restart"
        )
        filter_.add_argument(
            "directives", nargs="?", metavar="DIRECTIVES", help="such as info,shop=debug; without: show what holds"
        )
        filter_.add_argument(
            "--for", dest="seconds", type=seconds_of, metavar="DURATION", help="how long, such as 90s, 10m, 2h or 1d"
        )
        filter_.add_argument("--reset", action="store_true", help="go back to the filter of the settings")
        commands.add_parser("status", help="show where the processes of this project meet, and which are alive")

    def handle(self, *args: Any, subcommand: str, **options: Any) -> None:
        try:
            if subcommand == "status":
                self.show_status()
            else:
                self.filter(options["directives"], options["seconds"], reset=options["reset"])
        except RuntimeDirError as error:
            raise CommandError(str(error)) from None

    # -- filter --------------------------------------------------------------------------------------------------------

    def filter(self, directives: str | None, seconds: float | None, *, reset: bool) -> None:
        """Show the filter in force, after it was changed if that is asked for."""
        if not get_settings().logs.enabled:
            raise CommandError(f"There is no filter: {origin_of('logs', 'enabled')} switches the logs off.")
        if reset and directives is not None:
            raise CommandError("Give either directives or --reset, not both.")
        if seconds is not None and directives is None:
            raise CommandError(
                "--for tells how long directives hold; give them as well: obs filter DIRECTIVES --for 10m"
            )
        control = control_file()
        if reset:
            self.order(control, None, None)
        elif directives is not None:
            self.refuse_unreadable(directives)
            self.order(control, directives, seconds)
        self.show_filter(control)

    def refuse_unreadable(self, directives: str) -> None:
        # Here and not above: `manage.py help` imports every command.
        from django_obs.logs.directives import DirectiveError, parse

        if not directives.strip():
            raise CommandError("There are no directives. To go back to the filter of the settings: obs filter --reset")
        try:
            parse(directives)
        except DirectiveError as error:
            raise CommandError(f"The filter was not changed. {error}") from None

    def order(self, control: ControlFile, directives: str | None, seconds: float | None) -> None:
        source = f"manage.py obs filter, run by {user_name(os.geteuid())}"
        try:
            control.set_filter(directives, seconds=seconds, source=source)
        except (OSError, ValueError) as error:
            raise CommandError(f"The filter was not changed. {control.path}: {error}") from None

    def show_filter(self, control: ControlFile) -> None:
        control.poll()
        order = control.filter
        configured = get_settings().logs.filter
        origin = "the default" if is_default("logs", "filter") else origin_of("logs", "filter")
        if order is None:
            self.show(("Filter", configured), ("From", origin), ("Until", "further notice"))
        else:
            self.show(
                ("Filter", order.text),
                ("From", order.source),
                ("Until", self.until(order)),
                ("Then", f"{configured} ({origin})"),
            )

    def until(self, order: FilterOrder) -> str:
        if order.until is None:
            return "further notice (obs filter --reset ends it)"
        return f"{moment(order.until)} (in {duration(order.until - time.time())})"

    # -- status --------------------------------------------------------------------------------------------------------

    def show_status(self) -> None:
        """Show where the processes of this project meet, and which are alive."""
        settings = get_settings()
        signals = [name for name in ("logs", "traces", "metrics") if getattr(settings, name).enabled]
        self.show(
            ("Service", settings.service_name),
            ("Signals", ", ".join(signals) or "none"),
            ("Directory", str(runtime_dir())),
        )
        if settings.logs.enabled:
            self.show_filter(control_file())
        if settings.traces.enabled:
            self.show(("Collector", f"{settings.traces.endpoint} ({settings.traces.protocol})"))
        if settings.metrics.enabled:
            self.show_processes()

    def show_processes(self) -> None:
        from django_obs.metrics.scraper import Scraper
        from django_obs.server.assembly import store_directory

        states = [state for state in Scraper(store_directory).lanes() if state.alive]
        self.show(("Processes", str(len(states)) if states else "none has counted anything yet"))
        for state in sorted(states, key=lambda each: (each.role, each.started)):
            self.stdout.write(f"  {self.process(state)}")

    def process(self, state: LaneState) -> str:
        since = f"since {moment(state.started)} ({duration(time.time() - state.started)})"
        return f"{state.pid:>8}  {state.role or 'process':<10}  {since}"

    def show(self, *rows: tuple[str, str]) -> None:
        for name, value in rows:
            # What stands in the control file is somebody else's text, and a terminal obeys it.
            printable = "".join(each if each.isprintable() else "?" for each in value)
            self.stdout.write(f"{name + ':':<11}{printable}")

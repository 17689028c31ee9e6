"""See and steer django_obs in every running process of the project."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_obs.management.obs import dashboards, doctor, status, tail, watch
from django_obs.management.obs import filter as filter_
from django_obs.runtime import RuntimeDirError

SUBCOMMANDS = {
    "dashboards": dashboards,
    "doctor": doctor,
    "filter": filter_,
    "status": status,
    "tail": tail,
    "watch": watch,
}


class Command(BaseCommand):
    help = "Shows and changes what django_obs does in every running process of this project."
    # It is wanted most when something is wrong.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True, metavar="|".join(SUBCOMMANDS))
        for name, module in SUBCOMMANDS.items():
            module.add_arguments(commands.add_parser(name, help=module.HELP))

    def handle(self, *args: Any, subcommand: str, **options: Any) -> None:
        try:
            SUBCOMMANDS[subcommand].run(self.stdout, **options)
        except RuntimeDirError as error:
            raise CommandError(str(error)) from None

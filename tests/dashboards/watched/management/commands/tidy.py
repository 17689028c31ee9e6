from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--fail", action="store_true")

    def handle(self, *args: Any, fail: bool, **options: Any) -> None:
        if fail:
            raise ValueError("nothing to tidy")

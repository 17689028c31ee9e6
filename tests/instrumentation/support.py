"""Commands and middleware whose classes live in modules named as Django would find them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from django.core.management.base import BaseCommand


def make_command(name: str, handle: Any, *, package: str = "shop", **attributes: Any) -> BaseCommand:
    """Return a command that does what `handle` does, of the name `name` of an app."""
    module = ModuleType(f"{package}.management.commands.{name}")
    body = {
        "__module__": module.__name__,
        "requires_system_checks": [],
        "handle": lambda self, *args, **options: handle(),
        **attributes,
    }
    return type("Command", (BaseCommand,), body)()

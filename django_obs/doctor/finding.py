"""What the doctor has to say of one link."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "off", "warning", "broken"]


class Finding(NamedTuple):
    """A link, its state, and what to do where it does not hold.

    ``id`` never changes once published: scripts compare it.
    """

    id: str
    state: State
    message: str
    hint: str = ""

    @property
    def part(self) -> str:
        """The part of the whole that the link belongs to."""
        return self.id.partition(".")[0]


def ok(id: str, message: str) -> Finding:  # noqa: A002
    """The link holds."""
    return Finding(id, "ok", message)


def off(id: str, message: str) -> Finding:  # noqa: A002
    """Somebody has switched it off."""
    return Finding(id, "off", message)


def warning(id: str, message: str, hint: str) -> Finding:  # noqa: A002
    """It works, and not as somebody may think."""
    return Finding(id, "warning", message, hint)


def broken(id: str, message: str, hint: str) -> Finding:  # noqa: A002
    """Something is lost."""
    return Finding(id, "broken", message, hint)

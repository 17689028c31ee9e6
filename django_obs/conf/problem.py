"""What a source gave and nobody could use."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["key", "type", "choice", "value", "endpoint", "variable", "otel"]


def without_credentials(text: str) -> str:
    """Return the text with the user and the password of each URL in it masked."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


class Unusable(ValueError):
    """A value that its setting cannot take; the text says what may stand there."""

    def __init__(self, kind: Kind, way_out: str) -> None:
        super().__init__(way_out)
        self.kind = kind


class Problem(NamedTuple):
    """Something a source gave that could not be used."""

    kind: Kind
    """What is wrong; each kind is one system check."""
    place: str
    """Where it stands: ``DJANGO_OBS['LOGS']['FORMAT']`` or the environment variable's name."""
    value: object
    """What stands there."""
    way_out: str
    """What may stand there."""

    def __str__(self) -> str:
        if self.kind == "key":
            return f"Unknown setting {self.place}, {self.way_out}."
        if self.kind == "variable":
            return f"Unknown environment variable {self.place}, {self.way_out}."
        return f"{self.place} is {self._shown()}, {self.way_out}."

    def _shown(self) -> str:
        if "HEADERS" in self.place:
            return f"{type(self.value).__name__} (not shown, headers carry keys)"
        try:
            shown = without_credentials(repr(self.value))
        except Exception:  # An object of the project, whose faults are not to stop its site.
            shown = f"an object of {type(self.value).__name__}"
        return shown if len(shown) <= 200 else shown[:200] + "..."

"""Names and values in two columns."""

from __future__ import annotations

from typing import Any


def show(out: Any, *rows: tuple[str, str]) -> None:
    """Write a row for each pair of name and value."""
    for name, value in rows:
        out.write(f"{name + ':':<11}{printable(value)}")


def printable(text: str) -> str:
    """Return the text without what a terminal would obey: it may be somebody else's."""
    return "".join(each if each.isprintable() else "?" for each in text)

"""What the admin port answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

Environ = dict[str, Any]

PLAIN_TEXT = "text/plain; charset=utf-8"


@dataclass
class Response:
    """A status, a body and its headers."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = PLAIN_TEXT
    headers: list[tuple[str, str]] = field(default_factory=list)


# Method -> what answers it.
Route: TypeAlias = "Mapping[str, Callable[[Environ], Response]]"


def answer(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    """Say something in one line."""
    return Response(f"{text}\n".encode(), status, headers=list(headers))

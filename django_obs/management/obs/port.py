"""The admin port, as commands talk to it."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from django.core.management.base import CommandError

from django_obs.server.address import announced

from .rows import printable

HINT = "Start it with manage.py runmetrics, or give its address with --url"


class Unreachable(Exception):
    """Nobody answers there."""


class Port:
    """An address with what it takes to be let in."""

    def __init__(self, url: str, authorization: str | None) -> None:
        self.url = url
        self._authorization = authorization

    @classmethod
    def find(cls, url: str | None = None) -> Port:
        """Return the port at a URL, which may name a user, or that of this project. Raises CommandError."""
        if url is None:
            address = announced()
            if address is None:
                raise CommandError(f"No admin port of this project has been found. {HINT}.")
            return cls(address.url, f"Bearer {address.token}")
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("expected one such as http://localhost:9000")
            place = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            clean = f"{parts.scheme}://{place}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
        except ValueError as error:
            raise CommandError(f"--url {url!r} is no address: {error}") from None
        if parts.username is None:
            return cls(clean, None)
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(clean, f"Basic {b64encode(credentials.encode()).decode()}")

    def ask(self, method: str, path: str, timeout: float = 10.0, **query: str) -> Mapping[str, Any]:
        """Return what it answers. Raises `Unreachable`, and CommandError with what it says instead."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        headers = {"Authorization": self._authorization} if self._authorization else {}
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"{self.url}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
            ) from None
        finally:
            connection.close()
        if response.status == 200:
            try:
                answer = json.loads(body)
                if isinstance(answer, dict):
                    return answer
            except ValueError:
                pass
            raise CommandError(f"{self.url} is no admin port of django_obs.")
        said = "\n".join(map(printable, body[:500].decode(errors="replace").strip().splitlines()))
        if response.status == 503:
            raise Unreachable(f"{self.url}: {said}")
        raise CommandError(f"{self.url} answers {response.status}: {said}")

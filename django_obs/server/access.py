"""Who may see what the processes did, and drive them: this machine, or whom the web-config file lets in."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

# What proxies add, each its own selection.
FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP")


def refusal(environ: Mapping[str, Any], *, known: bool) -> str | None:
    """Return why a request is refused that a stranger sent, or a browser on behalf of a stranger's page; else None.

    ``known``: whether the sender has proved who it is, by a password, a certificate or a token.
    """
    # A browser sends stored passwords and reaches loopback addresses for any page that asks it to.
    origin = environ.get("HTTP_ORIGIN")
    host = environ.get("HTTP_HOST", "")
    if origin is not None and origin.lower() != f"{environ['wsgi.url_scheme']}://{host}".lower():
        return f"This is not for pages of {origin[:100]!r}."
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin") and not _follows_link(environ):
        return "This is not for pages of another site."
    if known:
        return None
    # The Host is checked because a page of a stranger may point a name of its own at 127.0.0.1.
    if (
        any(name in environ for name in FORWARDED)
        or not is_loopback(environ.get("REMOTE_ADDR", ""))
        or not is_local_name(host)
    ):
        return "This is for this machine (http://localhost) and for users of the web-config file."
    return None


def _follows_link(environ: Mapping[str, Any]) -> bool:
    """Tell whether a person has followed a link: the browser then shows the page to them and not to who linked it."""
    return (
        environ.get("REQUEST_METHOD") == "GET"
        and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST") == "document"
    )


def bears(environ: Mapping[str, Any], token: str) -> bool:
    """Tell whether the request has our token, which those can read who can read the runtime directory."""
    given = environ.get("HTTP_AUTHORIZATION", "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {token}".encode())


def is_loopback(address: str) -> bool:
    """Tell whether an IP address is this machine's own."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def is_local_name(host: str) -> bool:
    """Tell whether the header Host names this machine as only this machine can."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and (name == "localhost" or is_loopback(name))

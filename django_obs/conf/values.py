"""Values as settings files and environment variables write them, read as the type of their setting."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from .problem import Unusable

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def from_object(hint: Any, value: object) -> object:
    """Return `value`, which stands in the settings file, as the type that `hint` names."""
    kind, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if hint is str and isinstance(value, (str, os.PathLike)) and isinstance(path := os.fspath(value), str):
        return path
    if hint is type(None) and value is None:
        return None
    if kind is Literal and isinstance(value, str):
        if value in options:
            return value
        raise Unusable("choice", "must be one of: " + ", ".join(options))
    if kind is tuple and isinstance(value, (list, tuple)):
        with contextlib.suppress(Unusable):
            return tuple(from_object(options[0], each) for each in value)
    if kind is Mapping and isinstance(value, Mapping) and all(isinstance(each, str) for each in _flat(value)):
        return types.MappingProxyType(dict(value))
    if kind in (typing.Union, types.UnionType):
        for option in options:
            try:
                return from_object(option, value)
            except Unusable as unusable:
                if unusable.kind == "choice":
                    raise Unusable("choice", f"must be {_words(hint)}") from None
    raise Unusable("type", f"must be {_words(hint)}")


def from_text(hint: Any, text: str) -> object:
    """Return `text`, the value of an environment variable, as the type that `hint` names."""
    kind, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise Unusable("type", "must be true or false")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise Unusable("type", f"must be {_words(hint)}") from None
    if kind is tuple:
        try:
            return () if text.lower() == "none" else tuple(from_text(options[0], each) for each in split(text))
        except Unusable:
            raise Unusable("type", f"must be {_words(hint)}, separated by commas") from None
    if kind is Mapping:
        return types.MappingProxyType(dict(pairs(text)))
    if kind in (typing.Union, types.UnionType):
        if type(None) in options:
            rest = next(option for option in options if option is not type(None))
            return None if text.lower() == "none" else from_text(rest, text)
        literal, rest = options
        return text if text in typing.get_args(literal) else from_text(rest, text)
    return from_object(hint, text)


def _flat(mapping: Mapping[object, object]) -> Iterator[object]:
    return itertools.chain(mapping.keys(), mapping.values())


def split(text: str) -> list[str]:
    """Return the parts of ``a, b``, without blank ones."""
    return [each for part in text.split(",") if (each := part.strip())]


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of ``key=value,key2=value2``, percent-decoded as OTLP's headers and resource attributes are."""
    from urllib.parse import unquote

    for part in split(text):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise Unusable("type", "must be pairs such as key=value,key2=value2")
        yield unquote(key.strip()), unquote(value.strip())


def _words(hint: Any) -> str:
    """Say in words what type `hint` names."""
    kind, options = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return " or ".join(map(repr, options))
    if kind is tuple:
        return "a list of " + {str: "strings", float: "numbers"}[options[0]]
    if kind is Mapping:
        return "a dict of strings"
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(_words, options))
    simple = {bool: "True or False", int: "an integer", float: "a number", str: "a string", type(None): "None"}
    return simple[hint]


def limited(value: Any, limits: Mapping[str, Any]) -> Any:
    """Return `value` if it keeps its setting's limits."""
    if value is None or not limits:
        return value
    if isinstance(value, float) and math.isnan(value):
        raise Unusable("value", "must be a number")
    if (minimum := limits.get("minimum")) is not None and value < minimum:
        raise Unusable("value", f"must be at least {minimum}")
    if (above := limits.get("above")) is not None and value <= above:
        raise Unusable("value", f"must be more than {above}")
    if (maximum := limits.get("maximum")) is not None and value > maximum:
        raise Unusable("value", f"must be at most {maximum}")
    if check := limits.get("check"):
        return _CHECKS[check](value)
    return value


def _ascending(buckets: tuple[float, ...]) -> tuple[float, ...]:
    finite = buckets[:-1] if buckets and buckets[-1] == math.inf else buckets
    rising = all(low < high for low, high in itertools.pairwise(finite))
    if not finite or not rising or not all(map(math.isfinite, finite)):
        raise Unusable("value", "must be one or more numbers, each larger than the one before")
    return finite


def _text(text: str) -> str:
    # os.environ and JSON can hold halves of surrogate pairs, which neither collector nor terminal takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("value", "must be text that UTF-8 can carry") from None
    return text


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        # Field values of RFC 9110, section 5.5: no control characters, so that none can smuggle in another field.
        if not _is_token(name) or any(ord(each) < 32 or ord(each) == 127 for each in value):
            raise Unusable("value", "must be names of HTTP headers with values on one line")
    return headers


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or "\0" in path:
        # Processes of one project start in different directories: a relative path would name a directory for each.
        raise Unusable("value", "must be an absolute path")
    return path


def _header(name: str) -> str:
    if name and not _is_token(name):
        raise Unusable("value", "must be the name of an HTTP header")
    return name


def _is_token(name: str) -> bool:
    # RFC 9110, section 5.6.2.
    return name != "" and all(each.isascii() and (each.isalnum() or each in "!#$%&'*+-.^_`|~") for each in name)


def _endpoint(url: str) -> str:
    # Not at the top: where no address is given none is taken apart.
    from urllib.parse import urlsplit

    way_out = "must be a URL such as http://collector:4318"
    try:
        parts = urlsplit(url)
        bad = parts.port == 0
    except ValueError:
        raise Unusable("endpoint", way_out) from None
    if any(each.isspace() or not each.isprintable() for each in url):
        raise Unusable("endpoint", way_out)
    # gRPC's own form is host:port; urlsplit takes such a host for a scheme.
    if "://" not in url and url:
        host, _, port = url.rpartition(":")
        if host and port.isdigit() and "/" not in host:
            return url
        raise Unusable("endpoint", way_out)
    if url and (bad or parts.scheme not in ("http", "https") or not parts.hostname):
        raise Unusable("endpoint", way_out)
    return url


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "absolute": _absolute,
    "buckets": _ascending,
    "endpoint": _endpoint,
    "header": _header,
    "headers": _headers,
    "text": _text,
}

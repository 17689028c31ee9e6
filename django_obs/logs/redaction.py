"""Which fields are secret, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "[redacted]"

# Words of a name: userPassword, user_password, User-Password and X-API-Key all come apart the same way.
_words = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+").findall
# Names come from code, but a hostile client may choose the keys of a dict that is logged.
_REMEMBERED = 4096


class Redaction:
    """The names whose values are masked.

    A name is secret if the words of one of ours stand in it side by side, whatever joins them: ``api_key`` masks
    ``X-Api-Key`` and ``stripeApiKey``, ``token`` masks ``csrf_token`` but not ``tokenizer``.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._secrets = tuple({f" {' '.join(split(name))} " for name in names if split(name)})
        self._known: dict[object, bool] = {}

    def hides(self, name: object) -> bool:
        """Tell whether the values of this name are secret."""
        try:
            return self._known[name]
        except KeyError:
            pass
        except TypeError:
            return False
        secret = isinstance(name, str) and self._matches(name)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[name] = secret
        return secret

    def _matches(self, name: str) -> bool:
        if not self._secrets:
            return False
        words = f" {' '.join(split(name[:256]))} "
        return any(secret in words for secret in self._secrets)


def split(name: str) -> list[str]:
    return [word.lower() for word in _words(name)]

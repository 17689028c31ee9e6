"""TLS, client certificates and basic auth from a web-config file of Prometheus' exporter-toolkit.

The file is the one that node_exporter and Prometheus itself take, so that a site writes it once:
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. It is looked at again for every
connection: certificates and passwords rotate without a restart. A file that has become unreadable or wrong changes
nothing and is reported once; an admin port that opens up because of a typing error would be worse than an old one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import reprlib
import secrets
import ssl
import threading
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger("django_obs")

T = TypeVar("T")

INSTALL_HINT = "pip install 'django-obs[web-config]'"
TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
CLIENT_AUTH = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# Go can take a client's certificate without verifying it; Python's ssl module cannot.
UNVERIFIED_CLIENT_AUTH = frozenset({"RequestClientCert", "RequireAnyClientCert"})
# The headers that the toolkit lets a site add.
HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
# A bcrypt check of the usual cost takes a twentieth of a second of CPU: a scrape must not pay it each time.
CHECKED_LOGINS = 128


class WebConfigError(ValueError):
    """The file cannot be used; the message names the file, the place and the way out."""


@dataclass(frozen=True)
class TlsServer:
    """The section ``tls_server_config``."""

    cert_file: Path
    key_file: Path
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    client_ca_file: Path | None = None
    client_allowed_sans: tuple[str, ...] = ()
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion | None = None
    cipher_suites: tuple[str, ...] = ()

    def files(self) -> tuple[Path, ...]:
        """Return the files that a context is made of."""
        return tuple(file for file in (self.cert_file, self.key_file, self.client_ca_file) if file is not None)

    def context(self) -> ssl.SSLContext:
        """Load the files. Raises OSError (``ssl.SSLError`` is one) if they do not fit together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self.min_version
        if self.max_version is not None:
            context.maximum_version = self.max_version
        if self.cipher_suites:
            context.set_ciphers(":".join(self.cipher_suites))
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)
        context.verify_mode = self.client_auth
        return context


@dataclass(frozen=True)
class WebConfig:
    """What the file says."""

    tls: TlsServer | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)  # name -> bcrypt hash
    headers: tuple[tuple[str, str], ...] = ()


def read(path: Path) -> WebConfig:
    """Read a web-config file. Raises WebConfigError."""
    try:
        import yaml
    except ImportError:
        raise WebConfigError(f"Reading {path} needs PyYAML: {INSTALL_HINT}") from None
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise WebConfigError(f"Cannot read {path}: {error.strerror}") from None
    except Exception as error:
        # A YAMLError as a rule; but its constructors let out whatever int(), float(), date() and deep nesting raise.
        raise WebConfigError(f"{path} is not YAML: {str(error)[:500] or type(error).__name__}") from None
    return _Reader(path).config({} if document is None else document)


class _Short(reprlib.Repr):
    """Writes values in a line or two: with a few aliases YAML makes a list whose whole text no memory holds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 60


shortened = _Short().repr


class _Reader:
    """Turns the parsed file into a WebConfig and knows what to say about what it does not understand."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self, document: Any) -> WebConfig:
        document = self._mapping(
            document, "", ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
        )
        if document.get("rate_limit"):
            self._fail("rate_limit", "is not supported: the port cuts off whoever takes too much by itself")
        tls = self._tls(document["tls_server_config"]) if document.get("tls_server_config") else None
        users = self._users(document.get("basic_auth_users") or {})
        return WebConfig(tls=tls, users=users, headers=self._headers(document.get("http_server_config") or {}))

    def _tls(self, section: Any) -> TlsServer:
        place = "tls_server_config"
        section = self._mapping(
            section,
            place,
            (
                "cert_file",
                "key_file",
                "client_auth_type",
                "client_ca_file",
                "client_allowed_sans",
                "min_version",
                "max_version",
                "cipher_suites",
                "curve_preferences",
                "prefer_server_cipher_suites",
            ),
        )
        for key in ("cert_file", "key_file"):
            if not section.get(key):
                self._fail(f"{place}.{key}", "is missing")
        auth_type = section.get("client_auth_type") or ""
        if isinstance(auth_type, str) and auth_type in UNVERIFIED_CLIENT_AUTH:
            self._fail(
                f"{place}.client_auth_type",
                f"{auth_type!r} takes certificates without verifying them, which Python's ssl module cannot; "
                "use VerifyClientCertIfGiven or RequireAndVerifyClientCert",
            )
        client_auth = self._choice(auth_type, f"{place}.client_auth_type", CLIENT_AUTH)
        ca_file = section.get("client_ca_file")
        if client_auth == ssl.CERT_NONE and ca_file:
            self._fail(f"{place}.client_ca_file", "is given, but client_auth_type is NoClientCert")
        if client_auth != ssl.CERT_NONE and not ca_file:
            self._fail(f"{place}.client_ca_file", f"is missing; client_auth_type {auth_type!r} needs it")
        versions = {
            key: self._choice(section[key], f"{place}.{key}", TLS_VERSIONS)
            for key in ("min_version", "max_version")
            if section.get(key)
        }
        return TlsServer(
            cert_file=self._file(section["cert_file"], f"{place}.cert_file"),
            key_file=self._file(section["key_file"], f"{place}.key_file"),
            client_auth=client_auth,
            client_ca_file=self._file(ca_file, f"{place}.client_ca_file") if ca_file else None,
            client_allowed_sans=self._strings(section.get("client_allowed_sans"), f"{place}.client_allowed_sans"),
            # Go's names of the TLS 1.2 suites; OpenSSL always allows its TLS 1.3 ones.
            cipher_suites=tuple(
                openssl_name
                for name in self._strings(section.get("cipher_suites"), f"{place}.cipher_suites")
                if (openssl_name := self._cipher(name))
            ),
            **versions,
        )

    def _users(self, section: Any) -> dict[str, bytes]:
        if not isinstance(section, dict):
            self._fail("basic_auth_users", "must be a mapping of names to bcrypt hashes")
        if not section:
            return {}
        try:
            import bcrypt  # noqa: F401
        except ImportError:
            raise WebConfigError(f"basic_auth_users in {self.path} needs bcrypt: {INSTALL_HINT}") from None
        users = {}
        for name, hashed in section.items():
            if not isinstance(hashed, str) or not hashed.startswith(("$2a$", "$2b$", "$2y$")) or len(hashed) != 60:
                self._fail(
                    f"basic_auth_users.{str(name)[:100]}",
                    "is no bcrypt hash; make one with `htpasswd -nBC 10 '' | tr -d ':\\n'`",
                )
            users[str(name)] = hashed.encode("ascii", "replace")
        return users

    def _headers(self, section: Any) -> tuple[tuple[str, str], ...]:
        place = "http_server_config"
        headers = self._mapping(section, place, ("http2", "headers")).get("headers") or {}
        headers = self._mapping(headers, f"{place}.headers", HEADERS)
        for name, value in headers.items():
            if not isinstance(value, str) or not value.isprintable():
                self._fail(f"{place}.headers.{name}", "must be one line of text")
        return tuple(headers.items())

    def _mapping(self, value: Any, place: str, keys: Iterable[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(place, "must be a mapping")
        for key in value:
            if key not in keys:
                self._fail(place, f"does not know {shortened(key)}, must be one of: {', '.join(keys)}")
        return dict(value)

    def _choice(self, value: Any, place: str, choices: Mapping[str, T]) -> T:
        if not isinstance(value, str) or value not in choices:
            self._fail(place, f"{shortened(value)} must be one of: {', '.join(filter(None, choices))}")
        return choices[value]

    def _strings(self, value: Any, place: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._fail(place, "must be a list of strings")
        return tuple(value)

    def _cipher(self, name: str) -> str:
        # TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 -> ECDHE-RSA-AES128-GCM-SHA256
        exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
        if not cipher:
            return ""  # a suite of TLS 1.3
        cipher = cipher.replace("AES_", "AES").replace("_CBC_SHA", "_SHA")
        cipher = cipher.replace("CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305")
        return (cipher if exchange == "RSA" else f"{exchange}_{cipher}").replace("_", "-")

    def _file(self, value: Any, place: str) -> Path:
        if not isinstance(value, str):
            self._fail(place, f"{shortened(value)} must be the name of a file")
        # Relative to the file that names it, as in the toolkit.
        return self.path.parent / str(value)

    def _fail(self, place: str, complaint: str) -> Any:
        where = f"{place} in {self.path}" if place else str(self.path)
        raise WebConfigError(f"{where} {complaint}.")


class Watched:
    """Something made of files, made anew when one of them changes; the last good one stays if that fails."""

    def __init__(self, make: Callable[[], T], files: Callable[[T], Iterable[Path]]) -> None:
        self._make = make
        self._files = files
        self._lock = threading.Lock()
        self._value: Any = make()
        self._seen = self._stamp()

    def get(self) -> Any:
        """Return the newest that could be made."""
        stamp = self._stamp()
        if stamp != self._seen:
            with self._lock:
                if stamp != self._seen:
                    try:
                        self._value = self._make()
                    except (OSError, ValueError) as error:
                        logger.warning("The admin port goes on with its old configuration: %s", error)
                        self._seen = stamp
                    else:
                        self._seen = self._stamp()
        return self._value

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        stamps: list[tuple[int, int, int] | None] = []
        for file in self._files(self._value):
            try:
                status = os.stat(file)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(stamps)


class Gatekeeper:
    """Applies a web-config file: gives connections their TLS, lets users in, adds the headers."""

    def __init__(self, path: Path | None) -> None:
        """Read the file at once, so that its errors are seen at the start. Raises WebConfigError."""
        self._config: Watched | None = None
        self._logins = Logins()
        if path is not None:
            path = path.resolve()
            self._config = Watched(lambda: _usable(path), lambda made: (path, *(made[0].files() if made[0] else ())))

    @property
    def config(self) -> WebConfig:
        """What the file says now."""
        if self._config is None:
            return WebConfig()
        config: WebConfig = self._config.get()[1]
        return config

    def context(self) -> ssl.SSLContext | None:
        """Return what to shake hands with, or None to speak plain HTTP."""
        if self._config is None:
            return None
        context: ssl.SSLContext | None = self._config.get()[2]
        return context

    def admits(self, certificate: Any) -> bool:
        """Tell whether one of the certificate's alternative names is among ``client_allowed_sans``."""
        tls = self.config.tls
        if tls is None or not tls.client_allowed_sans:
            return True
        if not certificate:
            return tls.client_auth != ssl.CERT_REQUIRED
        allowed = {_san(name) for name in tls.client_allowed_sans}
        return any(_san(value) in allowed for _, value in certificate.get("subjectAltName", ()))

    def knows(self, authorization: str | None) -> bool:
        """Tell whether a header ``Authorization`` names a user and its password; True if no user is needed."""
        users = self.config.users
        if not users:
            return True
        return authorization is not None and self._logins.valid(users, authorization)


def _usable(path: Path) -> tuple[TlsServer | None, WebConfig, ssl.SSLContext | None]:
    """Read the file and load what it names: one without the other is not the site's configuration."""
    config = read(path)
    if config.tls is None:
        return None, config, None
    try:
        return config.tls, config, config.tls.context()
    except (OSError, ValueError) as error:
        names = ", ".join(str(file) for file in config.tls.files())
        raise WebConfigError(f"Cannot use {names}, named in {path}: {error}") from None


def _san(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


class Logins:
    """Checks passwords, and remembers which were right or wrong without remembering them."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._checked: OrderedDict[bytes, bool] = OrderedDict()
        self._lock = threading.Lock()
        # One check at a time: who guesses passwords may take one CPU's share, not all of them.
        self._checking = threading.Lock()

    def valid(self, users: Mapping[str, bytes], authorization: str) -> bool:
        """Tell whether the header names one of the users (name -> bcrypt hash) with its password."""
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            name, colon, password = b64decode(credentials.strip(), validate=True).partition(b":")
        except ValueError:
            return False
        if not colon:
            return False
        hashed = users.get(name.decode("utf-8", "replace"))
        seen = hmac.new(self._key, b"\0".join((name, hashed or b"", password)), hashlib.sha256).digest()
        with self._lock:
            known = self._checked.get(seen)
            if known is not None:
                self._checked.move_to_end(seen)
                return known
        with self._checking:
            right = self._check(password, hashed)
        with self._lock:
            # A wrong guess must not push out the right password.
            if right or len(self._checked) < CHECKED_LOGINS // 2:
                self._checked[seen] = right
            if len(self._checked) > CHECKED_LOGINS:
                self._checked.popitem(last=False)
        return right

    def _check(self, password: bytes, hashed: bytes | None) -> bool:
        import bcrypt

        # bcrypt takes 72 bytes; its Go counterpart refuses more as well.
        if len(password) > 72 or b"\0" in password:
            return False
        if hashed is None:
            # An unknown name takes as long as a wrong password, so that names cannot be found out by the clock.
            bcrypt.checkpw(password, UNKNOWN_USER)
            return False
        try:
            return bcrypt.checkpw(password, hashed)
        except ValueError:
            return False


# A hash of nothing in particular, of cost 10.
UNKNOWN_USER = b"$2b$10$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu"

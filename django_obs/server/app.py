"""The routes of the admin port, as a WSGI application.

Read by machines, and by whoever opens a port to see what it is: every answer is short and says what to do.
"""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from django_obs.metrics.exposition import Format, accepts_gzip, negotiate
from django_obs.server.access import bears, refusal
from django_obs.server.receiver import BODY_BYTES, Receiver, Reply
from django_obs.server.recent import Recent
from django_obs.server.response import PLAIN_TEXT, Environ, Response, Route, answer
from django_obs.server.watch_control import OPERATOR, WatchControl

if TYPE_CHECKING:
    from django_obs.server.tail import Tail

StartResponse = Callable[..., Any]

# A page of metrics shrinks to a twentieth at level 1 in 0.9 ms; level 9 takes six times as long to gain a third.
GZIP_LEVEL = 1
# Below, the headers weigh more than the gain.
GZIP_MINIMUM = 1024
# Longer than any filter that a person writes.
FILTER_BYTES = 8192
OTLP_PATHS = frozenset({"/v1/traces", "/v1/logs"})


class Page(Protocol):
    """Where the metrics come from."""

    def render(self, dialect: Format, names: frozenset[str] | None = None) -> bytes:
        """Return the page, of the families with these names alone if some are given."""

    def ready(self) -> str | None:
        """Return None, or why there can be no page."""


class FilterControl(Protocol):
    """Where the filter of the logs is read and written."""

    def read(self) -> Mapping[str, object]:
        """Return the filter that is set, and until when."""

    def write(self, directives: str, seconds: float | None) -> Mapping[str, object]:
        """Set the filter for so many seconds, or for good. Raises ValueError that says what is wrong with it."""

    def clear(self) -> Mapping[str, object]:
        """Go back to the filter of the settings."""


class Gate(Protocol):
    """Who may come in."""

    def knows(self, authorization: str | None) -> bool:
        """Tell whether the header ``Authorization`` names a user; True if there are none."""

    @property
    def config(self) -> Any:
        """The web-config: ``users``, ``headers``."""


class Console(Protocol):
    """The pages for people."""

    def route(self, path: str) -> Route | None:
        """Return the methods that a path knows, None if it is none of the console's."""


class AdminApplication:
    """The admin port."""

    def __init__(
        self,
        page: Page,
        gate: Gate,
        control: FilterControl | None = None,
        *,
        recent: Recent | None = None,
        watch: WatchControl | None = None,
        console: Console | None = None,
    ) -> None:
        self.page = page
        self.gate = gate
        self.control = control
        self.console = console
        # Not `or`: one that is empty is as good.
        self.recent = Recent() if recent is None else recent
        self.receiver = Receiver(self.recent)
        self.watch = watch
        self._tail: Tail | None = None
        # Who can read the runtime directory can read it, and needs no password: the processes of the project.
        self.token = secrets.token_urlsafe(32)
        self.routes: dict[str, dict[str, Callable[[Environ], Response]]] = {
            "/metrics": {"GET": self.metrics},
            "/-/healthy": {"GET": self.healthy},
            "/-/ready": {"GET": self.ready},
            "/favicon.ico": {"GET": self.favicon},
            "/v1/traces": {"POST": self.receive_traces},
            "/v1/logs": {"POST": self.receive_logs},
            "/tail": {"GET": self.follow},
        }
        if watch is not None:
            self.routes["/watch"] = {"GET": self.read_watch, "PUT": self.hold_watch, "DELETE": self.release_watch}
        if control is not None:
            self.routes["/filter"] = {"GET": self.read_filter, "PUT": self.write_filter, "DELETE": self.clear_filter}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(environ)
        headers = [("Content-Type", response.content_type), ("X-Content-Type-Options", "nosniff"), *response.headers]
        configured = {name for name, _ in self.gate.config.headers}
        headers = [header for header in headers if header[0] not in configured]
        headers += [*self.gate.config.headers, ("Content-Length", str(len(response.body)))]
        start_response(f"{response.status.value} {response.status.phrase}", headers)
        return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    def inner_door(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve those with our token alone, as on a second port of this machine where the first one demands TLS."""
        if bears(environ, self.token):
            return self(environ, start_response)
        body = b"This is for the processes of the project.\n"
        start_response("401 Unauthorized", [("Content-Type", PLAIN_TEXT), ("Content-Length", str(len(body)))])
        return [body]

    def _respond(self, environ: Environ) -> Response:
        if not (bears(environ, self.token) or self.gate.knows(environ.get("HTTP_AUTHORIZATION"))):
            challenge = ("WWW-Authenticate", 'Basic realm="metrics", charset="UTF-8"')
            return answer(HTTPStatus.UNAUTHORIZED, "A user of the web-config file is needed.", challenge)
        path = environ.get("PATH_INFO") or "/"
        route: Route | None = self.routes.get(path)
        if route is None and self.console is not None and (route := self.console.route(path)) is not None:
            refused = self.refuse(environ)
            if refused is not None:
                return refused
        if route is None:
            return answer(HTTPStatus.NOT_FOUND, f"There is nothing here; there is {', '.join(sorted(self.routes))}.")
        method = environ["REQUEST_METHOD"]
        view = route.get("GET" if method == "HEAD" else method)
        if view is None:
            allowed = ", ".join(sorted({*route, *(["HEAD"] if "GET" in route else [])}))
            return answer(HTTPStatus.METHOD_NOT_ALLOWED, f"Allowed here: {allowed}.", ("Allow", allowed))
        try:
            return view(environ)
        except OSError as error:
            # The runtime directory, as a rule: the text says what to do about it.
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"This cannot be answered: {error}")

    def metrics(self, environ: Environ) -> Response:
        """Serve the metrics of all processes in the format that the client prefers."""
        dialect = negotiate(environ.get("HTTP_ACCEPT"))
        wanted = parse_qs(environ.get("QUERY_STRING", "")).get("name[]")
        try:
            body = self.page.render(dialect, frozenset(wanted) if wanted else None)
        except OSError as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"The metrics cannot be read: {error}")
        headers = [("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "no-store")]
        if len(body) >= GZIP_MINIMUM and accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING")):
            body = gzip.compress(body, GZIP_LEVEL, mtime=0)
            headers.append(("Content-Encoding", "gzip"))
        return Response(body, content_type=dialect.content_type, headers=headers)

    def healthy(self, environ: Environ) -> Response:
        """Say that this process answers."""
        return answer(HTTPStatus.OK, "Healthy.")

    def ready(self, environ: Environ) -> Response:
        """Say whether a scrape would be answered."""
        reason = self.page.ready()
        if reason is not None:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"Not ready: {reason}")
        return answer(HTTPStatus.OK, "Ready.")

    def favicon(self, environ: Environ) -> Response:
        """Answer browsers, which ask without being told to."""
        return Response(b"", HTTPStatus.NO_CONTENT)

    def read_filter(self, environ: Environ) -> Response:
        """Show the log filter that holds in all processes."""
        assert self.control is not None
        return self.refuse(environ) or _json(self.control.read())

    def write_filter(self, environ: Environ) -> Response:
        """Set the log filter of all processes: directives as the body, ``?seconds=600`` to let it expire."""
        assert self.control is not None
        refusal = self.refuse(environ)
        if refusal is not None:
            return refusal
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            if length > FILTER_BYTES:
                return answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {FILTER_BYTES} bytes, please.")
            directives = environ["wsgi.input"].read(length).decode("utf-8").strip()
            given = parse_qs(environ.get("QUERY_STRING", "")).get("seconds")
            seconds = float(given[-1]) if given else None
            # "not > 0" catches NaN as well.
            if seconds is not None and not 0 < seconds < float("inf"):
                raise ValueError("seconds must be a positive number")
            return _json(self.control.write(directives, seconds))
        except ValueError as error:
            return answer(HTTPStatus.BAD_REQUEST, f"The filter was not changed: {error}")
        except OSError as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"The filter was not changed: {error}")

    def clear_filter(self, environ: Environ) -> Response:
        """Go back to the filter of the settings."""
        assert self.control is not None
        return self.refuse(environ) or _json(self.control.clear())

    def is_known(self, environ: Environ) -> bool:
        """Tell whether the sender has proved who it is: by a password, a certificate, or our token."""
        if environ.get("django_obs.client_certified") or bears(environ, self.token):
            return True
        return bool(self.gate.config.users) and self.gate.knows(environ.get("HTTP_AUTHORIZATION"))

    def refuse(self, environ: Environ) -> Response | None:
        """Return an answer to a stranger, or to a browser on behalf of a stranger's page; else None."""
        reason = refusal(environ, known=self.is_known(environ))
        return None if reason is None else answer(HTTPStatus.FORBIDDEN, reason)

    def body_limit(self, environ: Environ) -> int:
        """Return how many bytes the body may have; asked before it is read."""
        if environ["PATH_INFO"] in OTLP_PATHS and refusal(environ, known=self.is_known(environ)) is None:
            return BODY_BYTES
        return FILTER_BYTES

    def read_watch(self, environ: Environ) -> Response:
        """Show whether processes send copies here, for how long still, and who asked for it."""
        assert self.watch is not None
        return self.refuse(environ) or _json(self.watch.read())

    def hold_watch(self, environ: Environ) -> Response:
        """Have all processes send copies here: ``?seconds=600``, and ``&holder=`` for somebody beside the operator."""
        return self._change_watch(environ, "600")

    def release_watch(self, environ: Environ) -> Response:
        """Have no copies sent any more, or not for ``?holder=``."""
        return self._change_watch(environ, None)

    def _change_watch(self, environ: Environ, seconds: str | None) -> Response:
        assert self.watch is not None
        refused = self.refuse(environ)
        if refused is not None:
            return refused
        given = parse_qs(environ.get("QUERY_STRING", ""))
        holder = given.get("holder", [None])[-1]
        try:
            if seconds is None:
                return _json(self.watch.release(holder))
            return _json(self.watch.hold(float(given.get("seconds", [seconds])[-1]), holder or OPERATOR))
        except ValueError as error:
            return answer(HTTPStatus.BAD_REQUEST, f"The watch was not changed: {error}")
        except OSError as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"The watch was not changed: {error}")

    def follow(self, environ: Environ) -> Response:
        """Hand out lines and finished requests that came in after ``?cursor=``, as soon as there are some."""
        # Here and not above: who only serves metrics needs no parser of directives.
        from django_obs.server.tail import Crowded, Tail

        refused = self.refuse(environ)
        if refused is not None:
            return refused
        if self._tail is None:
            self._tail = Tail(self.recent)
        try:
            news = self._tail.poll(parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=20))
        except Crowded as error:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"Try again later: {error}.")
        except ValueError as error:
            return answer(HTTPStatus.BAD_REQUEST, f"This cannot be followed: {error}")
        response = _json(news)
        response.headers.append(("Cache-Control", "no-store"))
        return response

    def receive_traces(self, environ: Environ) -> Response:
        """Take spans of any OTLP sender."""
        return self._receive(environ, self.receiver.traces)

    def receive_logs(self, environ: Environ) -> Response:
        """Take log records of any OTLP sender."""
        return self._receive(environ, self.receiver.logs)

    def _receive(self, environ: Environ, receive: Callable[[Environ], Reply]) -> Response:
        reason = refusal(environ, known=self.is_known(environ))
        reply = receive(environ) if reason is None else self.receiver.refuse(environ, HTTPStatus.FORBIDDEN, reason)
        return Response(reply.body, reply.status, reply.content_type, reply.headers)


def _json(value: Mapping[str, object]) -> Response:
    return Response(json.dumps(value, default=str).encode() + b"\n", content_type="application/json")

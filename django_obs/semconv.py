"""The words that the signals share: names of the conventions for HTTP, the shape of an id, the commands that serve."""

from __future__ import annotations

import re
from typing import Any

# RFC 9110 and RFC 5789: the methods that the conventions know; every other is _OTHER.
# https://opentelemetry.io/docs/specs/semconv/http/http-spans/
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
OTHER_METHOD = "_OTHER"

# Management commands that serve until they are stopped: Django's, and those of well-known packages.
SERVING_COMMANDS = frozenset(
    {
        "celery",
        "daphne",
        "db_worker",
        "livereload",
        "process_tasks",
        "qcluster",
        "rqscheduler",
        "rqworker",
        "run_gunicorn",
        "run_huey",
        "rundramatiq",
        "runmetrics",
        "runprofileserver",
        "runserver",
        "runserver_plus",
        "runworker",
    }
)

# What somebody else may choose as the id of a request: enough for UUIDs, ULIDs, AWS trace ids and the like, nothing
# that could forge a log line or a header.
is_request_id = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch


def http_method(method: str | None) -> str:
    """Return the method if it is a known one, else ``_OTHER``."""
    return method if method in METHODS else OTHER_METHOD


def http_route(resolver_match: object) -> str | None:
    """Return the route of a resolved request with its leading slash, or None if no route matched."""
    route: str | None = getattr(resolver_match, "route", None)
    if route is None:
        return None
    # re_path() routes are regular expressions and start with an anchor instead.
    return route if route[:1] in ("/", "^") else f"/{route}"


def loaded_user_id(request: Any) -> str | None:
    """Return the primary key of the request's user, if it has been loaded anyway, as text.

    Asking for ``request.user`` would query the database, and make the response vary by cookie.
    """
    own = request.__dict__
    user = own.get("user")
    if user is not None:
        # A lazy object holds a bare object() until somebody has asked for it.
        user = getattr(user, "_wrapped", user)
        if type(user) is object:
            user = None
    if user is None:
        user = own.get("_cached_user") or own.get("_acached_user")
    key = getattr(user, "pk", None)
    return None if key is None else str(key)

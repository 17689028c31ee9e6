"""lanes, collectors, /proc -> page -> routes -> listener: the admin port.

``django_obs.server:application`` is the same for any WSGI server, made at the first use of the name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_obs.server.app import AdminApplication

    application: AdminApplication

__all__ = ["application"]


def __getattr__(name: str) -> Any:
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup(set_prefix=False)
    from django_obs.server.assembly import build_application

    globals()["application"] = made = build_application()
    return made

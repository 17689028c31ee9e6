from __future__ import annotations

import pytest
from django.http import HttpRequest
from django.test import override_settings
from django.urls import include, path, re_path

from django_obs.doctor.project import hits, routes


def page(request: HttpRequest) -> None: ...


urlpatterns = [
    path("", page),
    path("items/<int:pk>/", page),
    path("internal/", include([path("status", page), re_path(r"^v[0-9]/ping$", page)])),
    re_path(r"^plain/$", page),
]


@pytest.mark.parametrize(
    ("glob", "hit"),
    [
        ("/", True),
        ("/items/*", True),
        ("/items/7/", True),
        ("/item/*", False),
        ("/internal/status", True),
        ("/internal/status/", False),
        ("/internal/v1/ping", True),
        ("/plain/", True),
        ("/plain", False),
        ("/static/*", True),
        ("/static/app.js", True),
        ("*.js", False),
        ("/nothing", False),
    ],
)
@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/", MEDIA_URL="")
def test_glob_hits_a_route_or_not(glob, hit):
    assert hits(glob, list(routes())) is hit


@override_settings(ROOT_URLCONF=__name__, STATIC_URL="", MEDIA_URL="")
def test_routes_are_paths_with_something_for_what_they_capture():
    assert list(routes()) == ["/", "/items/x/", "/internal/status", "/internal/*", "/plain/"]

from __future__ import annotations

from django.urls import path

from benchmarks.project import views

urlpatterns = [
    # A site of some size: its resolver tries patterns before it finds the one that fits.
    *(path(f"section{number}/<int:pk>/", views.trivial, name=f"section-{number}") for number in range(40)),
    path("trivial/", views.trivial, name="trivial"),
    path("page/", views.page, name="page"),
    path("api/", views.api, name="api"),
    path("async/", views.asynchronous, name="async"),
    path("queries/", views.queries, name="queries"),
    path("failing/", views.failing, name="failing"),
]

"""Django's own tasks, which there are from 6.0 on."""

from __future__ import annotations

from django.tasks import task


@task
def count() -> int:
    return 1


@task
def stumble() -> None:
    raise ValueError("no stock")

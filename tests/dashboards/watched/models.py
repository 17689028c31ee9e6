from __future__ import annotations

from django.db import models

from django_obs.metrics.models import ExportModelOperationsMixin


class Note(ExportModelOperationsMixin("note"), models.Model):  # type: ignore[misc]
    text = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.text

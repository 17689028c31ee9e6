"""Who sends: the resource attributes of this process, found without the SDK."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from django_obs import __version__

logger = logging.getLogger("django_obs")


def resource_attributes(service_name: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the resource attributes of this process, with an instance id of its own.

    ``OTEL_RESOURCE_ATTRIBUTES`` adds to them and wins, except for ``service.name``, which the settings resolve.
    """
    attributes: dict[str, Any] = {
        # The specification reserves the name "opentelemetry" for the reference implementation.
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "django_obs",
        "telemetry.sdk.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    for item in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = item.partition("=")
        if equals and key.strip():
            attributes[key.strip()] = unquote(value.strip())
        elif item.strip():
            logger.warning("OTEL_RESOURCE_ATTRIBUTES: %r is not key=value, ignored", item)
    attributes["service.name"] = (
        service_name
        or attributes.get("service.name")
        or (
            # What the resource conventions give to a service without a name.
            f"unknown_service:{os.path.basename(sys.executable) or 'python'}"
        )
    )
    return attributes

from __future__ import annotations

import os
import uuid

import pytest

from django_obs.traces.resource import resource_attributes


def test_resource_says_who_sends() -> None:
    attributes = resource_attributes("shop", {})
    assert attributes["service.name"] == "shop"
    assert attributes["process.pid"] == os.getpid()
    assert attributes["telemetry.sdk.name"] == "django_obs"
    assert attributes["telemetry.sdk.language"] == "python"
    assert uuid.UUID(attributes["service.instance.id"]).version == 4


def test_variable_adds_and_wins_except_for_the_name(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2, deployment.environment.name = a%2Cb,"
        "service.instance.id=pod-7,service.name=other,broken"
    }
    attributes = resource_attributes("shop", environ)
    assert attributes["service.version"] == "1.2"
    assert attributes["deployment.environment.name"] == "a,b"
    assert attributes["service.instance.id"] == "pod-7"
    assert attributes["service.name"] == "shop"
    assert "'broken' is not key=value" in caplog.text


def test_each_call_has_an_instance_id_of_its_own() -> None:
    first, second = resource_attributes("shop", {}), resource_attributes("shop", {})
    assert first["service.instance.id"] != second["service.instance.id"]


def test_service_without_a_name_has_that_of_the_executable() -> None:
    assert resource_attributes("", {})["service.name"].startswith("unknown_service:")

from __future__ import annotations

import pytest

from django_obs.metrics.exposition import PLAIN, Format, accepts_gzip, negotiate

OPENMETRICS = "application/openmetrics-text"
# What Prometheus 3 sends by default.
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/*", PLAIN),
        ("text/plain", PLAIN),
        ("text/plain; version=0.0.4", PLAIN),
        ("text/plain; version=1.0.0", Format("text/plain", "1.0.0")),
        ("text/plain;version=1.0.0;escaping=values", Format("text/plain", "1.0.0", "values")),
        ("text/plain;version=0.0.4;escaping=values", PLAIN),
        (OPENMETRICS, Format(OPENMETRICS, "1.0.0")),
        (f"{OPENMETRICS}; version=0.0.1", Format(OPENMETRICS, "0.0.1")),
        (f'{OPENMETRICS}; version="1.0.0"; escaping="dots"', Format(OPENMETRICS, "1.0.0", "dots")),
        (f"{OPENMETRICS}; version=1.0.0; escaping=no-such", Format(OPENMETRICS, "1.0.0")),
        (f"{OPENMETRICS}; version=9.9.9, text/plain;q=0.1", PLAIN),
        (f"text/plain;q=1, {OPENMETRICS};q=0.1", PLAIN),
        (f"text/plain;q=0.1, {OPENMETRICS};q=0.2", Format(OPENMETRICS, "1.0.0")),
        (f"{OPENMETRICS};q=0", PLAIN),
        (f"{OPENMETRICS};q=0, application/*", PLAIN),
        (f"*/*, {OPENMETRICS}", Format(OPENMETRICS, "1.0.0")),
        (f"{OPENMETRICS};q=banana, text/plain;version=1.0.0;q=0.1", Format("text/plain", "1.0.0")),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", PLAIN),
        (PROMETHEUS_3, Format(OPENMETRICS, "1.0.0", "allow-utf-8")),
        (BROWSER, PLAIN),
        (";;;,,,q=;=", PLAIN),
    ],
)
def test_format_is_what_the_client_prefers(accept: str | None, expected: Format) -> None:
    assert negotiate(accept) == expected


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (PLAIN, "text/plain; version=0.0.4; charset=utf-8"),
        (Format("text/plain", "1.0.0"), "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        (Format(OPENMETRICS, "0.0.1"), "application/openmetrics-text; version=0.0.1; charset=utf-8"),
        (
            Format(OPENMETRICS, "1.0.0", "allow-utf-8"),
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
    ],
)
def test_content_type_is_exact(dialect: Format, expected: str) -> None:
    assert dialect.content_type == expected


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("*;q=0.1, gzip;q=0", False),
        ("identity", False),
    ],
)
def test_gzip_is_used_only_where_allowed(accept_encoding: str | None, expected: bool) -> None:
    assert accepts_gzip(accept_encoding) is expected

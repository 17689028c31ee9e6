"""A pytest plugin that puts our JSON formatter where the tests of python-json-logger look for the one on orjson.

pytest -p tests.conformance.json_logger_plugin <checkout>/tests/test_formatters.py
"""

from __future__ import annotations

import pythonjsonlogger.orjson

from django_obs.logs.formatters import JSONFormatter

pythonjsonlogger.orjson.OrjsonFormatter = JSONFormatter  # type: ignore[misc]

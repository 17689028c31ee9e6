"""Logs, traces and metrics for Django in one app."""

from __future__ import annotations

from django_obs.context import bind, unbind

__all__ = ["bind", "unbind"]
__version__ = "0.1.0"

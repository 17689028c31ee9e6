"""Which traces are kept: a ratio at the head; failed and slow ones at the end of their root, whatever the head said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.trace import SpanContext, StatusCode

if TYPE_CHECKING:
    from .span import Span


class Sampler(Protocol):
    """The decision at the head, taken for local roots only; children do as their root."""

    def sampled(self, parent: SpanContext | None, trace_id: int, name: str, attributes: Mapping[str, Any]) -> bool:
        """Tell whether a new local root with this (remote) parent is sampled."""


class RatioSampler:
    """A share of the traces, chosen by the low 64 bits of the trace id as the reference implementation does."""

    __slots__ = ("_bound", "parent_based")

    def __init__(self, ratio: float, *, parent_based: bool = True) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"the sampling ratio must be between 0 and 1, not {ratio!r}")
        self._bound = round(ratio * (1 << 64))
        self.parent_based = parent_based

    def sampled(self, parent: SpanContext | None, trace_id: int, name: str, attributes: Mapping[str, Any]) -> bool:
        """Follow the parent if there is one, else compare the trace id with the ratio."""
        if parent is not None and self.parent_based:
            return bool(parent.trace_flags & 1)
        return trace_id & 0xFFFFFFFFFFFFFFFF < self._bound


class KeepRule:
    """What is kept at the end of a local root although the head left it out."""

    __slots__ = ("errors", "slower_than_ns")

    def __init__(self, errors: bool, slower_than: float | None) -> None:
        self.errors = errors
        # Seconds; None keeps nothing for being slow.
        self.slower_than_ns = None if slower_than is None else round(slower_than * 1e9)

    def __bool__(self) -> bool:
        return self.errors or self.slower_than_ns is not None

    def reason(self, root: Span) -> str | None:
        """Return "error" or "slow" if the root is to be kept, else None."""
        status = root.recorded_status
        if self.errors and status is not None and status.status_code is StatusCode.ERROR:
            return "error"
        bound = self.slower_than_ns
        try:
            if bound is not None and root.end_time - root.start_time >= bound:  # type: ignore[operator]
                return "slow"
        except TypeError:
            # Somebody has given a time that is none.
            pass
        return None

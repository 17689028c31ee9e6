"""The stack of an exception as text, for lines and spans alike."""

from __future__ import annotations

import traceback
from types import TracebackType


def stack_of(error: BaseException, frames: TracebackType | None = None) -> str:
    """Return what Python prints of an exception, by default with its own traceback, however broken it is."""
    frames = error.__traceback__ if frames is None else frames
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:
        # A __str__ of a cause, or source lines that cannot be read: the frames alone are better than nothing.
        return "".join(traceback.StackSummary.extract(traceback.walk_tb(frames), lookup_lines=False).format())

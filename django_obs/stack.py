"""The stack of an exception as text, for lines and spans alike."""

from __future__ import annotations

import traceback
from types import TracebackType


def stack_of(error: BaseException, frames: TracebackType | None) -> str:
    """Return what Python prints of an exception and its frames, however broken it is."""
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:
        # A __str__ of a cause, or source lines that cannot be read: the frames alone are better than nothing.
        return "".join(traceback.StackSummary.extract(traceback.walk_tb(frames), lookup_lines=False).format())

from __future__ import annotations

import traceback

from django_obs.context import Scope
from django_obs.stack import stack_of


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_stack_is_what_python_prints() -> None:
    error = raised(ValueError("bad"))
    assert stack_of(error, error.__traceback__) == "".join(traceback.format_exception(error))
    assert stack_of(error, None) == "ValueError: bad\n"


def test_exception_that_cannot_be_printed_still_has_its_frames() -> None:
    error = raised(ValueError("bad"))
    error.add_note("")
    error.__notes__ = [Unprintable()]
    error.__cause__ = raised(Unprintable())
    assert "in raised" in stack_of(error, error.__traceback__)


def test_scope_makes_the_stack_once() -> None:
    scope = Scope("request")
    assert scope.stack() == ""
    scope = Scope("request")
    scope.error = raised(ValueError("bad"))
    assert scope.stack() is scope.stack()
    assert scope.stack().endswith("ValueError: bad\n")

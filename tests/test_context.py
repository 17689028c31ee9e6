from __future__ import annotations

from contextvars import copy_context

from django_obs import bind, context, unbind


def test_bind_without_scope_stays_in_its_context() -> None:
    copy_context().run(bind, order_id=7)

    assert context.bound_fields() is None


def test_bind_without_scope_is_seen_later() -> None:
    def run() -> object:
        bind(order_id=7, coupon="x")
        unbind("coupon", "never-bound")
        return context.bound_fields()

    assert copy_context().run(run) == {"order_id": 7}


def test_bind_in_a_copied_context_reaches_the_scope_of_all() -> None:
    def run() -> object:
        context.current.set(context.Scope("request"))
        copy_context().run(bind, order_id=7)
        return context.bound_fields()

    assert copy_context().run(run) == {"order_id": 7}

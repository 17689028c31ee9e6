from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from django_obs.context import Scope, bind, current
from django_obs.logs.directives import OFF, DirectiveError
from django_obs.logs.filters import NOISE, EnvFilter


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Logging:
    """Filters over a root logger with one handler that keeps what passes."""

    def __init__(self, handler: Kept) -> None:
        self.handler = handler
        self.made: list[EnvFilter] = []

    def __call__(self, text: str) -> EnvFilter:
        made = EnvFilter(text)
        made.install()
        self.handler.addFilter(made)
        self.made.append(made)
        return made

    def passes(self, name: str, level: int) -> bool:
        self.handler.messages.clear()
        logging.getLogger(name).log(level, "message", extra={"colour": "red"})
        return bool(self.handler.messages)


@pytest.fixture
def env_filter(untouched_logging: None, clean_context: None) -> Iterator[Logging]:
    handler = Kept()
    logging.getLogger().addHandler(handler)
    # Whatever pytest asks for, the filter decides here.
    logging.getLogger().setLevel(logging.WARNING)
    made = Logging(handler)
    yield made
    for each in made.made:
        each.uninstall()
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def scope(clean_context: None) -> Scope:
    scope = Scope("request")
    scope.name = "shop:cart"
    scope.method = "GET"
    scope.path = "/cart/7/"
    scope.route = "/cart/<int:pk>/"
    scope.request_id = "r-1"
    current.set(scope)
    return scope


def test_static_directives_are_levels_of_loggers(env_filter: Logging) -> None:
    made = env_filter("warn,shop=debug,shop.cart=error,quiet=off")
    assert not made.is_dynamic
    assert logging.getLogger().level == logging.WARNING
    assert logging.getLogger("shop").level == logging.DEBUG
    assert logging.getLogger("quiet").level == OFF
    assert not logging.getLogger("quiet").isEnabledFor(logging.CRITICAL)
    assert not logging.getLogger("other").isEnabledFor(logging.INFO)
    assert logging.getLogger("shop.orders").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("shop.cart.items").isEnabledFor(logging.WARNING)


def test_level_without_bare_directive_is_info(env_filter: Logging) -> None:
    env_filter("shop=debug")
    assert logging.getLogger().level == logging.INFO


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_heard_from_warnings_on(name: str, env_filter: Logging) -> None:
    env_filter("debug")
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("text", "name", "level"),
    [
        ("info,urllib3=debug", "urllib3", logging.DEBUG),
        ("info,django=debug", "django.server", logging.DEBUG),
        ("info,urllib3.connectionpool=debug", "urllib3.connectionpool", logging.DEBUG),
        ("info,urllib3.connectionpool=debug", "urllib3.util", logging.WARNING),
        ("error", "urllib3", logging.ERROR),
        ("off", "urllib3", OFF),
    ],
)
def test_directive_wins_over_the_noise_list(text: str, name: str, level: int, env_filter: Logging) -> None:
    logging.getLogger("django").setLevel(logging.NOTSET)
    logging.getLogger("django.server").setLevel(logging.NOTSET)
    env_filter(text)
    assert logging.getLogger(name).getEffectiveLevel() == level


def test_levels_of_the_project_stay_where_no_directive_names_the_logger(env_filter: Logging) -> None:
    logging.getLogger("shop.cart").setLevel(logging.ERROR)
    env_filter("info,shop=debug")
    assert logging.getLogger("shop.cart").level == logging.ERROR


def test_levels_come_back_when_the_filter_changes(env_filter: Logging) -> None:
    logging.getLogger("shop").setLevel(logging.ERROR)
    made = env_filter("info")
    made.set("warn,shop=debug,cart=debug", source="test")
    assert logging.getLogger("shop").level == logging.DEBUG
    assert made.state == ("warn,shop=debug,cart=debug", "test", None)
    made.set(None)
    assert logging.getLogger("shop").level == logging.ERROR
    assert logging.getLogger("cart").level == logging.NOTSET
    assert logging.getLogger().level == logging.INFO
    made.uninstall()
    assert logging.getLogger().level == logging.WARNING
    assert logging.getLogger("urllib3").level == logging.NOTSET


def test_level_that_somebody_else_has_set_since_stands(env_filter: Logging) -> None:
    made = env_filter("info,shop=debug")
    logging.getLogger("shop").setLevel(logging.CRITICAL)
    made.set("info")
    assert logging.getLogger("shop").level == logging.CRITICAL


def test_unreadable_text_changes_nothing(env_filter: Logging) -> None:
    made = env_filter("info,shop=debug")
    with pytest.raises(DirectiveError):
        made.set("info,shop=[")
    assert made.state.text == "info,shop=debug"
    assert logging.getLogger("shop").level == logging.DEBUG


def test_unreadable_part_of_the_settings_is_left_out(env_filter: Logging) -> None:
    made = env_filter("info,shop=wrong,cart=debug")
    assert [error.position for error in made.errors] == [10]
    assert logging.getLogger("cart").level == logging.DEBUG


def test_filter_expires(env_filter: Logging) -> None:
    made = env_filter("info")
    made.set("debug", until=1000.0, source="test")
    assert made.expire(now=999.0) is False
    assert logging.getLogger().level == logging.DEBUG
    assert made.expire(now=1000.0) is True
    assert logging.getLogger().level == logging.INFO
    assert made.state == ("info", "settings", None)
    assert made.expire(now=2000.0) is False


def test_child_with_a_level_of_its_own_is_heard_by_a_dynamic_directive(env_filter: Logging, scope: Scope) -> None:
    logging.getLogger("shop.cart").setLevel(logging.ERROR)
    made = env_filter("info,shop[{user.id=42}]=debug")
    scope.user_id = "42"
    assert env_filter.passes("shop.cart", logging.DEBUG)
    scope.user_id = "43"
    assert not env_filter.passes("shop.cart", logging.WARNING)
    assert env_filter.passes("shop.cart", logging.ERROR)
    assert not env_filter.passes("shop.orders", logging.DEBUG)
    assert env_filter.passes("shop.orders", logging.INFO)
    made.set("info")
    assert logging.getLogger("shop.cart").level == logging.ERROR


@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ("GET /cart/7/", True),
        ("POST /cart/7/", False),
        ("GET /cart/<int:pk>/", True),
        ("cart/<int:pk>/", True),
        ("/cart/*", True),
        ("GET", True),
        ("request", True),
        ("task", False),
        ("shop:cart", True),
        ("{method=GET}", True),
        ("{route=/cart/}", True),
        ("{path=/7/}", True),
        ("{view=shop:cart}", True),
        ("{kind=request}", True),
        ("{request_id=r-1}", True),
        ("{trace_id}", False),
        ("{user.id}", False),
        ("{order_id=7}", True),
        ("{order_id=8}", False),
        ("{colour=red}", True),
        ("{unknown}", False),
        ("{order_id=7,colour=red}", True),
        ("{order_id=7,colour=blue}", False),
        ("GET /cart/*{order_id=7}", True),
        ("POST*{order_id=7}", False),
    ],
)
def test_dynamic_directive_matches_what_is_going_on(
    where: str, matches: bool, env_filter: Logging, scope: Scope
) -> None:
    env_filter(f"info,shop[{where}]=debug")
    bind(order_id=7)
    assert env_filter.passes("shop", logging.DEBUG) is matches
    assert not env_filter.passes("cart", logging.DEBUG)
    current.set(None)
    assert not env_filter.passes("shop", logging.DEBUG) or where == "{colour=red}"


def test_bound_field_matches_outside_of_any_scope(env_filter: Logging) -> None:
    env_filter("info,[{order_id=7}]=debug")
    assert not env_filter.passes("shop", logging.DEBUG)
    bind(order_id=7)
    assert env_filter.passes("shop", logging.DEBUG)


def test_most_specific_matching_directive_decides(env_filter: Logging, scope: Scope) -> None:
    env_filter("info,[/cart/*]=off,shop[/cart/*]=warn,shop[/cart/*{vip=true}]=debug")
    assert not env_filter.passes("other", logging.CRITICAL)
    assert not env_filter.passes("shop", logging.INFO)
    assert env_filter.passes("shop", logging.WARNING)
    bind(vip=True)
    assert env_filter.passes("shop", logging.DEBUG)
    current.set(None)
    assert env_filter.passes("other", logging.INFO)


def test_dynamic_directive_without_target_leaves_the_noise_list_alone(env_filter: Logging, scope: Scope) -> None:
    env_filter("info,[GET]=debug")
    assert env_filter.passes("anything", logging.DEBUG)
    assert not env_filter.passes("urllib3", logging.INFO)


def test_dynamic_directive_with_target_lifts_the_noise(env_filter: Logging, scope: Scope) -> None:
    env_filter("info,urllib3[GET]=debug")
    assert env_filter.passes("urllib3", logging.DEBUG)
    current.set(None)
    assert not env_filter.passes("urllib3", logging.INFO)
    assert env_filter.passes("urllib3", logging.WARNING)


def test_user_is_asked_for_only_if_the_request_has_loaded_them(env_filter: Logging, scope: Scope) -> None:
    class Request:
        @property
        def user(self) -> object:
            raise AssertionError("asked for the user")

    scope.request = Request()
    env_filter("info,shop[{user.id=42}]=debug")
    assert not env_filter.passes("shop", logging.DEBUG)
    scope.request._cached_user = SimpleNamespace(pk=42)
    assert env_filter.passes("shop", logging.DEBUG)
    # AnonymousUser
    scope.request._cached_user = SimpleNamespace(pk=None)
    assert not env_filter.passes("shop", logging.DEBUG)


def test_value_that_cannot_be_compared_does_not_match(env_filter: Logging, scope: Scope) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError

    env_filter("info,shop[{order_id=x}]=debug")
    bind(order_id=Broken())
    assert not env_filter.passes("shop", logging.DEBUG)


def test_other_loggers_cost_nothing_more_while_a_dynamic_directive_stands(env_filter: Logging) -> None:
    env_filter("info,shop[{user.id=42}]=debug")
    assert not logging.getLogger("cart").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("shop").isEnabledFor(logging.DEBUG)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_obs.conf import LogSettings
from django_obs.logs.redaction import Redaction

REDACTION = Redaction(LogSettings().redact)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWORD",
        "user_password",
        "userPassword",
        "new-password",
        "password_1",
        "token",
        "access_token",
        "csrf-token",
        "X-Api-Key",
        "apiKey",
        "APIKey",
        "stripeAPIKey",
        "HTTP_AUTHORIZATION",
        "Set-Cookie",
        "Proxy-Authorization",
        "client_secret",
        "CLIENT SECRET",
        "card.number",
        "csrfmiddlewaretoken",
        "sessionid",
    ],
)
def test_secret_name_is_hidden(name: str) -> None:
    assert REDACTION.hides(name)


@pytest.mark.parametrize(
    "name", ["", "user", "tokenizer", "tokens_used", "key", "api", "keyboard", "author", "secretary", "passwordless", 7]
)
def test_other_name_is_shown(name: object) -> None:
    assert not REDACTION.hides(name)


def test_nothing_is_hidden_without_names() -> None:
    assert not Redaction().hides("password")
    assert not Redaction(["", "--"]).hides("--")


def test_name_in_another_alphabet_is_hidden_too() -> None:
    redaction = Redaction(["пароль"])
    assert redaction.hides("мой пароль")
    assert not redaction.hides("паролька")


def test_memory_for_names_is_bounded() -> None:
    redaction = Redaction(["password"])
    for number in range(10_000):
        redaction.hides(f"name{number}")
    assert len(redaction._known) <= 4096
    assert redaction.hides("password")


@given(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.integers())))
def test_any_name_can_be_asked_for(name: object) -> None:
    assert REDACTION.hides(name) in (True, False)

"""Tokens and SASL mechanisms: what is accepted, and that no secret is ever shown."""

from __future__ import annotations

import pickle

import pytest

from amqpws_async.auth import Anonymous, External, Plain, StaticToken, Token, as_provider

CANARY = "canary-5f1d"


@pytest.mark.parametrize("shown", [Token(CANARY), StaticToken(CANARY), Plain("user", CANARY)])
def test_repr_and_str_never_show_the_secret(shown: object) -> None:
    """A secret that is printed, formatted or part of a larger repr stays hidden."""
    for text in (repr(shown), str(shown), f"{shown}", repr([shown]), repr({"x": shown})):
        assert CANARY not in text
        assert "***" in text


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a b", "line\n", "tökén", "a\0b", "a\x7fb"])
def test_a_token_that_could_break_out_of_its_header_is_refused(value: str) -> None:
    """Line ends and other odd characters are refused, without quoting what may be a secret."""
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Token(value)
    assert value not in str(caught.value)


def test_a_token_with_the_word_bearer_is_refused() -> None:
    """`Bearer Bearer x` would be the result, which every server refuses with a riddle."""
    with pytest.raises(ValueError, match="without the word Bearer"):
        Token(f"Bearer {CANARY}")


@pytest.mark.parametrize("value", ["", None, b"bytes", 7])
def test_a_token_must_be_text(value: object) -> None:
    """Nothing but a string that is not empty makes a token."""
    with pytest.raises(ValueError, match="token"):
        Token(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("expiry", [float("nan"), float("inf"), "soon", True])
def test_an_expiry_must_be_a_moment(expiry: object) -> None:
    """A token that never compares as expired would be used for ever."""
    with pytest.raises(ValueError, match="expiry"):
        Token("abc", expiry=expiry)  # type: ignore[arg-type]


async def test_a_static_token_stays_the_same_even_when_refreshed() -> None:
    """There is no other token to be had, so a refresh gives the same one rather than an error."""
    provider = StaticToken("abc")
    assert await provider.token() == await provider.token(refresh=True) == Token("abc")


async def test_as_provider_takes_text_tokens_and_providers() -> None:
    """The three things a user may give as `token=` all end as a provider, a provider as itself."""

    class Mine:
        async def token(self, *, refresh: bool = False) -> Token:
            return Token("mine")

    mine = Mine()
    assert as_provider(mine) is mine
    assert await as_provider("abc").token() == Token("abc")
    token = Token("abc", expiry=1.5)
    assert await as_provider(token).token() is token


@pytest.mark.parametrize("value", [7, b"abc", object(), None])
def test_as_provider_names_the_type_it_cannot_use(value: object) -> None:
    """The error says what a provider looks like."""
    with pytest.raises(TypeError, match="async def token"):
        as_provider(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("username", "password"), [("", "x"), ("x", ""), ("a\0b", "x"), ("x", "a\0b"), (None, "x")])
def test_plain_refuses_what_rfc_4616_cannot_carry(username: str, password: str) -> None:
    """An embedded NUL would move the border between user name and password."""
    with pytest.raises(ValueError, match="RFC 4616"):
        Plain(username, password)


def test_mechanisms_are_values_with_the_names_of_the_wire() -> None:
    """Equal by content, hashable, picklable, and named as SASL names them."""
    assert [Anonymous().name, Plain("u", "p").name, External().name] == ["ANONYMOUS", "PLAIN", "EXTERNAL"]
    assert Plain("u", "p") == Plain("u", "p") != Plain("u", "q")
    assert len({Anonymous(), Anonymous(), External()}) == 2
    assert pickle.loads(pickle.dumps(Plain("u", "p"))) == Plain("u", "p")

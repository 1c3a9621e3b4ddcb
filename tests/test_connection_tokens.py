"""A token that the upgrade refuses: one more is asked for, once, within the time for opening."""

from __future__ import annotations

import asyncio

import pytest

import amqpws_async
from amqpws_async.auth import Token, oauth2
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.errors import HandshakeError, TokenError
from amqpws_async.testing import Broker
from amqpws_async.testing.token_server import TokenAnswer, TokenServer


class Numbered:
    """A provider of t1, t2 and so on: a new one for each refresh."""

    def __init__(self) -> None:
        self.refreshes: list[bool] = []

    async def token(self, *, refresh: bool = False) -> Token:
        self.refreshes.append(refresh)
        return Token(f"t{1 + sum(self.refreshes)}")


async def test_a_revoked_token_is_replaced_and_the_connection_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: token server, refresher, a broker that no longer knows the key."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)
    async with TokenServer() as server, Broker(authorize=server.authorize) as broker:
        grant = ClientCredentials(server.url, server.client_id, server.client_secret)
        async with TokenRefresher(grant) as tokens:
            async with amqpws_async.connect(broker.url, token=tokens):
                pass
            server.revoke_all()
            async with amqpws_async.connect(broker.url, token=tokens):
                pass
            assert server.request_count == 2
            server.revoke_all()
            server.answer = TokenAnswer.SERVER_ERROR
            with pytest.raises(TokenError, match="500") as caught:
                await amqpws_async.connect(broker.url, token=tokens)
            assert isinstance(caught.value.__context__, HandshakeError)


@pytest.mark.parametrize(("status", "attempts"), [(401, ["Bearer t1", "Bearer t2"]), (403, ["Bearer t1"])])
async def test_a_second_401_and_a_first_403_are_final(status: int, attempts: list[str]) -> None:
    """401 may be the token's fault, 403 is not; either way there is an end."""
    seen: list[str] = []

    def refuse(headers: object, path: str) -> int:
        seen.append(headers["Authorization"])  # type: ignore[index]
        return status

    provider = Numbered()
    async with Broker(authorize=refuse) as broker:
        with pytest.raises(HandshakeError) as caught:
            await amqpws_async.connect(broker.url, token=provider)
    assert caught.value.status == status
    assert seen == attempts
    assert sum(provider.refreshes) == len(attempts) - 1


async def test_a_storm_of_refusals_costs_few_token_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose refused token has been replaced meanwhile take the new one: far fewer requests than connections."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)
    async with TokenServer() as server, Broker(authorize=server.authorize) as broker:
        grant = ClientCredentials(server.url, server.client_id, server.client_secret)
        async with TokenRefresher(grant) as tokens:
            await tokens.token()
            server.revoke_all()

            async def connect(turns: int) -> None:
                async with amqpws_async.connect(broker.url, token=Late(turns)):
                    pass

            class Late:
                """Takes its time before it asks again."""

                def __init__(self, turns: int) -> None:
                    self.turns = turns

                async def token(self, *, refresh: bool = False) -> Token:
                    found = await tokens.token(refresh=refresh)
                    for _ in range(self.turns):
                        await asyncio.sleep(0)
                    return found

            await asyncio.gather(*(connect(20 * number) for number in range(20)))
            # Whoever is between asking again and asking for another while the new one comes asks in vain.
            assert 2 <= server.request_count <= 5


@pytest.mark.parametrize("token", ["static", None])
async def test_without_another_token_there_is_no_other_attempt(token: str | None) -> None:
    """A static token is refused once, and so is none."""
    attempts = 0

    def refuse(headers: object, path: str) -> int:
        nonlocal attempts
        attempts += 1
        return 401

    async with Broker(authorize=refuse) as broker:
        with pytest.raises(HandshakeError, match="401"):
            await amqpws_async.connect(broker.url, token=token)
    assert attempts == 1


async def test_the_second_token_counts_against_open_timeout() -> None:
    """One budget for all of opening; the error says what took so long."""

    class Slow(Numbered):
        async def token(self, *, refresh: bool = False) -> Token:
            if refresh:
                await asyncio.sleep(60)
            return await super().token()

    async with Broker(authorize=lambda *_: 401) as broker:
        with pytest.raises(TimeoutError, match=r"another access token.*open_timeout"):
            await amqpws_async.connect(broker.url, token=Slow(), open_timeout=0.2)

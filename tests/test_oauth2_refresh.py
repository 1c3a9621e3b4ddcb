"""Tokens over time: renewed early enough, by one request for all, never in a storm, and kept through an outage."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import time
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import amqpws_async
from amqpws_async.auth import Token, oauth2
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher, refresh_delay, retry_delay
from amqpws_async.errors import TokenError
from amqpws_async.testing import Broker
from amqpws_async.testing.token_server import TokenAnswer, TokenServer


def refresher(server: TokenServer, **options: Any) -> TokenRefresher:
    """For the server's own client."""
    return TokenRefresher(ClientCredentials(server.url, server.client_id, server.client_secret), **options)


async def until(condition: Any) -> None:
    """Runs the loop until something is so; the test's own timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.005)


# --- when ------------------------------------------------------------------------------------


@given(st.floats(0.001, 86400.0), st.floats(0.0, 1.0))
def test_a_token_is_renewed_at_four_fifths_of_its_life_or_a_little_earlier(lifetime: float, spread: float) -> None:
    """Never later; at least 30 s before the end where the life is above 150 s."""
    delay = refresh_delay(lifetime, spread)
    assert 0.75 * lifetime * 0.999 <= delay <= 0.8 * lifetime * 1.001
    if lifetime > 150.0:
        assert lifetime - delay >= 30.0


@given(st.integers(1, 10**6), st.floats(0.0, 1e12), st.floats(0.0, 1.0))
def test_retries_get_rarer_up_to_a_minute_and_heed_the_server(failures: int, asked: float, spread: float) -> None:
    """Never sooner than a second, never later than five minutes whatever the server asks for."""
    delay = retry_delay(failures, asked, spread)
    assert 1.0 <= delay <= 300.0
    assert delay >= min(asked, 300.0)
    if asked == 0.0:
        assert delay <= min(2.0 ** min(failures - 1, 6), 60.0)
        assert delay >= min(2.0 ** min(failures - 1, 6), 60.0) / 2


async def test_nothing_is_asked_before_a_token_is_wanted_and_one_request_serves_all() -> None:
    """Two hundred at once get the same token."""
    async with TokenServer() as server, refresher(server) as tokens:
        assert server.request_count == 0
        found = await asyncio.gather(*(tokens.token() for _ in range(200)))
        assert server.request_count == 1
        assert len({token.value for token in found}) == 1
        assert await tokens.token() is found[0]
        assert server.request_count == 1
        assert found[0].expiry == pytest.approx(time.time() + 43199, abs=10)


async def test_a_forced_refresh_is_shared_and_keeps_the_pace() -> None:
    """A hundred connections refused at once make one request, a second after the last."""
    async with TokenServer() as server, refresher(server) as tokens:
        old = await tokens.token()
        found = await asyncio.gather(*(tokens.token(refresh=True) for _ in range(100)))
        assert server.request_count == 2
        assert {token.value for token in found} == {(await tokens.token()).value} != {old.value}
        first, second = server.requests
        assert second.time - first.time >= 0.95


async def test_short_lived_tokens_cost_one_request_each_under_load() -> None:
    """Connections opened in parallel again and again: each upgrade has a valid token, each token is asked for once."""
    async with (
        TokenServer(lifetime=2.0) as server,
        Broker(authorize=server.authorize) as broker,
        refresher(server) as tokens,
    ):

        async def connect() -> None:
            async with amqpws_async.connect(broker.url, token=tokens):
                pass

        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 5.0:
            await asyncio.gather(*(connect() for _ in range(20)))
        # Renewed after 75 to 80 % of 2 s; a busy loop can only make that later.
        assert 3 <= server.request_count <= (loop.time() - began) / 1.5 + 1
        asked = [request.time for request in server.requests]
        assert all(later - earlier > 1.0 for earlier, later in itertools.pairwise(asked))


async def test_tokens_shorter_than_the_pace_do_not_make_a_storm() -> None:
    """A server that says one second: one request a second, no more."""
    async with TokenServer(lifetime=1.0) as server, refresher(server) as tokens:
        loop = asyncio.get_running_loop()
        end = loop.time() + 2.5
        while loop.time() < end:
            await asyncio.gather(*(tokens.token() for _ in range(50)))
            await asyncio.sleep(0.01)
        asked = [request.time for request in server.requests]
        assert 2 <= len(asked) <= 4
        assert all(later - earlier >= 0.95 for earlier, later in itertools.pairwise(asked))


async def test_a_token_that_expired_while_the_machine_slept_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock stood still, the wall's did not."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)
    async with TokenServer(lifetime=1000.0) as server, refresher(server) as tokens:
        first = await tokens.token()
        now = time.time
        with monkeypatch.context() as patch:
            patch.setattr("amqpws_async.auth.oauth2.time.time", lambda: now() + 2000.0)
            second = await tokens.token()
        assert second.value != first.value
        assert server.request_count == 2


# --- outages ---------------------------------------------------------------------------------


async def test_the_old_token_stays_in_use_while_the_server_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Renewal fails in the background: a warning, no error, for as long as the token is valid."""
    async with TokenServer(lifetime=3.0) as server, refresher(server) as tokens:
        token = await tokens.token()
        server.answer = TokenAnswer.SERVER_ERROR
        await until(lambda: server.request_count == 2)
        await until(lambda: caplog.records)
        assert await tokens.token() is token
        with pytest.raises(TokenError, match=r"500.*not asked again before"):
            await tokens.token(refresh=True)
        assert "500" in caplog.text
        server.answer = None
        await until(lambda: server.request_count == 3)  # by itself
        assert (await tokens.token()).value != token.value


@pytest.mark.parametrize("outage", ["refusing", "answering 503"])
async def test_after_an_outage_tokens_come_back_without_a_storm(outage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lifetimes without a server, with many callers who do not give up: few requests, then all is well."""
    monkeypatch.setattr(oauth2, "_MAX_BACKOFF", 2.0)  # a minute's wait is proven above
    attempts = 0
    exchange = oauth2._Endpoint.exchange

    async def counting(self: Any, session: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return await exchange(self, session)

    monkeypatch.setattr(oauth2._Endpoint, "exchange", counting)
    async with TokenServer(lifetime=1.0) as server, refresher(server) as tokens:
        await tokens.token()
        if outage == "refusing":
            await server.close()
        else:
            server.answer = TokenAnswer(503)
        loop = asyncio.get_running_loop()
        attempts, began = 0, loop.time()
        failed = 0

        async def persist() -> Token:
            nonlocal failed
            while True:
                try:
                    token = await tokens.token()
                    if loop.time() > began + 5.0:
                        return token
                except TokenError:
                    failed += 1
                await asyncio.sleep(0.02)

        async def restore() -> None:
            await asyncio.sleep(5.0)
            assert attempts <= 6
            if outage == "refusing":
                await server.start()
            server.answer = None

        *found, _ = await asyncio.gather(*(persist() for _ in range(20)), restore())
        assert len({token.value for token in found if token is not None}) == 1
        assert loop.time() - began < 8.0
        assert attempts <= loop.time() - began + 1
        assert failed > 100


async def test_credentials_that_never_worked_are_not_tried_again_unasked() -> None:
    """Attempts lock accounts: without a token, each is somebody's wish."""
    async with TokenServer() as server:
        grant = ClientCredentials(server.url, server.client_id, "wrong", authentication="body")
        async with TokenRefresher(grant) as tokens:
            for _ in range(20):
                with pytest.raises(TokenError, match="unauthorized"):
                    await tokens.token()
            assert server.request_count == 1
            await asyncio.sleep(1.2)
            assert server.request_count == 1
            with pytest.raises(TokenError, match="unauthorized") as caught:
                await tokens.token()
            assert server.request_count == 2
            assert caught.value.code == "unauthorized"


async def test_retry_after_is_heeded_within_limits() -> None:
    """A server that says a year gets five minutes."""
    async with TokenServer() as server, refresher(server) as tokens:
        server.answer = TokenAnswer(503, b"", {"Retry-After": "31536000"})
        with pytest.raises(TokenError, match="503"):
            await tokens.token()
        with pytest.raises(TokenError, match=r"not asked again before (300\.0|299\.\d) s"):
            await tokens.token(refresh=True)
        assert server.request_count == 1


async def test_each_raise_has_an_error_of_its_own() -> None:
    """A shared one would collect the tracebacks of all."""
    async with TokenServer() as server, refresher(server) as tokens:
        server.answer = TokenAnswer.SERVER_ERROR
        found = await asyncio.gather(*(tokens.token() for _ in range(10)), return_exceptions=True)
        assert all(isinstance(error, TokenError) for error in found)
        assert len({id(error) for error in found}) == 10
        assert server.request_count == 1


# --- cancelling, ending ----------------------------------------------------------------------


async def test_cancelling_one_who_waits_leaves_the_request_to_the_others() -> None:
    """Also when it is the one who began it."""
    async with TokenServer() as server, refresher(server) as tokens:
        server.answer = TokenAnswer(200, b'{"access_token":"t","token_type":"bearer"}', delay=0.3)
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(tokens.token()) for _ in range(5)]
        await until(lambda: server.request_count == 1)
        for task in waiting[:4]:
            task.cancel()
        await asyncio.wait(waiting[:4])
        assert all(task.cancelled() for task in waiting[:4])
        assert (await waiting[4]).value == "t"
        assert (await tokens.token()).value == "t"
        assert server.request_count == 1


async def test_cancelling_all_who_wait_still_brings_the_token() -> None:
    """The next who asks finds it."""
    async with TokenServer() as server, refresher(server) as tokens:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await tokens.token()
        await until(lambda: server.token_count == 1)
        await tokens.token()
        assert server.request_count == 1


async def test_leaving_fails_those_who_wait_and_leaves_nothing_behind() -> None:
    """No task, no session, no hang; the error says what is wrong."""
    async with TokenServer() as server:
        server.answer = TokenAnswer.SLOW
        async with refresher(server) as tokens:
            waiting = asyncio.get_running_loop().create_task(tokens.token())
            await until(lambda: server.request_count == 1)
        with pytest.raises(TokenError, match="not running"):
            await waiting
        with pytest.raises(TokenError, match="async with"):
            await tokens.token()
        gone = weakref.ref(tokens)
        del tokens, waiting
        gc.collect()
        assert gone() is None


async def test_leaving_at_once_is_possible() -> None:
    """Before the task has even begun."""
    async with TokenServer() as server:
        async with refresher(server):
            pass
        assert server.request_count == 0


async def test_it_can_be_entered_again_but_not_twice_at_once() -> None:
    """A second round keeps the token of the first; two at once would be two tasks."""
    async with TokenServer() as server:
        tokens = refresher(server)
        async with tokens:
            token = await tokens.token()
            with pytest.raises(RuntimeError, match="in use already"):
                await tokens.__aenter__()
            assert "running" in repr(tokens)
        assert "stopped" in repr(tokens)
        async with tokens:
            assert await tokens.token() is token
        assert server.request_count == 1


def test_it_is_made_without_a_loop_and_serves_one_loop_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module may make it when it is imported."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)
    server = TokenServer(port=0)

    async def use(tokens: TokenRefresher | None = None) -> TokenRefresher:
        async with server:
            tokens = tokens or refresher(server)
            async with tokens:
                await tokens.token(refresh=True)
            return tokens

    tokens = asyncio.run(use())
    asyncio.run(use(tokens))
    assert server.request_count == 2


@pytest.mark.parametrize("moment", range(0, 60, 3))
async def test_cancelled_anywhere_nothing_is_left(moment: int) -> None:
    """A whole life, cut off after so many turns of the loop."""
    async with TokenServer() as server:

        async def live() -> None:
            async with refresher(server) as tokens:
                await asyncio.gather(tokens.token(), tokens.token())
                await tokens.token(refresh=True)

        task = asyncio.get_running_loop().create_task(live())
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


# --- listeners -------------------------------------------------------------------------------


async def test_listeners_hear_of_every_new_token_and_cannot_do_harm(caplog: pytest.LogCaptureFixture) -> None:
    """One that fails is logged, and the others are called; one taken out is not."""
    heard: list[Token] = []

    def fail(token: Token) -> None:
        raise RuntimeError("mine")

    async with TokenServer(lifetime=1.0) as server, refresher(server) as tokens:
        tokens.add_listener(fail)
        remove = tokens.add_listener(heard.append)
        first = await tokens.token()
        assert heard == [first]
        await until(lambda: len(heard) == 2)  # renewed by itself
        remove()
        remove()
        await tokens.token(refresh=True)
        assert len(heard) == 2
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 3

"""Fixtures of the interop tests: each peer is started once, when the first test wants it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.interop.brokers import PEERS, Peer
from tests.interop.fetch import MissingTool
from tests.interop.gateways import CheckedGateway, Gateway, start_checked_gateway, start_gateway
from tests.interop.oidc import Issuer, start_issuer
from tests.interop.toxiproxy import Toxiproxy, start_toxiproxy

Started = TypeVar("Started")


def start_or_skip(start: Callable[..., Started], *arguments: object) -> Started:
    """Starts what a test needs; where a tool is missing the test is skipped, and fails in CI."""
    try:
        return start(*arguments)
    except MissingTool as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Peer]]:
    """Gives the peer of a name, started when it is first asked for; all are stopped at the end."""
    peers: dict[str, Peer] = {}

    def get(name: str) -> Peer:
        if name not in peers:
            peers[name] = start_or_skip(PEERS[name], tmp_path_factory.mktemp(name))
        return peers[name]

    yield get
    for peer in peers.values():
        peer.server.stop()


@pytest.fixture
def peer(request: pytest.FixtureRequest, running: Callable[[str], Peer]) -> Peer:
    """The running peer that the test is parametrised with."""
    return running(request.param)


@pytest.fixture
def own_peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    """A peer for this test alone, which may do to it what it likes."""
    peer = start_or_skip(PEERS[request.param], tmp_path)
    yield peer
    peer.server.kill()


@pytest.fixture(scope="session")
def toxiproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    """Breaks connections; started when the first test wants it."""
    toxiproxy = start_or_skip(start_toxiproxy, tmp_path_factory.mktemp("toxiproxy"))
    yield toxiproxy
    toxiproxy.server.stop()


@pytest.fixture
def gateway(peer: Peer, tmp_path: Path) -> Iterator[Gateway]:
    """A TLS gateway before the peer."""
    gateway = start_or_skip(start_gateway, peer.url, tmp_path)
    yield gateway
    gateway.server.stop()


@pytest.fixture(scope="session")
def running_issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    """The token endpoint, started when the first test wants it."""
    issuer = start_or_skip(start_issuer, tmp_path_factory.mktemp("issuer"))
    yield issuer
    issuer.server.stop()


@pytest.fixture
def issuer(running_issuer: Issuer) -> Issuer:
    """The token endpoint, with nothing asked of it yet."""
    return running_issuer.from_now()


@pytest.fixture(scope="session")
def mesh_gateway(
    running: Callable[[str], Peer], running_issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CheckedGateway]:
    """A TLS gateway before Artemis that has tokens checked by the issuer."""
    folder = tmp_path_factory.mktemp("mesh-gateway")
    gateway = start_or_skip(
        start_checked_gateway, running("artemis").url, running_issuer.check_url, running_issuer.authority, folder
    )
    yield gateway
    gateway.server.stop()


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """The address of a queue that no other test uses."""
    return f"{request.node.originalname}-{uuid.uuid4().hex[:8]}"

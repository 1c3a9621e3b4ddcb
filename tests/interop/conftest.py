"""Fixtures of the interop tests: each peer is started once, when the first test wants it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.brokers import PEERS, Gateway, Peer, start_gateway
from tests.interop.fetch import MissingTool


def _start(name: str, folder: Path) -> Peer:
    try:
        return PEERS[name](folder)
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
            peers[name] = _start(name, tmp_path_factory.mktemp(name))
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
    peer = _start(request.param, tmp_path)
    yield peer
    peer.server.kill()


@pytest.fixture
def gateway(peer: Peer, tmp_path: Path) -> Iterator[Gateway]:
    """A TLS gateway before the peer."""
    try:
        gateway = start_gateway(peer.url, tmp_path)
    except MissingTool as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    yield gateway
    gateway.server.stop()


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """The address of a queue that no other test uses."""
    return f"{request.node.originalname}-{uuid.uuid4().hex[:8]}"

"""Every form of a service key, from its file to a received message, against the embedded Event Mesh with TLS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.eventmesh.management import ManagementClient
from amqpws_async.testing import EventMesh, UAABehaviour

from .key_files import CERTIFICATE_KEYS, INTEGRATION_SUITE_KEYS, KEYS, load, values_of


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No binding of whoever runs the tests."""
    for name in ("VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH", "SERVICE_BINDING_ROOT"):
        monkeypatch.delenv(name, raising=False)


def _files(mesh: EventMesh, name: str, folder: Path) -> tuple[Path, Path]:
    """The key's file and the CA's."""
    key = load(name, **values_of(eventmesh.ServiceKey.load(mesh.service_key())))
    file, authority = folder / f"{name}.json", folder / "ca.pem"
    file.write_text(json.dumps(key))
    authority.write_text(mesh.ca_pem)
    return file, authority


@pytest.mark.parametrize("name", KEYS)
async def test_from_the_file_to_a_received_message(name: str, tmp_path: Path) -> None:
    """Published to a topic, received from the queue that subscribes to it; secrets and certificates alike."""
    async with EventMesh(
        x509=name in CERTIFICATE_KEYS, integration_suite=name in INTEGRATION_SUITE_KEYS, behaviour=UAABehaviour.STRICT
    ) as mesh:
        file, authority = _files(mesh, name, tmp_path)
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/orders/*")
        async with eventmesh.connect(file, ssl=authority) as connected:
            async with connected.sender("topic:${namespace}/orders/created") as sender:
                assert await sender.send(amqp.Message(b"one")) == amqp.Accepted()
            async with connected.receiver("queue:${namespace}/orders") as receiver:
                delivery = await receiver.receive()
                await delivery.accept()
            assert delivery.body == b"one"
            assert delivery.message.to == f"topic:{mesh.namespace}/orders/created"
        assert mesh.token_server.request_count == 1


# One has no management, and what is below the path of the older one (/management/v1) is not known.
@pytest.mark.parametrize("name", sorted(set(KEYS) - {"messaging-only", "older"}))
async def test_from_the_file_to_a_queue_that_subscribes(name: str, tmp_path: Path) -> None:
    """The same key makes the queue and its subscription, on the path that its service has."""
    async with EventMesh(x509=name in CERTIFICATE_KEYS, integration_suite=name in INTEGRATION_SUITE_KEYS) as mesh:
        file, authority = _files(mesh, name, tmp_path)
        async with ManagementClient(file, ssl=authority) as management:
            await management.create_queue("${namespace}/orders")
            await management.subscribe("${namespace}/orders", "${namespace}/ce/orders/+")
        assert mesh.queues == {f"{mesh.namespace}/orders": {f"{mesh.namespace}/ce/orders/+"}}


async def test_an_untrusted_authority_is_refused(tmp_path: Path) -> None:
    """The CA that is given is the only one that counts, for tokens first."""
    async with EventMesh() as mesh, EventMesh() as other:
        file, _ = _files(mesh, "standalone", tmp_path)
        (tmp_path / "ca.pem").write_text(other.ca_pem)
        with pytest.raises(amqp.TokenError, match="certificate"):
            await eventmesh.connect(file, ssl=tmp_path / "ca.pem")
        assert mesh.token_server.request_count == 0

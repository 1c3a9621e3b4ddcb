"""The service keys in ``service_keys/``: one file for each form that a key is known to have.

All of them are made up. What a test may want to set stands in them as ``${...}`` of `string.Template`, and is filled in
by `load`: to the same effect in each of the forms, so a test can run with any of `KEYS` against its own servers::

    @pytest.mark.parametrize("name", KEYS)
    async def test_...(name: str) -> None:
        async with EventMesh() as mesh:
            key = load(name, **values_of(ServiceKey.load(mesh.service_key())))
            async with eventmesh.connect(key, ssl=...) as connection: ...

The keys in `CERTIFICATE_KEYS` are of the type x509: they have no secret, and ``certificate`` and ``key`` must be set to
PEM texts that the servers take.
"""

from __future__ import annotations

import json
import string
import traceback
import urllib.parse
from pathlib import Path
from typing import Any

from amqpws_async.auth.client_auth import ClientCertificate
from amqpws_async.eventmesh.key import ServiceKey

FOLDER = Path(__file__).parent / "service_keys"

FORMS: dict[str, str] = {
    "standalone": "all a key of the service enterprise-messaging can have",
    "messaging-only": "nothing but AMQP, as without management and messagingrest in the service descriptor",
    "protocol-as-text": "the protocol is a text in place of a list",
    "other-case": "names and constants in other cases",
    "hyphens-and-underscores": "names with - and _ in them",
    "blanks": "blanks around values",
    "without-path": "URLs without a path, and one of another protocol with a faulty path",
    "explicit-port": "URLs with a port, as with :443",
    "older": "version, instanceid and broker.version, no granttype, AMQP over TCP without oa2, another management path",
    "own-management-client": "a client of its own for management",
    "integration-suite": "Event Mesh in Integration Suite, which the label says",
    "integration-suite-x509": "the same with a certificate",
    "x509-in-uaa": "certificate and certurl in uaa; the token endpoint in oa2 is not for certificates",
    "x509-in-oa2": "certificate in oa2, whose token endpoint is for it, as at IAS; an empty secret",
    "x509-in-oa2-certurl": "certificate and certurl in oa2",
    "x509-at-root": "certificate and certurl at the top",
    "x509-without-certurl": "certificate at the top, and the token endpoint in oa2",
    "wrapped": "in credentials, as the cf command line shows it",
    "vcap-services": "all bindings of an application, as in a default-env.json",
}
"""The name of each file, and what is particular about it."""

KEYS = list(FORMS)
"""The names."""

CERTIFICATE_KEYS = frozenset(name for name in FORMS if "x509" in name)
"""Those which need a certificate."""

INTEGRATION_SUITE_KEYS = frozenset({"integration-suite", "integration-suite-x509"})
"""Those whose management has the path that Integration Suite has."""

CLIENT_ID = "sb-default-00000000-1111-2222-3333-444444444444-clone!b1|xbem-service-broker-!b2"
CLIENT_SECRET = "synthetic$no-real/secret="
NAMESPACE = "example/shop/1"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nc3ludGhldGlj\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nbm8gcmVhbCBrZXk=\n-----END PRIVATE KEY-----\n"


def load(
    name: str,
    *,
    url: str = "wss://messaging.example/protocols/amqp10ws",
    token_url: str = "https://login.example/oauth/token",
    management_url: str = "https://management.example",
    client_id: str = CLIENT_ID,
    client_secret: str = CLIENT_SECRET,
    management_client_id: str | None = None,
    management_client_secret: str | None = None,
    certificate: str = CERTIFICATE,
    key: str = KEY,
    namespace: str = NAMESPACE,
) -> dict[str, Any]:
    """Read a service key and fill it in.

    Args:
        name: One of `KEYS`.
        url: The broker, with the path ``/protocols/amqp10ws``: some of the keys leave that to the client.
        token_url: The token endpoint, with the path ``/oauth/token``: with a certificate it is the client that adds it.
        management_url: The server of the REST interface; a path in it is left away.
        client_id: The client.
        client_secret: Its secret.
        management_client_id: The client for management, where it is one of its own; the same by default.
        management_client_secret: Its secret, likewise.
        certificate: A certificate, as PEM text; used in `CERTIFICATE_KEYS` alone.
        key: Its private key, likewise.
        namespace: The message client's namespace.
    """
    values = {
        "messaging_url": url,
        "token_url": token_url,
        "client_id": client_id,
        "client_secret": client_secret,
        "management_client_id": management_client_id or client_id,
        "management_client_secret": management_client_secret or client_secret,
        "certificate": certificate,
        "key": key,
        "namespace": namespace,
    }
    for server, text in (("messaging", url), ("token", token_url), ("management", management_url)):
        parts = urllib.parse.urlsplit(text)
        values |= {
            f"{server}_origin": f"{parts.scheme}://{parts.netloc}",
            f"{server}_scheme": parts.scheme,
            f"{server}_host": parts.netloc.removesuffix(f":{parts.port}"),
            f"{server}_port": str(parts.port or (443 if parts.scheme in ("wss", "https") else 80)),
        }
    escaped = {each: json.dumps(value)[1:-1] for each, value in values.items()}
    text = string.Template((FOLDER / f"{name}.json").read_text("utf-8")).substitute(escaped)
    found: dict[str, Any] = json.loads(text)
    return found


def said_by(error: BaseException) -> str:
    """All that an error has in it and what it was raised from: one that shows no secret may carry it along."""
    lines: list[str] = []
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        if (each := todo.pop()) is None or each in seen:
            continue
        seen.append(each)
        lines += traceback.format_exception(each)
        attributes = (name for name in dir(each) if not name.startswith("__"))
        lines += [repr(each), repr(each.args), *(repr(getattr(each, name)) for name in attributes)]
        todo += [each.__cause__, each.__context__]
    return "\n".join(lines)


def values_of(key: ServiceKey) -> dict[str, str]:
    """The values for `load` that make any of the forms out of a key, such as that of an embedded Event Mesh."""
    values = {"url": key.messaging.url}
    if key.namespace is not None:
        values["namespace"] = key.namespace
    if key.management is not None:
        values["management_url"] = key.management.url
    if (grant := key.messaging.grant) is not None:
        values |= {"token_url": grant.token_url, "client_id": grant.client_id}
        if grant.client_secret is not None:
            values["client_secret"] = grant.client_secret
    match key.certificate:
        case ClientCertificate(certificate=str(certificate), key=str(private)):
            values |= {"certificate": certificate, "key": private}
    return values

"""What a service key says, in each of its forms; and that one that cannot be used says so, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqpws_async.auth.client_auth import ClientCertificate
from amqpws_async.auth.grants import ClientCredentials
from amqpws_async.errors import OpenError
from amqpws_async.eventmesh.key import Endpoint, ServiceKey, ServiceKeyError

from .key_files import (
    CERTIFICATE,
    CERTIFICATE_KEYS,
    CLIENT_ID,
    CLIENT_SECRET,
    FOLDER,
    INTEGRATION_SUITE_KEYS,
    KEY,
    KEYS,
    NAMESPACE,
    load,
    said_by,
    values_of,
)

CANARY = "canary-4d1c"
SECRETS = {
    "client_secret": f"{CANARY}!|$=+/% :é",
    "management_client_secret": f"{CANARY}-management",
    "key": KEY.replace("bm8g", f"{CANARY}\nbm8g"),
    "certificate": CERTIFICATE.replace("c3lu", f"{CANARY}\nc3lu"),
}
LOGIN = "https://login.example/oauth/token"


def refused(source: Any, **more: Any) -> str:
    """The text of the error that a key is refused with; there is no secret in it nor in anything that it carries."""
    with pytest.raises(ServiceKeyError) as caught:
        ServiceKey.load(source, **more)
    assert CANARY not in said_by(caught.value)
    return str(caught.value)


def standalone(**messaging: Any) -> dict[str, Any]:
    """A key with nothing but AMQP, and secrets; fields of the entry can be set, or removed by None."""
    key = load("messaging-only", **SECRETS)
    [entry] = key["messaging"]
    for name, value in messaging.items():
        entry[name] = value
        if value is None:
            del entry[name]
    return key


def oa2(**fields: Any) -> dict[str, Any]:
    """A section oa2; fields can be set, or removed by None."""
    section = {"clientid": CLIENT_ID, "clientsecret": CANARY, "tokenendpoint": LOGIN} | fields
    return {name: value for name, value in section.items() if value is not None}


# --- nothing secret is shown -----------------------------------------------------------------


@pytest.mark.parametrize("name", KEYS)
def test_a_key_shows_no_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the repr of a key and of all that is in it nor the log has a secret, a certificate or its key."""
    with caplog.at_level(logging.DEBUG):
        key = ServiceKey.load(load(name, **SECRETS))
    things = [key, key.messaging, key.management, key.messaging.grant, key.certificate, vars(key.messaging.grant)]
    for thing in things[:-1]:
        assert CANARY not in f"{thing!r} {thing} {[thing]}"
    assert (CANARY in repr(things[-1])) is (name not in CERTIFICATE_KEYS)  # it was there to be seen
    assert CANARY not in caplog.text
    for record in caplog.records:
        assert CANARY not in repr(vars(record))
    assert "https://login.example" in repr(key)
    assert CLIENT_ID in repr(key)


def test_a_key_goes_nowhere_by_pickling() -> None:
    """A key, and an endpoint with its grant, are not written into caches and to other processes by accident."""
    key = ServiceKey.load(load("standalone", **SECRETS))
    for thing in (key, key.messaging, [key]):
        with pytest.raises(TypeError, match="has secrets in it") as caught:
            pickle.dumps(thing)
        assert CANARY not in said_by(caught.value)
    with pytest.raises(TypeError, match="has secrets in it"):
        copy.deepcopy(key)
    assert dataclasses.replace(key, namespace="other/shop/1").namespace == "other/shop/1"


def test_a_url_of_the_users_own_shows_no_secret() -> None:
    """An endpoint that was made by hand shows neither a password nor a query."""
    shown = repr(Endpoint(f"wss://user:{CANARY}@host.example/path?key={CANARY}", None))
    assert shown == "Endpoint('wss://***@host.example/path?***', None)"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that is in a JSON value, and its own."""
    yield path
    if isinstance(value, (dict, list)):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[step], (*path, step))


BAD: list[Any] = [
    None,
    "",
    " ",
    CANARY,
    f"https://{CANARY} {CANARY}",
    f"wss://{CANARY}:{CANARY}",
    f"https://[{CANARY}",
    "\ud800",
]
BAD += [f"wss://u:{CANARY}@h", f"http://{CANARY}.example", f"https://h/?{CANARY}", f"https://{CANARY}\uff0fh", "a\x00b"]
BAD += [0, 1.5, True, [], [CANARY], [[CANARY]], {}, {CANARY: CANARY}, [None], [{}], {"credentials": CANARY}]


@pytest.mark.parametrize("name", KEYS)
def test_any_field_can_be_wrong(name: str) -> None:
    """Whatever stands in any place of a key, it is either read or refused, and no error shows what stands there."""
    key = load(name, **SECRETS)
    said: list[str] = []
    for path in leaves(key):
        for bad in BAD:
            changed = {"whole": copy.deepcopy(key)}
            parent: Any = changed
            for step, _ in zip(("whole", *path), path, strict=False):
                parent = parent[step]
            parent[path[-1] if path else "whole"] = bad
            if not isinstance(changed["whole"], dict):
                continue
            try:
                ServiceKey.load(changed["whole"])
            except ServiceKeyError as error:
                said.append(said_by(error))
    assert len(said) > 50
    assert CANARY not in "\n".join(said)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{{"clientsecret": "{CANARY}" "x": 1}}', "is no valid JSON: line 1, column"),
        (f'{{\n "a": "{CANARY}\\q"}}', "is no valid JSON: line 2, column"),
        (f'{{"{CANARY}": ' + "1" * 5000 + "}", "is no valid JSON: it is beyond all measure"),
        (f'{{"{CANARY}": ' + "[" * 100_000, "is no valid JSON: it is beyond all measure"),
        (f'{{"{CANARY}', "is no valid JSON: line 1, column"),
    ],
)
def test_broken_json_is_not_quoted(text: str, reason: str) -> None:
    """Broken JSON is refused with the place of the fault and without the text, which the parser's error has in it."""
    assert refused(text).startswith(f"the JSON text given: {reason}")


@pytest.mark.parametrize("text", [f'"clientsecret": "{CANARY}"', f"[{CANARY}\n]", f"{CANARY}" * 99, f"{CANARY}\0"])
def test_a_text_taken_for_a_path_is_not_quoted(text: str) -> None:
    """A text that is neither JSON nor looks like a path is not shown as the path of a file that is not there."""
    assert refused(text).startswith("the file (not shown: it does not look like a path): cannot be read: ")


# --- what cannot be used ---------------------------------------------------------------------

PEM = {"certificate": CERTIFICATE, "key": KEY}
MINE = ClientCertificate("mine.pem", "mine-key.pem")


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"uri": None}, "messaging[0].uri: missing or empty"),
        ({"uri": " "}, "messaging[0].uri: missing or empty"),
        ({"uri": 5}, "messaging[0].uri: a string, not int"),
        ({"uri": "wss://"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "https://h.example"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "amqps://h.example"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "h.example/protocols/amqp10ws"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "wss://h.example:0"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "wss://h.example:port"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": "wss://h.example/a b"}, "messaging[0].uri: no URL such as wss://host.example"),
        ({"uri": f"wss://u:{CANARY}@h.example"}, "messaging[0].uri: no user name, query or fragment may be in it"),
        ({"uri": f"wss://h.example?{CANARY}"}, "messaging[0].uri: no user name, query or fragment may be in it"),
        ({"uri": f"wss://h.example#{CANARY}"}, "messaging[0].uri: no user name, query or fragment may be in it"),
        ({"uri": "ws://h.example"}, "messaging[0].uri: tokens would travel unencrypted: use wss://"),
        ({"oa2": 5}, "messaging[0].oa2: a list of objects, not int"),
        ({"oa2": [{}, {}]}, "messaging[0].oa2: an object, not a list of several"),
        ({"oa2": oa2(clientid=None)}, "messaging[0].oa2.clientid: missing or empty"),
        ({"oa2": oa2(clientid=" ")}, "messaging[0].oa2.clientid: missing or empty"),
        ({"oa2": oa2(clientid=5)}, "messaging[0].oa2.clientid: a string, not int"),
        ({"oa2": oa2(clientsecret="")}, "messaging[0].oa2.clientsecret: missing or empty, and there is no certificate"),
        ({"oa2": oa2(clientsecret=f"{CANARY}\ud800")}, "messaging[0].oa2.clientsecret: it has half a character in it"),
        ({"oa2": oa2(tokenendpoint=None)}, "messaging[0].oa2.tokenendpoint: missing or empty"),
        ({"oa2": oa2(tokenendpoint="http://h.example")}, "messaging[0].oa2.tokenendpoint: credentials would travel"),
        ({"oa2": oa2(tokenendpoint=CANARY)}, "messaging[0].oa2.tokenendpoint: a URL such as https://"),
        ({"oa2": oa2(granttype="authorization_code")}, "messaging[0].oa2.granttype: not client_credentials: create"),
        ({"oa2": oa2(granttype="password")}, "messaging[0].oa2.granttype: not client_credentials: create another key"),
        ({"oa2": oa2(certificate="server.pem")}, "messaging[0].oa2.certificate: no PEM text, which has a line"),
        ({"oa2": oa2(**PEM | {"key": "/etc/passwd"})}, "messaging[0].oa2.key: no PEM text, which has a line"),
        ({"oa2": oa2(certificate=CERTIFICATE)}, "messaging[0].oa2.key: missing: the key of the certificate is not"),
        ({"oa2": oa2(**{"credential-type": "X509_PROVIDED"})}, "messaging[0].oa2.certificate: missing, though the"),
        ({"oa2": oa2(certurl=f"http://h.{CANARY}", **PEM)}, "messaging[0].oa2.certurl: credentials would travel"),
        ({"oa2": oa2(tokenendpoint="http://localhost", **PEM)}, "messaging[0].oa2.tokenendpoint: a client certificate"),
        ({"protocol": 5}, "messaging[0].protocol: a string or a list of strings"),
        ({"protocol": [None]}, "messaging[0].protocol: a string or a list of strings"),
        (
            {"protocol": None},
            "messaging: no entry for amqp10ws (AMQP over WebSocket): add it to the service",
        ),
        ({"protocol": "httprest"}, "messaging: no entry for amqp10ws (AMQP over WebSocket), only for httprest:"),
        (
            {"protocol": ["x", "MQTT311"]},
            "messaging: no entry for amqp10ws (AMQP over WebSocket), only for mqtt311:",
        ),
    ],
)
def test_an_error_names_the_field(entry: dict[str, Any], error: str) -> None:
    """A field that cannot be used is named by its path, with what is wrong about it."""
    assert refused(standalone(**entry)).startswith(f"the mapping given: {error}")


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ({}, "messaging: missing: is this a service key of Event Mesh?"),
        ({"messaging": []}, "messaging: missing: is this a service key of Event Mesh?"),
        ({"messaging": CANARY}, "messaging: a list of objects, not str"),
        ({"messaging": [{}, CANARY]}, "messaging[1]: an object, not str"),
        ({"uaa": [CANARY]}, "messaging: missing"),
        ({"endpoints": {"advanced-event-mesh": {"uri": "https://a.example"}}}, "endpoints: this is a key of Advanced"),
        ({"authentication-service": {"clientid": "a"}, "vpn": "v"}, "authenticationservice: this is a key of Advanced"),
        (standalone() | {"namespace": 5}, "namespace: a string, not int"),
        (standalone() | {"uaa": 5}, "uaa: a list of objects, not int"),
        (standalone() | {"uaa": {"credential-type": "x509"}}, "uaa.certificate: missing, though the credential type"),
        (standalone() | {"credentialType": "x509"}, "certificate: missing, though the credential type is x509; give"),
        (
            standalone() | {"certificate": CERTIFICATE},
            "key: missing: the key of the certificate is not here; give",
        ),
        (standalone() | {"uaa": PEM | {"certurl": "https://"}}, "uaa.certurl: a URL such as https://login.example"),
        (standalone() | {"management": [{}]}, "management[0].uri: missing or empty"),
        (standalone() | {"management": {"uri": "wss://h.example"}}, "management.uri: no URL such as https://host"),
        (standalone() | {"management": [{"uri": "http://h.example"}]}, "management[0].uri: tokens would travel"),
        (standalone() | {"management": [{"uri": "https://h", "oa2": {}}]}, "management[0].oa2.clientid: missing"),
    ],
)
def test_an_error_names_the_field_in_the_whole_key(key: dict[str, Any], error: str) -> None:
    """So is one outside of the messaging entry; keys of Advanced Event Mesh are told apart."""
    assert refused(key).startswith(f"the mapping given: {error}")


def test_it_is_an_error_of_opening_and_of_values() -> None:
    """Who handles connections that do not open, or arguments that are wrong, handles bad keys."""
    assert issubclass(ServiceKeyError, OpenError)
    assert issubclass(ServiceKeyError, ValueError)


@pytest.mark.parametrize(("source", "kind"), [(b"{}", "bytes"), (["{}"], "list"), (5, "int")])
def test_other_things_are_no_keys(source: Any, kind: str) -> None:
    """What is neither a mapping nor a text nor a path is a TypeError, as is a certificate of another kind."""
    with pytest.raises(TypeError, match=f"service key: a mapping, a JSON text or a path, not {kind}"):
        ServiceKey.load(source)
    with pytest.raises(TypeError, match=f"certificate: a ClientCertificate or None, not {kind}"):
        ServiceKey.load(load("standalone"), certificate=source)


# --- each form -------------------------------------------------------------------------------


def test_there_is_a_form_for_each_file() -> None:
    """The list of forms is that of the files."""
    assert sorted(KEYS) == sorted(path.stem for path in FOLDER.iterdir())
    assert len(KEYS) >= 14
    assert len(CERTIFICATE_KEYS) >= 4


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("way", ["mapping", "text", "file", "path"])
def test_all_forms_say_the_same(name: str, way: str, tmp_path: Path) -> None:
    """From every form, given in any way, comes the same key."""
    content = load(name, url="wss://broker.example/protocols/amqp10ws", management_client_id="manager")
    file = tmp_path / "key.json"
    file.write_text("\ufeff" + json.dumps(content), "utf-8")
    sources: dict[str, Any] = {"mapping": content, "text": f"\n {json.dumps(content)}", "file": str(file), "path": file}
    origins = {"mapping": "the mapping given", "text": "the JSON text given"}
    key = ServiceKey.load(sources[way])
    certificate = ClientCertificate(CERTIFICATE, KEY) if name in CERTIFICATE_KEYS else None
    if certificate is None:
        grant = ClientCredentials(LOGIN, CLIENT_ID, CLIENT_SECRET)
    else:
        grant = ClientCredentials(LOGIN, CLIENT_ID, authentication=certificate)
    assert key.messaging == Endpoint("wss://broker.example/protocols/amqp10ws", grant)
    assert key.certificate == certificate
    assert key.namespace == NAMESPACE
    assert key.instance_id == "00000000-1111-2222-3333-444444444444"
    assert key.origin.startswith(origins.get(way, f"the file {file}"))
    if name == "messaging-only":
        assert key.management is None
        return
    path = "/hub/rest/api/v1/management/messaging"
    if name in INTEGRATION_SUITE_KEYS:
        path = "/sap-event-mesh/rest/api/v1"
    elif name == "older":
        path = "/management/v1"
    assert key.management is not None
    assert key.management.url == f"https://management.example{path}"
    if name == "own-management-client":
        grant = dataclasses.replace(grant, client_id="manager")
    assert key.management.grant == grant


@pytest.mark.parametrize("name", KEYS)
def test_any_form_can_be_made_of_another(name: str) -> None:
    """What tests read from the key of a server makes every form of it, with ports and awkward characters."""
    values = {
        "url": "wss://localhost:4711/protocols/amqp10ws",
        "token_url": "https://localhost:4712/oauth/token",
        "management_url": "https://[::1]:4713",
        "client_id": 'quote" back\\slash $dollar',
        "client_secret": 'quote" back\\slash ${key} é',
        "namespace": "a/b/c",
    }
    made = ServiceKey.load(load("x509-at-root" if name in CERTIFICATE_KEYS else "standalone", **values))
    key = ServiceKey.load(load(name, **values_of(made)))
    assert key.messaging == made.messaging
    assert key.messaging.url == values["url"]
    assert (key.namespace, key.certificate) == ("a/b/c", made.certificate)


# --- details of messaging --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        (" wss://h.example", "wss://h.example/protocols/amqp10ws"),
        ("wss://h.example/", "wss://h.example/protocols/amqp10ws"),
        ("wss://h.example:443", "wss://h.example/protocols/amqp10ws"),
        ("wss://h.example:443/protocols/amqp10ws", "wss://h.example/protocols/amqp10ws"),
        ("wss://h.example:8443/protocols/amqp10ws", "wss://h.example:8443/protocols/amqp10ws"),
        ("wss://h.example/protocols/protocols/amqp10ws", "wss://h.example/protocols/amqp10ws"),
        ("wss://h.example/gateway/", "wss://h.example/gateway/"),
        ("WSS://H.example", "wss://h.example/protocols/amqp10ws"),
        ("ws://localhost:80", "ws://localhost/protocols/amqp10ws"),
        ("ws://[::1]:8080/x", "ws://[::1]:8080/x"),
    ],
)
def test_urls_are_completed(uri: str, url: str) -> None:
    """Blanks, the port that is the usual one, a missing and a doubled path are put right; other paths are kept."""
    assert ServiceKey.load(standalone(uri=uri)).messaging.url == url


def test_the_entry_with_credentials_is_taken() -> None:
    """Of several entries for AMQP over WebSocket that which says how to get a token is taken, else the first."""
    bare = {"protocol": "amqp10ws", "uri": "wss://bare.example"}
    over_tcp = {"protocol": ["amqp10"], "uri": "amqps://tcp.example", "oa2": CANARY}
    whole = standalone(uri="wss://whole.example", protocol=["mqtt311ws", "amqp10ws"])["messaging"]
    key = ServiceKey.load({"messaging": [over_tcp, bare, *whole]})
    assert key.messaging.url == "wss://whole.example/protocols/amqp10ws"
    error = refused({"messaging": [over_tcp, bare, whole[0] | {"oa2": oa2(clientid="")}]})
    assert "messaging[2].oa2.clientid" in error
    key = ServiceKey.load({"messaging": [over_tcp, bare]})
    assert key.messaging == Endpoint("wss://bare.example/protocols/amqp10ws", None)
    key = ServiceKey.load({"messaging": bare})
    assert key.messaging == Endpoint("wss://bare.example/protocols/amqp10ws", None)


def test_secrets_are_taken_to_the_letter() -> None:
    """Blanks at the ends of a secret are a part of it."""
    grant = ServiceKey.load(standalone(oa2=oa2(clientsecret=f" {CANARY} "))).messaging.grant
    assert grant is not None
    assert grant.client_secret == f" {CANARY} "


def test_of_two_spellings_the_one_with_a_value_counts() -> None:
    """Where a field is there in two spellings, an empty one does not hide the other; else the first one counts."""
    for first, second, expected in (("", "b", "b"), ("a", "", "a"), ("a", "b", "a")):
        grant = ServiceKey.load(standalone(oa2=oa2(clientid=first) | {"clientId": second})).messaging.grant
        assert grant is not None
        assert grant.client_id == expected


def test_fields_may_be_empty() -> None:
    """Without a namespace and an instance's id there is None."""
    key = ServiceKey.load(standalone() | {"namespace": " ", "serviceinstanceid": None})
    assert key.namespace is None
    assert key.instance_id is None


# --- details of certificates -----------------------------------------------------------------


def x509(section: dict[str, Any], **root: Any) -> dict[str, Any]:
    """A key with this section oa2 and these fields at the top."""
    return {"messaging": [{"protocol": "amqp10ws", "uri": "wss://h.example", "oa2": section}], **root}


@pytest.mark.parametrize(
    ("key", "token_url"),
    [
        (x509(oa2(clientsecret=None, **PEM)), LOGIN),
        (x509(oa2(certurl="https://c.example", **PEM)), "https://c.example/oauth/token"),
        (x509(oa2(**PEM), uaa={"certurl": "https://c.example/"}), "https://c.example/oauth/token"),
        (x509(oa2(), uaa=PEM | {"certurl": "https://c.example/oauth/token"}), "https://c.example/oauth/token"),
        (x509(oa2(), uaa=PEM, certurl="https://c.example"), "https://c.example/oauth/token"),
        (x509(oa2(), **PEM), LOGIN),
        (x509(oa2(tokenendpoint=None, certurl="https://c.example"), **PEM), "https://c.example/oauth/token"),
        (x509(oa2(), **{name: value.replace("\n", "\\n") for name, value in PEM.items()}), LOGIN),
    ],
)
def test_certificates_are_found(key: dict[str, Any], token_url: str) -> None:
    """A certificate is found in all its places, and takes the secret's place; certurl is where its tokens are had."""
    loaded = ServiceKey.load(key)
    assert loaded.certificate == ClientCertificate(CERTIFICATE, KEY)
    assert loaded.messaging.grant == ClientCredentials(token_url, CLIENT_ID, authentication=loaded.certificate)


def test_the_nearest_certificate_is_taken() -> None:
    """A certificate in oa2 comes before one in uaa, and that before one at the top."""
    pems = [CERTIFICATE.replace("c3lu", each) for each in ("AAAA", "BBBB", "CCCC")]
    places: list[dict[str, Any]] = [{"certificate": pem, "key": KEY} for pem in pems]
    for first in range(3):
        here = [places[each] if each >= first else {} for each in range(3)]
        key = ServiceKey.load(x509(oa2(**here[0]), uaa=here[1], **here[2]))
        assert key.certificate == ClientCertificate(pems[first], KEY)


def test_the_credential_type_decides() -> None:
    """A certificate that stands beside a secret is not used where the key says that the secret is meant."""
    key = ServiceKey.load(x509(oa2(**PEM) | {"credential-type": "binding-secret"}))
    assert key.certificate is None
    assert key.messaging.grant == ClientCredentials(LOGIN, CLIENT_ID, CANARY)
    key = ServiceKey.load(x509(oa2(credentialType="X509_GENERATED"), **PEM))
    assert key.certificate is not None


def test_a_certificate_with_its_key_in_it() -> None:
    """Certificate and key may be one text."""
    key = ServiceKey.load(x509(oa2(clientsecret=None, certificate=CERTIFICATE + KEY)))
    assert key.certificate == ClientCertificate(CERTIFICATE + KEY)


@pytest.mark.parametrize("name", KEYS)
def test_a_certificate_of_ones_own(name: str) -> None:
    """A certificate that is given takes the place of what is in the key, be that a secret or another one."""
    key = ServiceKey.load(load(name), certificate=MINE)
    assert key.certificate is MINE
    for endpoint in (key.messaging, key.management):
        if endpoint is not None:
            assert endpoint.grant is not None
            assert endpoint.grant.authentication is MINE
            assert endpoint.grant.client_secret is None


@pytest.mark.parametrize("more", [{"uaa": {"certificate": CERTIFICATE}}, {"credential-type": "x509"}])
def test_a_certificate_that_is_managed_elsewhere(more: dict[str, Any]) -> None:
    """A key without the certificate's key, or without the certificate, needs one that is given; the error says so."""
    key = x509(oa2(clientsecret=None), certurl="https://c.example", **more)
    assert "give certificate and key yourself: certificate=ClientCertificate(" in refused(key)
    grant = ServiceKey.load(key, certificate=MINE).messaging.grant
    assert grant == ClientCredentials("https://c.example/oauth/token", CLIENT_ID, authentication=MINE)


def test_management_has_its_own_certificate() -> None:
    """Messaging and management may differ in how their tokens are had."""
    management = [{"uri": "https://m.example", "oa2": oa2(clientid="m", certurl="https://c.example", **PEM)}]
    key = ServiceKey.load(x509(oa2()) | {"management": management})
    certificate = ClientCertificate(CERTIFICATE, KEY)
    assert key.certificate is None
    assert key.messaging.grant == ClientCredentials(LOGIN, CLIENT_ID, CANARY)
    assert key.management is not None
    grant = ClientCredentials("https://c.example/oauth/token", "m", authentication=certificate)
    assert key.management.grant == grant


# --- details of management -------------------------------------------------------------------

HUB, SUITE = "/hub/rest/api/v1/management/messaging", "/sap-event-mesh/rest/api/v1"


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("https://m.example", f"https://m.example{HUB}"),
        (" https://m.example:443/ ", f"https://m.example{HUB}"),
        ("https://m.example:8443", f"https://m.example:8443{HUB}"),
        ("https://m.example/management/v1/", "https://m.example/management/v1"),
        (f"https://m.example{SUITE}", f"https://m.example{SUITE}"),
        ("http://127.0.0.1:8080", f"http://127.0.0.1:8080{HUB}"),
        (
            "https://x.eu-1.a.eventmesh.integration.cloud.sap",
            f"https://x.eu-1.a.eventmesh.integration.cloud.sap{SUITE}",
        ),
        ("https://eventmesh.integration.cloud.sap.example", f"https://eventmesh.integration.cloud.sap.example{HUB}"),
    ],
)
def test_management_urls_are_completed(uri: str, url: str) -> None:
    """Without a path the service's is added, that of Integration Suite for its hosts; a path is the base as it is."""
    key = ServiceKey.load(standalone() | {"management": [{"uri": uri}]})
    assert key.management == Endpoint(url, None)


@pytest.mark.parametrize(
    ("label", "uri", "path"),
    [
        ("event-mesh-message-client", "wss://h.example", SUITE),
        ("Event-Mesh-Message-Client", "wss://h.example", SUITE),
        ("enterprise-messaging", "wss://h.example", HUB),
        (None, "wss://h.example", HUB),
        (None, "wss://X.eu-1.a.EventMesh.integration.cloud.sap:443/protocols/amqp10ws", SUITE),
    ],
)
def test_integration_suite_is_known(label: str | None, uri: str, path: str) -> None:
    """Integration Suite is known by the binding's label, or by the broker's host."""
    key = standalone(uri=uri) | {"management": [{"uri": "https://m.example"}]}
    management = ServiceKey.load({"label": label, "credentials": key}).management
    assert management is not None
    assert management.url == f"https://m.example{path}"

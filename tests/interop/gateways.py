"""Starts nginx as a TLS gateway before a peer: one that knows its tokens, and one that asks who issued them."""

from __future__ import annotations

import secrets
import ssl
import textwrap
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.interop import fetch
from tests.interop.brokers import Server, free_port

PATH = "/protocols/amqp10ws"
"""Where Event Mesh has its WebSocket."""

PROXY = """\
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection upgrade;
    proxy_set_header Host $host;
    proxy_read_timeout 300s;
    proxy_send_timeout 300s;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A TLS gateway in front of a peer that looks at the upgrade's bearer token: nginx with a private authority."""

    server: Server
    url: str
    token: str
    """The token that it lets through."""
    forbidden_token: str
    """A token that it answers with 403; any other gets 401."""
    trust: ssl.SSLContext
    """A client's context that trusts the gateway's private authority."""


def start_gateway(upstream: str, folder: Path) -> Gateway:
    """Starts nginx before the peer at the URL `upstream`."""
    authority = trustme.CA()
    token, forbidden, port = secrets.token_urlsafe(16), secrets.token_urlsafe(16), free_port()
    site = f"""
        map_hash_bucket_size 128;
        map $http_authorization $verdict {{ default 401; "Bearer {token}" 200; "Bearer {forbidden}" 403; }}
        server {{
            listen 127.0.0.1:{port} ssl;
            location / {{
                if ($verdict = 401) {{ return 401 "no valid token\\n"; }}
                if ($verdict = 403) {{ return 403 "not for you\\n"; }}
                proxy_pass {upstream.replace("ws://", "http://")};
            {PROXY}
            }}
        }}
    """
    server = _start_nginx(site, authority, folder)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    url = f"wss://localhost:{port}/"
    return Gateway(server=server, url=url, token=token, forbidden_token=forbidden, trust=trust)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGateway:
    """A TLS gateway in front of a peer that has each upgrade's bearer token checked by who issued it."""

    server: Server
    url: str
    certificate_url: str
    """Also wants a client certificate of the authority, at the TLS handshake."""
    moved_url: str
    """Redirects to `url`."""
    elsewhere_url: str
    """Redirects to `certificate_url`, which is at another port."""


def start_checked_gateway(upstream: str, check: str, authority: trustme.CA, folder: Path) -> CheckedGateway:
    """Starts nginx before the peer at the URL `upstream`.

    Args:
        upstream: The peer's URL, ``ws://``.
        check: The ``https://`` URL that answers 2xx, 401 or 403 to an `Authorization` header.
        authority: Whose certificates all sides have.
        folder: Where its files go.
    """
    port, certificate_port = free_port(), free_port()
    locations = f"""
        location = /check {{
            internal;
            proxy_pass {check};
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Upgrade "";
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_trusted_certificate {folder}/authority.pem;
        }}
        location = {PATH} {{
            auth_request /check;
            proxy_pass {upstream.replace("ws://", "http://")};
        {PROXY}
        }}
        location / {{ return 404; }}
    """
    site = f"""
        server {{
            listen 127.0.0.1:{port} ssl;
            location = /moved {{ return 307 https://localhost:{port}{PATH}; }}
            location = /elsewhere {{ return 307 https://localhost:{certificate_port}{PATH}; }}
        {locations}
        }}
        server {{
            listen 127.0.0.1:{certificate_port} ssl;
            ssl_client_certificate {folder}/authority.pem;
            ssl_verify_client on;
            ssl_verify_depth 2;
        {locations}
        }}
    """
    return CheckedGateway(
        server=_start_nginx(site, authority, folder),
        url=f"wss://localhost:{port}{PATH}",
        certificate_url=f"wss://localhost:{certificate_port}{PATH}",
        moved_url=f"wss://localhost:{port}/moved",
        elsewhere_url=f"wss://localhost:{port}/elsewhere",
    )


def _start_nginx(site: str, authority: trustme.CA, folder: Path) -> Server:
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for position, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "certificate.pem", append=position > 0)
    configuration = f"""
        daemon off;
        pid {folder}/nginx.pid;
        error_log stderr notice;
        worker_processes 1;
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
            uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            ssl_certificate {folder}/certificate.pem;
            ssl_certificate_key {folder}/key.pem;
        {site}
        }}
    """
    (folder / "nginx.conf").write_text(textwrap.dedent(configuration))
    return Server(
        [str(fetch.nginx()), "-p", str(folder), "-c", str(folder / "nginx.conf")],
        folder=folder,
        ready="start worker process ",
    )

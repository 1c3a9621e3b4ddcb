"""The private certificate authority of an embedded Event Mesh."""

from __future__ import annotations

import importlib.util
import ssl

__all__ = ["Authority", "check_installed"]


def check_installed() -> None:
    """Check that certificates can be made.

    Raises:
        ModuleNotFoundError: trustme is not installed.
    """
    if importlib.util.find_spec("trustme") is None:
        raise ModuleNotFoundError(
            "EventMesh makes certificates with trustme: pip install 'amqpws-async[testing]', or EventMesh(tls=False)",
            name="trustme",
        )


class Authority:
    """A certificate authority that lives as long as the process. Making it and its certificates reads and writes files.

    Attributes:
        pem: Its own certificate.
    """

    def __init__(self) -> None:
        import trustme

        self._authority = trustme.CA()
        self.pem = self._authority.cert_pem.bytes().decode("ascii")

    def certify_server(self, context: ssl.SSLContext, host: str) -> None:
        """Make a server's context show a certificate for a host, and for this machine."""
        names = dict.fromkeys((host, "127.0.0.1", "::1", "localhost"))
        self._authority.issue_cert(*names).configure_cert(context)
        self._authority.configure_trust(context)

    def issue_client(self, name: str) -> tuple[str, str]:
        """Make a certificate with a common name, for a client; return it and its private key, as PEM."""
        # Python 3.13 wants an alternative name as well, which no server looks at.
        made = self._authority.issue_cert("client.invalid", common_name=name)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return chain.decode("ascii"), made.private_key_pem.bytes().decode("ascii")

"""An Event Mesh of SAP's kind in your process: broker, token server, management API, TLS and a service key.

`EventMesh` is all there is to know from outside. Its parts: `names` and `rules` say what is allowed, `nodes` is the
broker's queues and topics, `management` the REST API, `certificates` and `service_key` what a client is given.
"""

from __future__ import annotations

from .mesh import EventMesh

__all__ = ["EventMesh"]

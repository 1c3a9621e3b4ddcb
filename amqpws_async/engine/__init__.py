"""The sans-I/O driver of proton's engine: bytes in, synchronous calls out, intentions in, bytes out.

Theory of operation
-------------------
One `Engine` owns one ``proton.Connection``, ``Transport`` and ``Collector``. Whoever does the I/O keeps this order::

    receive_data(data)      push the peer's bytes; handlers are called from inside
    tick(now)               after input, before output; gives the next deadline on the same clock
    data_to_send(limit)     take bytes until it gives b"", and say so with sent(now); output() does it without a copy

Everything the peer does reaches a *handler* by a direct synchronous call: the connection's, a session's or a link's
(the three protocols below). Handlers may call any method of the engine; none of them may raise. Those of sessions and
links are held weakly, so that an endpoint its user dropped can be noticed. Set-up and other rare work goes through
proton's public Python objects (see `attach`). The path that runs once per message goes through the
cffi binding that ships with proton, because each public object costs about five times the raw call.

Rules that this file keeps, so that nobody else has to know them:

* credit, deliveries and dispositions are looked up by proton's own pointers; a pointer leaves our tables *before* the
  delivery is settled or the link freed, since proton reuses the memory;
* links and sessions are freed as soon as both sides have closed them;
* an attach with a null terminus is a refusal, the detach that follows carries the reason (specification 2.6.3);
* proton neither enforces max-message-size nor the credit it granted: both are checked here, on partial deliveries too;
* proton sends keep-alives only to peers that ask for them, and then up to a whole idle timeout apart: the empty frame
  is added here in time, at a frame boundary (nothing pending).

`REQUIRED` lists the functions of the binding that are relied on; a test names the one that goes missing.
"""

from __future__ import annotations

from .attach import AttachFields, RemoteAttach
from .core import Engine
from .handlers import RemoteOpen
from .link import EngineReceiver, EngineSender
from .session import EngineSession

__all__ = ["AttachFields", "Engine", "EngineReceiver", "EngineSender", "EngineSession", "RemoteAttach", "RemoteOpen"]

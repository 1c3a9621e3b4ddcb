"""What ``amqpws doctor`` examines: the way to a broker, one step after another.

* `steps`: what a step is and finds, who is examined, and how the steps are walked within one time limit.
* `admission`: from arguments or a service key to who is examined.
* `network`: proxy, DNS, TCP, the tunnel, TLS. `certificates`: what TLS showed, and which certificate is at fault.
* `token`: the token request, and what the token says of itself.
* `upgrade`: the WebSocket, and its subprotocol.
* `amqp`: SASL, open, session, attach, close.
"""

from __future__ import annotations

"""A client that survives: connections, sessions and links that come back, and deliveries whose fate is known.

* `retry`: what is tried again, and when. `backoff`: how long to wait in between.
* `states`: where a client is. `options`: what can be chosen.
* `redirect`: where a redirect leads. `carrier`: one connection kept alive. `detours`: those to
  which links were redirected.
* `link`: a link kept attached; `sender` and `receiver`: what that means for each. `session`.
* `outbox`: messages that are stored before they are sent.
* `client`: all of it together.
"""

from __future__ import annotations

from .backoff import Backoff
from .client import Client, ClientHealth
from .options import ClientOptions, ClientReceiverOptions, ClientSenderOptions
from .outbox import Outbox, OutboxOptions, OutboxStatistics, PoisonedMessage
from .receiver import ClientReceiver
from .retry import RETRIES, Retry
from .sender import ClientSender, ResentDelivery
from .session import ClientSession
from .states import ClientState, StateChange, StateChanges

__all__ = [
    "RETRIES",
    "Backoff",
    "Client",
    "ClientHealth",
    "ClientOptions",
    "ClientReceiver",
    "ClientReceiverOptions",
    "ClientSender",
    "ClientSenderOptions",
    "ClientSession",
    "ClientState",
    "Outbox",
    "OutboxOptions",
    "OutboxStatistics",
    "PoisonedMessage",
    "ResentDelivery",
    "Retry",
    "StateChange",
    "StateChanges",
]

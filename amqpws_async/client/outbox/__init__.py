"""A bounded outbox: messages are stored first, in memory or on disk, and sent in their order as the broker takes them.

==============  ===========================================================================================
module          what is in it
==============  ===========================================================================================
`options`       `OutboxOptions`, every default explained; what an outbox reports: statistics, poison
`store`         what a store promises, and the one in memory
`database`      the file: schema, statements, what its errors mean. Synchronous, on the store's thread alone
`disk`          the store on disk: one thread, group commit
`ledger`        what is in the outbox: room, overflow, what becomes of each message
`pump`          from the store to the sender, in order, until each message has its fate
`outbox`        `Outbox`: what a user sees
==============  ===========================================================================================

The life of a message::

    send -> [room?] -> store, commit -> (stored) -> pump: transfer -> Accepted -> (settled) -> removed, a little later
                                                             |-> Released, Modified: again, with backoff
                                                             `-> Rejected, or too often: poison, set aside

What `send` has reported stored leaves the store only when the peer has accepted it, or by a policy that the user has
chosen. A crash in between sends it again, under the same message-id.
"""

from .options import OutboxArguments, OutboxOptions, OutboxStatistics, PoisonedMessage
from .outbox import Outbox
from .pump import OutboxSender

__all__ = ["Outbox", "OutboxArguments", "OutboxOptions", "OutboxSender", "OutboxStatistics", "PoisonedMessage"]

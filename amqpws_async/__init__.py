"""AMQP 1.0 over WebSocket for asyncio.

::

    import amqpws_async as amqp

    async with amqp.connect("wss://broker.example/path", token="...") as connection:
        async with connection.session() as session:
            async with session.sender("orders") as sender:
                await sender.send(amqp.Message(b"one"))
            async with session.receiver("orders") as receiver:
                async for delivery in receiver:
                    print(delivery.body)
                    await delivery.accept()

Three rules:

* Everything belongs to one event loop; any number of its tasks may share a connection, session, sender or receiver.
* Cancelling is always safe, and each method says what it means: before the transfer nothing was sent, after it the
  delivery is in doubt.
* An error names what stopped, who stopped it and why: see `errors`.

The modules, in layer order:

* `errors`: the exception tree, `ErrorCondition`, `StopReason`.
* `codec`: AMQP types to bytes and back. `outcomes`: how a delivery ends.
* `sections`, `fields`, `shapes`, `message`: the sections of a message, what stands in them, what many messages have in
  common, and the message they make up.
* `terminus`: sources, targets, settle modes. `urls`, `options`: what can be chosen, every default explained.
* `auth`: tokens for the upgrade (`auth.oauth2` fetches them), SASL for AMQP.
* `tunnel`, `masking`, `handshake`, `frames`, `transport`: bytes over a WebSocket, through a proxy if need be, no secret
  in a log.
* `engine`: the sans-I/O driver of proton's engine.
* `endpoint`, `link`: what connection, session and link share. `signals`, `processing`: the handler runner behind
  `Receiver.process`. `sender`, `receiver`, `session`.
* `runner`: the one task of a connection. `connection`: `connect` and health.
* `client`: `Client`, which keeps a connection, and the senders and receivers that outlive it.
* `eventmesh`: SAP Event Mesh, from a service key or binding. `testing`: an embedded broker for your tests. `cli`: the
  ``amqpws`` command. None of the three is imported by this package.
"""

from __future__ import annotations

# auth
from .auth import Anonymous, CallableProvider, External, Plain, SaslMechanism, StaticToken, Token, TokenProvider

# client
from .client import (
    RETRIES,
    Backoff,
    Client,
    ClientHealth,
    ClientOptions,
    ClientReceiver,
    ClientReceiverOptions,
    ClientSender,
    ClientSenderOptions,
    ClientSession,
    ClientState,
    Outbox,
    OutboxOptions,
    OutboxStatistics,
    PoisonedMessage,
    ResentDelivery,
    Retry,
    StateChange,
    StateChanges,
)

# codec: explicit spellings of the AMQP types that Python lacks
from .codec import (
    UNDESCRIBED,
    Array,
    Described,
    array,
    byte,
    char,
    decimal32,
    decimal64,
    decimal128,
    float32,
    int32,
    short,
    symbol,
    timestamp,
    ubyte,
    uint,
    ulong,
    ushort,
)

# connection
from .connection import Connection, Health, connect

# endpoint
from .endpoint import EndpointState, Opening

# engine
from .engine import RemoteAttach, RemoteOpen

# errors
from .errors import (
    AMQPError,
    AttachError,
    AuthenticationError,
    ConnectionClosed,
    DecodeError,
    DeliveryFailed,
    DeliveryUnknown,
    EncodeError,
    EndpointClosed,
    ErrorCondition,
    HandshakeError,
    LinkClosed,
    LocalProtocolError,
    MessageModified,
    MessageRejected,
    MessageReleased,
    MessageTooLarge,
    OpenError,
    OutboxError,
    OutboxFull,
    OutboxUnsent,
    RedirectError,
    RemoteProtocolError,
    SessionClosed,
    SettlementLost,
    StopReason,
    TokenError,
)

# link
from .link import LinkHealth

# message
from .message import Data, Message, Sequence, Value

# options
from .options import ConnectionOptions, ReceiverOptions, SenderOptions, SessionOptions

# outcomes
from .outcomes import Accepted, Modified, NoOutcome, Outcome, Received, Rejected, Released

# processing
from .processing import ProcessOptions, Processor, ProcessStatistics

# receiver
from .receiver import Delivery, Receiver

# sender
from .sender import PendingDelivery, Sender, SendMany

# session
from .session import Session

# terminus
from .terminus import (
    DistributionMode,
    ExpiryPolicy,
    ReceiverSettleMode,
    SenderSettleMode,
    Source,
    Target,
    TerminusDurability,
    selector,
)

__version__ = "0.1.0"

__all__ = [
    "RETRIES",
    "UNDESCRIBED",
    "AMQPError",
    "Accepted",
    "Anonymous",
    "Array",
    "AttachError",
    "AuthenticationError",
    "Backoff",
    "CallableProvider",
    "Client",
    "ClientHealth",
    "ClientOptions",
    "ClientReceiver",
    "ClientReceiverOptions",
    "ClientSender",
    "ClientSenderOptions",
    "ClientSession",
    "ClientState",
    "Connection",
    "ConnectionClosed",
    "ConnectionOptions",
    "Data",
    "DecodeError",
    "Delivery",
    "DeliveryFailed",
    "DeliveryUnknown",
    "Described",
    "DistributionMode",
    "EncodeError",
    "EndpointClosed",
    "EndpointState",
    "ErrorCondition",
    "ExpiryPolicy",
    "External",
    "HandshakeError",
    "Health",
    "LinkClosed",
    "LinkHealth",
    "LocalProtocolError",
    "Message",
    "MessageModified",
    "MessageRejected",
    "MessageReleased",
    "MessageTooLarge",
    "Modified",
    "NoOutcome",
    "OpenError",
    "Opening",
    "Outbox",
    "OutboxError",
    "OutboxFull",
    "OutboxOptions",
    "OutboxStatistics",
    "OutboxUnsent",
    "Outcome",
    "PendingDelivery",
    "Plain",
    "PoisonedMessage",
    "ProcessOptions",
    "ProcessStatistics",
    "Processor",
    "Received",
    "Receiver",
    "ReceiverOptions",
    "ReceiverSettleMode",
    "RedirectError",
    "Rejected",
    "Released",
    "RemoteAttach",
    "RemoteOpen",
    "RemoteProtocolError",
    "ResentDelivery",
    "Retry",
    "SaslMechanism",
    "SendMany",
    "Sender",
    "SenderOptions",
    "SenderSettleMode",
    "Sequence",
    "Session",
    "SessionClosed",
    "SessionOptions",
    "SettlementLost",
    "Source",
    "StateChange",
    "StateChanges",
    "StaticToken",
    "StopReason",
    "Target",
    "TerminusDurability",
    "Token",
    "TokenError",
    "TokenProvider",
    "Value",
    "array",
    "byte",
    "char",
    "connect",
    "decimal32",
    "decimal64",
    "decimal128",
    "float32",
    "int32",
    "selector",
    "short",
    "symbol",
    "timestamp",
    "ubyte",
    "uint",
    "ulong",
    "ushort",
]

"""Messages: their sections (specification 3.2) as Python attributes, and as bytes.

A message made by you keeps what you gave it, and `Message.encode` writes the sections. One that arrived keeps its
bytes: the sections are found once, each is decoded when you first ask for it, and as long as you change nothing
`encode` gives the very same bytes back. Change a field and only its section is written anew: the rest, the bare message
above all, which nobody on the way may alter (3.2), stays as it came.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypedDict, Unpack

from .codec.decoding import decode_from, skip
from .codec.encoding import encode, pack_size
from .errors import DecodeError
from .fields import (
    BINARY,
    FIELDS,
    FLAG,
    ID,
    MAPS,
    MILLISECONDS,
    PRIORITY,
    STRING,
    SYMBOL,
    TAKES,
    TIMESTAMP,
    UINT,
    Field,
    Fields,
    MapField,
    MessageId,
    MessageIdField,
    SecondsField,
    Unread,
    encode_section,
)
from .outcomes import ACCEPTED, RELEASED, Accepted, Modified, NoOutcome, Outcome, Received, Rejected, Released
from .sections import (
    ANNOTATIONS,
    APPLICATION,
    DATA,
    DATA8,
    DELIVERY,
    FOOTER,
    HEADER,
    PROPERTIES,
    SEQUENCE,
    VALUE,
    Body,
    Data,
    Sequence,
    Value,
    as_body,
    check_encoded,
    describe,
    encode_body,
    read_rare_body,
)
from .shapes import encode_shape

__all__ = [
    "ACCEPTED",
    "DATA8",
    "RELEASED",
    "Accepted",
    "Body",
    "Data",
    "Message",
    "MessageFields",
    "MessageId",
    "Modified",
    "NoOutcome",
    "Outcome",
    "Pieces",
    "Received",
    "Rejected",
    "Released",
    "Sequence",
    "Value",
    "check_encoded",
    "lazy",
]


_LARGE: Final = 4096  # bytes of a body from which a copy costs more than to write it apart


class Pieces:
    """An encoded message in two pieces, as bytes: the length is that of both.

    Args:
        front: All that is before the body.
        body: The body, which is the rest.
    """

    __slots__ = ("_pieces", "_size")

    def __init__(self, front: bytes, body: bytes) -> None:
        self._pieces = front, body
        self._size = len(front) + len(body)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


class MessageFields(TypedDict, total=False):
    """The keyword arguments of `Message`; the attributes of the same names say what each is."""

    durable: bool | None
    priority: int | None
    ttl: float | None
    first_acquirer: bool | None
    delivery_count: int | None
    message_id: MessageId | None
    user_id: bytes | None
    to: str | None
    subject: str | None
    reply_to: str | None
    correlation_id: MessageId | None
    content_type: str | None
    content_encoding: str | None
    absolute_expiry_time: int | datetime.datetime | None
    creation_time: int | datetime.datetime | None
    group_id: str | None
    group_sequence: int | None
    reply_to_group_id: str | None
    delivery_annotations: Mapping[Any, Any] | None
    message_annotations: Mapping[Any, Any] | None
    application_properties: Mapping[str, Any] | None
    footer: Mapping[Any, Any] | None


class Message(Fields):
    """An AMQP message.

    Args:
        body: bytes (one data section), `Data` (several), `Sequence`, `Value`, or None for no body, which travels as a
            null amqp-value since the specification wants one of the three. Text and objects are refused rather than
            guessed at: encode them, or wrap them in `Value`.
        **fields: Any of the attributes below, by name. None means not given. A dict is kept, not copied.

    Raises:
        TypeError: A body or field of the wrong type, or an unknown field.
        EncodeError: A number beyond the field's range.

    Reading an attribute of a message that arrived raises DecodeError if the bytes it needs are malformed.
    """

    __slots__ = ("_body",)

    _body: Any

    def __init__(self, body: Body | bytearray | memoryview = None, **fields: Unpack[MessageFields]) -> None:
        self._raw = self._offsets = None
        self._edited = 0
        self._body = body if type(body) is bytes else as_body(body)
        given: Any = fields
        self._fields = given
        if given:
            for name, value in given.items():
                try:
                    takes = TAKES[name]
                except KeyError:
                    raise TypeError(f"Message() got an unexpected keyword argument {name!r}") from None
                if type(value) not in takes:
                    given[name] = FIELDS[name].convert(name, value)

    # header (3.2.1)
    durable = Field[bool, bool | None](HEADER, FLAG, "Whether it must survive a restart of the broker.", False)
    priority = Field[int, int | None](HEADER, PRIORITY, "0 to 255, higher is more urgent; 4 if not given.", 4)
    ttl = SecondsField(HEADER, MILLISECONDS, "Seconds to live, to the millisecond, up to 49.7 days; None is for ever.")
    first_acquirer = Field[bool, bool | None](HEADER, FLAG, "Whether no other link acquired it before.", False)
    delivery_count = Field[int, int | None](HEADER, UINT, "How many attempts to deliver it failed before.", 0)

    # properties (3.2.4)
    message_id = MessageIdField(PROPERTIES, ID, "What identifies it: str, int (ulong), UUID or bytes.")
    user_id = Field[bytes | None, bytes | None](PROPERTIES, BINARY, "Who is responsible for it, as bytes.")
    to = Field[str | None, str | None](PROPERTIES, STRING, "The address of the node it is meant for.")
    subject = Field[str | None, str | None](PROPERTIES, STRING, "What it is about.")
    reply_to = Field[str | None, str | None](PROPERTIES, STRING, "The address for replies.")
    correlation_id = Field[MessageId | None, MessageId | None](PROPERTIES, ID, "The message-id it belongs to.")
    content_type = Field[str | None, str | None](PROPERTIES, SYMBOL, "The MIME type of its data sections.")
    content_encoding = Field[str | None, str | None](PROPERTIES, SYMBOL, 'How they are compressed, such as "gzip".')
    absolute_expiry_time = Field[int | None, int | datetime.datetime | None](
        PROPERTIES,
        TIMESTAMP,
        "When it expires, in milliseconds since 1970; takes an aware datetime too.",
    )
    creation_time = Field[int | None, int | datetime.datetime | None](
        PROPERTIES,
        TIMESTAMP,
        "When it was made, in milliseconds since 1970; takes an aware datetime too.",
    )
    group_id = Field[str | None, str | None](PROPERTIES, STRING, "The group it belongs to.")
    group_sequence = Field[int | None, int | None](PROPERTIES, UINT, "Its place in the group, 0 to 2**32 - 1.")
    reply_to_group_id = Field[str | None, str | None](PROPERTIES, STRING, "The group that replies belong to.")

    # sections that are maps (3.2.2, 3.2.3, 3.2.5, 3.2.10)
    delivery_annotations = MapField(DELIVERY, "For the next hop; keys are symbols (a str will do) or ulongs.")
    message_annotations = MapField(ANNOTATIONS, "For every hop; keys are symbols (a str will do) or ulongs.")
    application_properties = MapField(APPLICATION, "Yours: str keys; values other than lists, maps and arrays.")
    footer = MapField(FOOTER, "What is known only after the body, such as hashes; keys as in annotations.")

    @property
    def body(self) -> Body:
        """The body: bytes for exactly one data section, else `Data`, `Sequence`, `Value` or None."""
        body = self._body
        if body is Unread:
            raw: Any = self._raw
            size = len(raw) - 5
            if size < 256 and raw[:5] == DATA8[size]:
                body = raw[5:]  # the whole message is one small data section
            else:
                offsets = self._offsets or self._scan(raw)
                start = offsets[DATA]
                if start and len(offsets) == 9 and not offsets[FOOTER]:
                    body = raw[start + 5 :] if raw[start] == 0xB0 else raw[start + 2 :]  # one data section, the last
                else:
                    body = read_rare_body(raw, offsets)
            self._body = body
        return body  # type: ignore[no-any-return]

    @body.setter
    def body(self, body: Body) -> None:
        self._body = as_body(body)
        self._edited |= 1 << DATA

    @property
    def raw(self) -> bytes | None:
        """The bytes this message was decoded from, whatever was changed since; None for one made here."""
        return self._raw

    # --- decoding ---

    @classmethod
    def decode(cls, raw: bytes | bytearray | memoryview) -> Message:
        """Make a message of its encoded bytes, decoding nothing yet.

        Args:
            raw: The whole encoded message.

        Returns:
            The message. What is malformed raises DecodeError when an attribute that needs it is read.
        """
        return lazy(raw if type(raw) is bytes else bytes(raw))

    # --- encoding ---

    def encode(self) -> bytes:
        """Encode the message: the bytes it came from if nothing was changed.

        Raises:
            EncodeError: A value that AMQP cannot carry, or not in that place.
        """
        encoded = self._encode()
        return encoded if isinstance(encoded, bytes) else b"".join(encoded)

    def _encode(self) -> bytes | Pieces:
        """Encode the message as `encode` does, but do not copy a large body."""
        raw = self._raw
        body = self._body
        if raw is not None:
            untouched = not (self._fields or self._edited) and (body is Unread or type(body) is bytes)
            return raw if untouched else self._encode_changes(raw)
        if type(body) is bytes:
            size = len(body)
            if size < 256:
                head = DATA8[size]
            else:
                head = b"\x00\x53\x75\xb0" + pack_size(size)
                if size >= _LARGE and "footer" not in self._fields:
                    return Pieces(encode_shape(self._fields, head, b"") if self._fields else head, body)
        else:
            head = b""
            body = encode_body(body)
        fields = self._fields
        return encode_shape(fields, head, body) if fields else head + body

    def _encode_changes(self, raw: bytes) -> bytes:
        """Encode a message that arrived: each section as it came, unless it was changed."""
        offsets = self._offsets or self._scan(raw)
        body = [offsets[DATA] or offsets[SEQUENCE] or offsets[VALUE], *offsets[9:]]
        changed = False
        parts: list[bytes] = []
        begin = 0
        for section in (HEADER, DELIVERY, ANNOTATIONS, PROPERTIES, APPLICATION, DATA, FOOTER):
            start = body[-1] if section == DATA else offsets[section]
            end = skip(raw, start) if start else begin
            part = self._changed(raw, offsets, section)
            if part is None:
                parts.append(raw[begin:end])
            else:
                changed = True
                parts.append(part)
            begin = end
        return b"".join(parts) if changed else raw

    def _changed(self, raw: bytes, offsets: list[int], section: int) -> bytes | None:
        """Encode a section that was set, or a dict or list in it changed; None if it is as it came."""
        edited = self._edited >> section & 1
        if section == DATA:
            body = self._body
            if edited:
                return encode_body(body)
            if not isinstance(body, Sequence | Value):
                return None
            # Compared by their encodings: 1 == True == ulong(1), yet they are three things to send.
            encoded = encode_body(body)
            arrived = encode_body(read_rare_body(raw, offsets))
            return None if encoded == arrived else encoded
        if not edited:
            entries = self._fields.get(MAPS[section]) if section in MAPS else None
            if entries is None:
                return None
            start = offsets[section]
            before = decode_from(raw, start)[0] if start else {}
            if encode(entries) == encode(before):
                return None
        return encode_section(section, self._fields)

    # --- the object ---

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self.body == other.body and all(getattr(self, name) == getattr(other, name) for name in FIELDS)

    def __copy__(self) -> Message:
        twin = _new(Message)
        twin._raw, twin._offsets, twin._edited, twin._body = self._raw, self._offsets, self._edited, self._body
        twin._fields = dict(self._fields)
        return twin

    def __repr__(self) -> str:
        # Bodies and properties carry what must not end up in logs: kind and size only.
        try:
            parts = [describe(self.body)]
            shown = [(name, getattr(self, name)) for name in ("message_id", "subject", "to")]
        except DecodeError:
            return f"Message(<{len(self._raw or b'')} bytes, malformed>)"
        return f"Message({', '.join(parts + [f'{name}={value!r}' for name, value in shown if value is not None])})"


_new = object.__new__


def lazy(raw: bytes) -> Message:
    """Make a message of its encoded bytes at the least cost: what `Message.decode` does for `bytes` proper."""
    message = _new(Message)
    message._raw = raw
    message._body = Unread
    message._offsets = None
    message._edited = 0
    message._fields = {}
    return message

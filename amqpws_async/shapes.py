"""Encoders made to measure: a program sends many messages with the same fields and the same application properties.

Such a set of names is a *shape*. What `fields.encode_sections` finds out name by name, for each message anew, is the
same for all messages of a shape. So for a shape that has come `WORTHWHILE` times a function is written, as Python
source, in which the constant bytes are literals and each value is looked at once. It takes a third less time, and gives
the very same bytes. A value that is not what its place usually has raises `_Unusual`, and the long way takes over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, cast

from .codec.encoding import BYTE, STR8, encode_int, encode_str, pack_size, pack_u32
from .fields import FIELDS, ID, LISTS, STRING, SYMBOL, Field, encode_sections
from .sections import APPLICATION, HEADER, PROPERTIES, SMALL, encode_simple, encoded_symbols

__all__ = ["encode_shape"]

WORTHWHILE: Final = 100  # messages: writing and compiling takes as long as is saved on some 400
MOST_SHAPES: Final = 256  # that have a function; a program with more of them has no shapes worth the name
MOST_NAMES: Final = 64  # of one shape

Encoder = Callable[[dict[str, Any], bytes, bytes], bytes]

#: Field names, and behind a None the keys of the application properties -> the encoder.
_encoders: dict[tuple[str | None, ...], Encoder] = {}
#: How often a shape without an encoder has come.
_seen: dict[tuple[str | None, ...], int] = {}


class _Unusual(Exception):
    """A value that a made encoder has no short way for."""


def encode_shape(fields: dict[str, Any], head: bytes, body: bytes) -> bytes:
    """Put the sections in front of an encoded body, as `fields.encode_sections` does.

    Args:
        fields: Fields and map sections by name.
        head: Constructor and size of the body.
        body: The rest of it.
    """
    entries = fields.get("application_properties")
    shape = (*fields, None, *entries) if entries else tuple(fields)
    encoder = _encoders.get(shape)
    if encoder is None:
        encoder = _meet(shape, fields)
    return encoder(fields, head, body)


def _meet(shape: tuple[str | None, ...], fields: dict[str, Any]) -> Encoder:
    """Count a shape that has no encoder, and make it one in time."""
    if len(_encoders) >= MOST_SHAPES or len(shape) > MOST_NAMES:
        return encode_sections
    times = _seen.get(shape, 0) + 1
    if times < WORTHWHILE:
        if len(_seen) >= MOST_SHAPES:
            _seen.clear()
        if all(not isinstance(name, str) or len(name) < 256 for name in shape):  # they are kept
            _seen[shape] = times
        return encode_sections
    _seen.pop(shape, None)
    _encoders[shape] = encoder = _Source(fields).compiled() if _fits(fields) else encode_sections
    return encoder


def _fits(fields: dict[str, Any]) -> bool:
    """Whether an encoder can be written: there is none for annotations, nor for a field that is left out as a rule."""
    keys = fields.get("application_properties") or ()
    return all(type(key) is str for key in keys) and all(
        name == "application_properties"
        or (FIELDS[name].section in LISTS and value is not None and value != FIELDS[name].default)
        for name, value in fields.items()
    )


# --- writing one ------------------------------------------------------------------------


class _Source:
    """The source of the encoder for all messages that have the names of `fields`, which are one of them."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._names: dict[str, Any] = {
            "STR8": STR8,
            "SMALL": SMALL,
            "SYMBOLS": encoded_symbols,
            "Unusual": _Unusual,
            "encode_int": encode_int,
            "encode_sections": encode_sections,
            "opening32": _opening32,
            "property_value": _property_value,
        }
        self._lines: list[str] = []
        self._parts: list[str | bytes] = []  # of the encoded message: names of variables, and literals
        variables = {name: f"field{number}" for number, name in enumerate(fields)}
        unpacked = [f"{', '.join(variables.values())}, = fields.values()"]
        for section in (HEADER, PROPERTIES):
            present = {field.index: field for field in LISTS[section] if field.name in fields}
            if present:
                self._write_list(section, present, variables)
        if entries := fields.get("application_properties"):
            values = [f"value{number}" for number in range(len(entries))]
            unpacked.append(f"{', '.join(values)}, = {variables['application_properties']}.values()")
            self._write_entries(dict(zip(values, entries.items(), strict=True)))
        self._text = "\n".join(
            (
                "def encode(fields, head, body):",
                *(f"    {line}" for line in unpacked),
                "    try:",
                *(f"        {line}" for line in self._lines or ("pass",)),
                "    except (UnicodeEncodeError, Unusual):",
                "        return encode_sections(fields, head, body)",
                f"    return b''.join(({', '.join(_joined([*self._parts, 'head', 'body']))}))",
            )
        )

    def compiled(self) -> Encoder:
        """Make a function of it."""
        # All that is the user's in the source are literals, of plain str and bytes.
        exec(compile(self._text, "<encoder of a shape>", "exec"), self._names)
        return cast(Encoder, self._names["encode"])

    def _write_list(self, section: int, present: dict[int, Field[Any, Any]], variables: dict[str, str]) -> None:
        """Write the header or the properties: values in their places, nulls between."""
        parts: list[str | bytes] = []
        for index in range(max(present) + 1):
            if index not in present:
                parts.append(b"\x40")
                continue
            field = present[index]
            variable = variables[field.name]
            self._names[f"encode_{field.name}"] = _plain(field)
            long = f"encode_{field.name}({variable})"
            if field.encode is SYMBOL.encode:
                self._lines.append(f"{variable} = SYMBOLS.get({variable}) or {long}")
            elif field.encode is STRING.encode or field.encode is ID.encode:
                self._lines.append(_short_string(variable, long))
            else:
                self._lines.append(f"{variable} = {long}")
            parts.append(variable)
        self._write_section(section, 0xC0, max(present) + 1, parts)

    def _write_entries(self, entries: dict[str, tuple[str, Any]]) -> None:
        """Write the application properties: keys as literals, and the values."""
        parts: list[str | bytes] = []
        for variable, (key, value) in entries.items():
            long = f"property_value({key!r}, {variable})"
            if type(value) is int:
                text = f"SMALL.get({variable}) or encode_int({variable})"
                self._lines.append(f"{variable} = {text} if type({variable}) is int else {long}")
            else:
                self._lines.append(_short_string(variable, long))
            parts += encode_str(key), variable
        self._write_section(APPLICATION, 0xC1, 2 * len(entries), parts)

    def _write_section(self, section: int, code: int, count: int, parts: list[str | bytes]) -> None:
        """Write what a section begins with, and its values."""
        table, opening = f"OPENING{section}", f"opening{section}"
        self._names[table] = _openings8(section, code, count)
        sizes = [f"len({part})" for part in parts if isinstance(part, str)]
        constant = sum(len(part) for part in parts if isinstance(part, bytes))
        self._lines.append(f"size = {' + '.join(sizes)} + {constant}")
        long = f"opening32({section}, {code}, size, {count})"
        self._lines.append(f"{opening} = {table}[size] if size < {len(self._names[table])} else {long}")
        self._parts += opening, *parts


def _joined(parts: list[str | bytes]) -> list[str]:
    """Write the parts, literals that are neighbours as one."""
    joined: list[str] = []
    literal = b""
    for part in (*parts, ""):
        if isinstance(part, bytes):
            literal += part
            continue
        joined += [repr(literal), part] if literal else [part]
        literal = b""
    return joined[:-1]


@functools.cache
def _openings8(section: int, code: int, count: int) -> tuple[bytes, ...]:
    """Make what a section of each size begins with, as long as one byte holds the size, which counts the last byte."""
    first = bytes((0x00, 0x53, 0x70 + section, code))
    return tuple(first + BYTE[size + 1] + BYTE[count] for size in range(255))


def _short_string(variable: str, long: str) -> str:
    """Write the encoding of what is likely to be a str of less than 256 bytes."""
    octets = f"(size := len(octets := {variable}.encode())) < 256"
    return f"{variable} = STR8[size] + octets if type({variable}) is str and {octets} else {long}"


# --- what a made encoder calls where there is no short way ---------------------------------------------


def _plain(field: Field[Any, Any]) -> Callable[[Any], bytes]:
    """Make what encodes a field of the header or the properties, if it is there."""

    def encode_field(value: Any) -> bytes:
        if value is None or value == field.default:
            raise _Unusual  # it is left out, at the end of the list with all that is behind it
        return field.encode(value)

    return encode_field


def _property_value(key: str, value: Any) -> bytes:
    if type(value) is str:
        return encode_str(value)
    if type(value) is int:
        return encode_int(value)
    return encode_simple(key, value)


def _opening32(section: int, code: int, size: int, count: int) -> bytes:
    """Encode what a section of more than 255 bytes begins with."""
    return bytes((0x00, 0x53, 0x70 + section, code + 0x10)) + pack_size(size + 4) + pack_u32(count)

"""How many parts a protobuf message has, counted before it is decoded.

An empty message takes two bytes of a file and 75 in memory: decoding is for files that have been counted.
"""

from __future__ import annotations

from typing import Any

VARINT, EIGHT_BYTES, CHUNK, FOUR_BYTES = 0, 1, 2, 5
"""Wire types that are read; groups are none of ONNX's."""

VARINT_BYTES = 10

MOST_DEEP = 100
"""Messages in one another, at most; protobuf decodes no more either."""


def count_parts(data: bytes, descriptor: Any, most: int) -> int:
    """Fields of the message `data` and of all messages in it, up to `most` + 1.

    descriptor: protobuf's, of the message's type.

    Raises ValueError when the bytes are no such message.
    """
    found, at, end, fields = 0, 0, len(data), descriptor.fields_by_number
    outer: list[tuple[int, Any]] = []  # where the messages around this one end, and their fields
    while True:
        while at < end:
            tag, at = _varint(data, at, end)
            found += 1
            if found > most:
                return found
            wire = tag & 7
            if wire == CHUNK:
                size, at = _varint(data, at, end)
                if size > end - at:
                    raise ValueError("a field is longer than its message")
                field = fields.get(tag >> 3)
                if field is None or field.message_type is None:
                    at += size
                    continue
                if len(outer) == MOST_DEEP:
                    raise ValueError("messages in messages without an end")
                outer.append((end, fields))
                end, fields = at + size, field.message_type.fields_by_number
            elif wire == VARINT:
                _, at = _varint(data, at, end)
            elif wire in (EIGHT_BYTES, FOUR_BYTES):
                at += 8 if wire == EIGHT_BYTES else 4
            else:
                raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field is longer than its message")
        if not outer:
            return found
        end, fields = outer.pop()


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for i in range(VARINT_BYTES):
        if at + i >= end:
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number is cut short")

"""The frames of a transfer over a pipe; bytes in, frames out, no I/O.

A frame is a type (u8), the length of its body (u32, little-endian, at most 1 MiB and 32), and the body.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from ..errors import StoreFormatError

__all__ = [
    "BODY_LIMIT",
    "PIECE",
    "FrameParser",
    "FrameType",
    "bitmap",
    "decode_json",
    "frame",
    "json_frame",
    "member",
    "member_piece",
    "split_member",
    "wanted",
]

PIECE = 1 << 20
"""Bytes of content in one frame at most."""
BODY_LIMIT = PIECE + 32
_HEADER = struct.Struct("<BI")
_MEMBER = struct.Struct("<IBB")


class FrameType(IntEnum):
    """What a frame is."""

    HELLO = 1
    """JSON: version, algorithm, role (of who says it) and reference."""
    TABLE = 2
    """A piece of config, NUL, table; an empty one ends it."""
    WANT = 3
    """A bit for each entry of the table, the lowest first: of streams, images and documents, and then of files."""
    MEMBER = 4
    """Number of the entry (u32), coding (u8), whether this is its last piece (u8), and a piece."""
    DONE = 5
    """JSON."""
    ERROR = 6
    """JSON: what went wrong."""


def frame(kind: FrameType, body: bytes | memoryview = b"") -> bytes:
    """The bytes of a frame."""
    return b"".join((_HEADER.pack(kind, len(body)), body))


def json_frame(kind: FrameType, **values: object) -> bytes:
    """A frame of JSON."""
    return frame(kind, json.dumps(values, separators=(",", ":")).encode())


def decode_json(body: bytes) -> dict[str, Any]:
    """The object in a frame of JSON.

    Raises:
        StoreFormatError
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise StoreFormatError("the other side", "it speaks no JSON where that belongs") from None
    if not isinstance(values, dict):
        raise StoreFormatError("the other side", "it says no object of JSON")
    return values


def member(entry: int, coding: int, content: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """The frames of one member."""
    view = memoryview(content)
    for at in range(0, max(len(view), 1), PIECE):
        yield member_piece(entry, coding, view[at : at + PIECE], last=at + PIECE >= len(view))


def member_piece(entry: int, coding: int, piece: bytes | memoryview, *, last: bool) -> bytes:
    """The frame of one piece of a member."""
    return frame(FrameType.MEMBER, b"".join((_MEMBER.pack(entry, coding, last), piece)))


def split_member(body: bytes) -> tuple[int, int, bool, memoryview]:
    """Entry, coding, whether it is the last piece, and the piece.

    Raises:
        StoreFormatError
    """
    if len(body) < _MEMBER.size:
        raise StoreFormatError("the other side", "it sends a member without a head")
    entry, coding, last = _MEMBER.unpack_from(body)
    return entry, coding, bool(last), memoryview(body)[_MEMBER.size :]


def bitmap(entries: Iterator[int] | set[int] | list[int], count: int) -> bytes:
    """A bit for each of *count* entries, set for those that are wanted."""
    bits = bytearray((count + 7) // 8)
    for entry in entries:
        bits[entry >> 3] |= 1 << (entry & 7)
    return bytes(bits)


def wanted(body: bytes, count: int) -> list[int]:
    """The entries whose bit is set.

    Raises:
        StoreFormatError: the bitmap is not of *count* bits.
    """
    if len(body) != (count + 7) // 8:
        raise StoreFormatError("the other side", f"it wants of {len(body) * 8} entries, and there are {count}")
    found = [entry for entry in range(len(body) * 8) if body[entry >> 3] >> (entry & 7) & 1]
    if found and found[-1] >= count:
        raise StoreFormatError("the other side", "it wants what is not in the table")
    return found


class FrameParser:
    """Takes bytes as they come, and gives out frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[FrameType, bytes]]:
        """The frames that are complete with *data*.

        Raises:
            StoreFormatError: a frame of no known type, or too large.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._buffer)
            if size > BODY_LIMIT or kind not in FrameType._value2member_map_:
                raise StoreFormatError("the other side", f"a frame of the type {kind} and {size} bytes cannot be")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield FrameType(kind), body

"""Chunks of splitstreams taken apart, their objects read and compared with their names: natively where that is built.

Owns the choice and the Python twins, which work on one piece of an unpacked stream at a time.  Does not own what is
made of the content (`streams`), nor reading objects as such (`loading`).
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ..._repo.state import RepoState
from ...digest import ObjectId
from . import object_reader
from .object_reader import Failure

if object_reader.NATIVE:
    from ..._native import _core

__all__ = ["Merged", "Status", "merge", "merged_size"]

_CHUNK = struct.Struct("<q")
_I64_MIN = -(2**63)
_MAX_OBJECTS = 1024
"""That one call reads, so that stopping is prompt."""


class Status(enum.IntEnum):
    """Why a call ended."""

    END = 0
    """The piece is used up, but for what may be part of a header."""
    FULL = 1
    """No more fits into the buffer."""
    LARGE = 2
    """Here an object belongs that does not fit into the buffer alone; it counts as done."""
    INVALID = 3
    """There is a chunk that cannot be."""


class Merged(NamedTuple):
    """What one call has done."""

    status: Status
    at: int
    """Where to go on in the piece."""
    left: int
    """Bytes of inline content that are still to come there."""
    size: int
    """Of the content: in the buffer, or in all."""
    value: int = 0
    """With `Status.LARGE` the index of the object, with `Status.INVALID` what the chunk says."""
    failures: Sequence[Failure] = ()
    """Of objects, by their index."""


def merge(
    state: RepoState, table: bytes, used: bytearray, piece: bytes, at: int, left: int, buffer: bytearray
) -> Merged:
    """Write the content of chunks to *buffer*, and compare the objects in it with their names.

    Args:
        table: ids of the objects that chunks refer to.
        used: one byte for each; 1 for those that are read.
        at, left: of the call before this one; *at* is 0 at the beginning of a piece.
    """
    if object_reader.NATIVE and state.in_one_place:
        number, secure = state.algorithm.number, state.secure
        code, at, left, size, value, failures = _core.merge_chunks(
            state.objects_fd, table, used, piece, at, left, buffer, number, secure
        )
        value = value if code >= Status.LARGE else 0  # otherwise of whatever chunk was looked at last
        return Merged(Status(code), at, left, size, value, [Failure(*each) for each in failures])
    return _merge(state, table, used, piece, at, left, buffer)


def merged_size(state: RepoState, table: bytes, piece: bytes, at: int, left: int, sizes: array[int]) -> Merged:
    """Add up the chunks of a piece from the *sizes* of all objects; negative ones count as nothing."""
    if object_reader.NATIVE:
        code, at, left, size, value = _core.merged_size(table, piece, at, left, sizes, state.algorithm.number)
        return Merged(Status(code), at, left, size, value if code >= Status.LARGE else 0)
    total = 0
    while True:
        now = min(left, len(piece) - at)
        at, left, total = at + now, left - now, total + now
        status, value = _header(piece, at, len(sizes))
        if left or status is not None:
            status = Status.END if left or status is None else status
            return Merged(status, at, left, total, value if status is Status.INVALID else 0)
        at += _CHUNK.size
        if value < 0:
            left = -value
        else:
            total += max(sizes[value], 0)


def _header(piece: bytes, at: int, count: int) -> tuple[Status | None, int]:
    """The value of a chunk, and a status if it ends the call."""
    if len(piece) - at < _CHUNK.size:
        return Status.END, 0
    value: int = _CHUNK.unpack_from(piece, at)[0]
    return (None if _I64_MIN < value < count else Status.INVALID), value


def _merge(
    state: RepoState, table: bytes, used: bytearray, piece: bytes, at: int, left: int, buffer: bytearray
) -> Merged:
    width, filled, read = state.algorithm.digest_size, 0, 0
    room, failures = memoryview(buffer), list[Failure]()
    while True:
        now = min(left, len(piece) - at, len(room) - filled)
        room[filled : filled + now] = piece[at : at + now]
        at, left, filled = at + now, left - now, filled + now
        if left:
            return Merged(Status.END if at == len(piece) else Status.FULL, at, left, filled, 0, failures)
        status, value = _header(piece, at, len(table) // width)
        if status is None and value >= 0:
            object_id = ObjectId(table[value * width : (value + 1) * width])
            before = len(failures)
            size = object_reader.load_one(state, object_id, value, room[filled:], len(room), failures)
            if size is None or read == _MAX_OBJECTS:
                return Merged(Status.FULL, at, left, filled, 0, failures[:before])
            used[value] = 1
            if failures[before:] and failures[-1].step == "large":
                return Merged(Status.LARGE, at + _CHUNK.size, left, filled, value, failures[:before])
            filled, read = filled + max(size, 0), read + 1
        elif status is None:
            left = -value
        else:
            return Merged(status, at, left, filled, value if status is Status.INVALID else 0, failures)
        at += _CHUNK.size

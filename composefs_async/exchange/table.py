"""The table of an image: which member of which blob holds each object; bytes in, bytes out, no I/O.

Owns the binary form (a zstd frame of columns, little-endian) and what a reader checks before it believes anything.
A table is a hint: its keys are the first 16 bytes of object ids, and only the digest of a member decides.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .._zstd import zstd
from ..digest import Algorithm
from ..errors import StoreFormatError

__all__ = ["DECODED_LIMIT", "KEY_SIZE", "Coding", "Entry", "Kind", "Table", "decode_table", "encode_table"]

KEY_SIZE = 16
"""Bytes of an object's id that a table holds."""
DECODED_LIMIT = 256 << 20
"""Bytes that a table may have after decompression, unless the caller allows another limit."""
STORED_OVERHEAD = 64
"""Bytes by which a member may be larger than its object."""

_MAGIC = b"CFSTABLE"
_HEADER = struct.Struct("<8sIHHQIIQQ16s")
_VERSION = 1
_LOG_BLOCK_SIZE = 12
_ENTRY_SIZE = KEY_SIZE + 8 + 8 + 8 + 4 + 1 + 1
_LEVEL = 3
_SKIPPABLE = 0x184D2A50  # zstd's frame format, "Skippable Frames": 16 magic numbers from this one on
_SKIPPABLE_HEADER = struct.Struct("<II")
_SWAP = sys.byteorder == "big"


class Kind:
    """What an object is for; orders work, and decides nothing."""

    FILE, STREAM, IMAGE, DOCUMENT = range(4)


class Coding:
    """How a member is stored."""

    RAW, ZSTD = range(2)


class Entry(NamedTuple):
    """One object as a member of a blob."""

    key: bytes
    """First 16 bytes of the object's id."""
    blob: int
    """Number of the blob in the manifest, counted from 0."""
    offset: int
    """Offset of the member in the blob, in bytes."""
    stored: int
    """Bytes that the member has in the blob."""
    size: int
    """Bytes of the object."""
    kind: int
    coding: int


@dataclass(frozen=True, slots=True)
class Table:
    """All members of one image, sorted by blob and offset, in columns."""

    algorithm: Algorithm
    blobs: int
    keys: bytes
    offsets: array[int] = field(repr=False)
    stored: array[int] = field(repr=False)
    sizes: array[int] = field(repr=False)
    blob_numbers: array[int] = field(repr=False)
    kinds: bytes = field(repr=False)
    codings: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.sizes)

    def key(self, index: int) -> bytes:
        """The key of the entry *index*."""
        return self.keys[index * KEY_SIZE : (index + 1) * KEY_SIZE]

    def entry(self, index: int) -> Entry:
        """The entry *index*."""
        return Entry(
            self.key(index),
            self.blob_numbers[index],
            self.offsets[index],
            self.stored[index],
            self.sizes[index],
            self.kinds[index],
            self.codings[index],
        )

    def index(self) -> dict[bytes, int]:
        """The number of each entry by its key; about 0.2 µs and 100 bytes an entry."""
        keys = self.keys
        return {keys[at * KEY_SIZE : (at + 1) * KEY_SIZE]: at for at in range(len(self))}


# -- writing -----------------------------------------------------------------------------------


def encode_table(algorithm: Algorithm, blobs: int, entries: Sequence[Entry], salt: bytes = b"") -> bytes:
    """The bytes of a table; *salt* (16 bytes, or none) only gives them another digest.

    Entries of no blob, with number, offset and stored size 0, make the table of a transfer over a pipe.
    """
    ordered = sorted(entries, key=lambda entry: (entry.blob, entry.offset, entry.stored))
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        algorithm.number,
        _LOG_BLOCK_SIZE,
        len(ordered),
        blobs,
        0,
        sum(entry.size for entry in ordered),
        sum(entry.stored for entry in ordered),
        bytes(16),
    )
    columns = (
        b"".join(entry.key for entry in ordered),
        _column("Q", [entry.offset for entry in ordered]),
        _column("Q", [entry.stored for entry in ordered]),
        _column("Q", [entry.size for entry in ordered]),
        _column("I", [entry.blob for entry in ordered]),
        bytes(entry.kind for entry in ordered),
        bytes(entry.coding for entry in ordered),
    )
    content = header + b"".join(column + bytes(-len(column) % 8) for column in columns)
    return _frame(content) + salt_frame(salt)


def salt_frame(salt: bytes) -> bytes:
    """A zstd frame that every decoder skips; empty without a salt."""
    return _SKIPPABLE_HEADER.pack(_SKIPPABLE, len(salt)) + salt if salt else b""


def _frame(content: bytes) -> bytes:
    return zstd.ZstdCompressor(level=_LEVEL).compress(content, zstd.ZstdCompressor.FLUSH_FRAME)


def _column(code: str, values: Sequence[int]) -> bytes:
    column = array(code, values)
    if _SWAP:
        column.byteswap()
    return column.tobytes()


# -- reading -----------------------------------------------------------------------------------


def decode_table(
    raw: bytes,
    name: str,
    *,
    algorithm: Algorithm,
    blob_sizes: Sequence[int] | None,
    limit: int = DECODED_LIMIT,
) -> Table:
    """Read a table that nobody vouches for.  Memory is bounded by *limit*, which is checked before decompression.

    Args:
        name: for errors.
        algorithm: that the table must use.
        blob_sizes: of the blobs in bytes, in the manifest's order; None for a transfer over a pipe, which has none.

    Raises:
        StoreFormatError: it breaks any rule of the format.
    """
    content = _unpack(raw, name, limit)
    if len(content) < _HEADER.size:
        raise StoreFormatError(name, f"it has {len(content)} bytes, less than its header")
    magic, version, number, log_size, count, blobs, flags, size, stored, rest = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION:
        raise StoreFormatError(name, "it is not a table of version 1")
    if (number, log_size) != (algorithm.number, _LOG_BLOCK_SIZE):
        raise StoreFormatError(name, f"it is of another algorithm than {algorithm.text}")
    if flags or rest.strip(b"\0"):
        raise StoreFormatError(name, "reserved bytes of its header are not zero")
    if blobs != len(blob_sizes or ()):
        raise StoreFormatError(name, f"it is of {blobs} blobs, and the manifest has {len(blob_sizes or ())}")
    table = _columns(content, name, algorithm, count, blobs)
    if blob_sizes is None:
        _check_order(table, name, (0,), piped=True)
    else:
        _check_order(table, name, blob_sizes, piped=False)
    if (sum(table.sizes), sum(table.stored)) != (size, stored):
        raise StoreFormatError(name, "the sums in its header are not those of its entries")
    return table


def _unpack(raw: bytes, name: str, limit: int) -> bytes:
    try:
        declared = zstd.get_frame_info(raw).decompressed_size
    except zstd.ZstdError as error:
        raise StoreFormatError(name, f"it is no zstd frame: {error}") from None
    if declared is None:
        raise StoreFormatError(name, "its zstd frame does not declare its size")
    if declared > limit:
        raise StoreFormatError(name, f"it unpacks to {declared} bytes, more than the limit of {limit}")
    decompressor = zstd.ZstdDecompressor()
    try:
        content = decompressor.decompress(raw, declared + 1)
    except zstd.ZstdError as error:
        raise StoreFormatError(name, f"its zstd frame is damaged: {error}") from None
    if not decompressor.eof or len(content) != declared:
        raise StoreFormatError(name, "its zstd frame is cut short")
    _check_salt(decompressor.unused_data, name)
    return content


def _check_salt(behind: bytes, name: str) -> None:
    if not behind:
        return
    if len(behind) >= _SKIPPABLE_HEADER.size:
        magic, size = _SKIPPABLE_HEADER.unpack_from(behind)
        if magic & ~0xF == _SKIPPABLE and size == len(behind) - _SKIPPABLE_HEADER.size:
            return
    raise StoreFormatError(name, f"{len(behind)} bytes behind its frame are no skippable frame")


def _columns(content: bytes, name: str, algorithm: Algorithm, count: int, blobs: int) -> Table:
    padded = _HEADER.size + sum(_padded(count * width) for width in (KEY_SIZE, 8, 8, 8, 4, 1, 1))
    if count > len(content) // _ENTRY_SIZE + 1 or padded != len(content):
        raise StoreFormatError(name, f"{count} entries do not make {len(content)} bytes")
    view, at = memoryview(content), _HEADER.size
    columns: list[memoryview] = []
    for width in (KEY_SIZE, 8, 8, 8, 4, 1, 1):
        size = count * width
        columns.append(view[at : at + size])
        if bytes(view[at + size : at + _padded(size)]).strip(b"\0"):
            raise StoreFormatError(name, "padding of its columns is not zero")
        at += _padded(size)
    keys, offsets, stored, sizes, numbers, kinds, codings = columns
    return Table(
        algorithm,
        blobs,
        bytes(keys),
        _array("Q", offsets),
        _array("Q", stored),
        _array("Q", sizes),
        _array("I", numbers),
        bytes(kinds),
        bytes(codings),
    )


def _padded(size: int) -> int:
    return size + -size % 8


def _array(code: str, column: memoryview) -> array[int]:
    found = array(code, bytes(column))
    if _SWAP:
        found.byteswap()
    return found


def _check_order(table: Table, name: str, blob_sizes: Sequence[int], *, piped: bool) -> None:
    """Check what holds of each entry, and between neighbours."""
    if len({table.key(at) for at in range(len(table))}) != len(table):
        raise StoreFormatError(name, "a key occurs twice")
    if table.kinds.strip(bytes(range(4))) or table.codings.strip(bytes(range(2))):
        _check_codes(table, name)
    last, end = 0, 0
    for at, (blob, offset, stored, size, coding) in enumerate(
        zip(table.blob_numbers, table.offsets, table.stored, table.sizes, table.codings, strict=True)
    ):
        if blob != last:
            if not last < blob < len(blob_sizes):
                raise StoreFormatError(name, f"entry {at} is of blob {blob}, out of order or not there")
            last, end = blob, 0
        if piped:
            if blob or offset or stored:
                raise StoreFormatError(name, f"entry {at} has a place in a blob, and there are none")
            continue
        if offset < end:
            raise StoreFormatError(name, f"entry {at} overlaps the one before it, or is out of order")
        end = offset + stored
        if not blob_sizes or end > blob_sizes[blob]:
            raise StoreFormatError(name, f"entry {at} ends at {end}, behind the end of blob {blob}")
        if stored > size + STORED_OVERHEAD or (coding == Coding.RAW and stored != size):
            raise StoreFormatError(name, f"entry {at} of {size} bytes cannot be stored in {stored}")


def _check_codes(table: Table, name: str) -> None:
    for at, (kind, coding) in enumerate(zip(table.kinds, table.codings, strict=True)):
        if kind > Kind.DOCUMENT or coding > Coding.ZSTD:
            raise StoreFormatError(name, f"entry {at} has the unknown kind {kind} or coding {coding}")

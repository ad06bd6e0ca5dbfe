"""The short way to external files in their most frequent shape.

Owns nothing but speed: such an inode has its digest and its canonical path inline and all other attributes shared,
so that one ``struct`` call and comparisons with constants take it apart.  Whatever is not exactly so is left to
`reader_nodes`, which accepts more and says what is wrong.
"""

from __future__ import annotations

import stat
import struct
from binascii import hexlify
from struct import Struct
from typing import Final, TypeAlias

from ...digest import Algorithm
from ...tree.inodes import Xattrs
from ..format import (
    BLOCK_SIZE,
    CHUNK_BASED,
    COMPACT_INODE,
    EXTENDED_INODE,
    NULL_CHUNK,
    OVERLAY_METACOPY,
    OVERLAY_REDIRECT,
    SLOT,
    XATTR_ENTRY,
    filter_bit,
    split_xattr_name,
)
from .nodes import CHUNK_FORMAT_MAX, Nodes
from .superblock import NANOSECONDS
from .xattrs import NO_XATTR_SET

__all__ = ["PlainFile", "PlainFiles"]

_METACOPY: Final = split_xattr_name(OVERLAY_METACOPY, True)
_REDIRECT: Final = split_xattr_name(OVERLAY_REDIRECT, True)
_OVERLAY_BITS: Final = 1 << filter_bit(*_METACOPY) | 1 << filter_bit(*_REDIRECT)
_TYPE_MASK: Final = 0o170000
_REGULAR: Final = stat.S_IFREG


PlainFile: TypeAlias = tuple[int, int, int, int, int, Xattrs, int, bytes]
"""Mode, nlink, uid, gid, mtime in nanoseconds, attributes, size and digest; a named tuple is slower by a tenth."""


class _Shape:
    """Where the fields stand behind *shared* ids."""

    __slots__ = ("extended", "fields", "metacopy", "redirect", "sets", "shared")

    @staticmethod
    def icount(algorithm: Algorithm) -> int:
        """``i_xattr_icount`` of a file that has no other attributes."""
        size = algorithm.digest_size
        path = 2 * size + 2 + 3 & ~3
        return 1 + (2 * XATTR_ENTRY.size + len(_METACOPY[1]) + 4 + size + len(_REDIRECT[1]) + path) // 4

    def __init__(self, extended: bool, shared: int, algorithm: Algorithm) -> None:
        size = algorithm.digest_size
        path = 2 * size + 2
        self.extended, self.shared = extended, shared
        # Each attribute up to the part that differs.
        self.metacopy = _entry(*_METACOPY, size + 4) + bytes([0, size + 4, 0, algorithm.number])
        self.redirect = _entry(*_REDIRECT, path) + b"/"
        inode = EXTENDED_INODE if extended else COMPACT_INODE
        body = f"IB7x{4 * shared}s{len(self.metacopy)}s{size}s{len(self.redirect)}s{path - 1}s{-path % 4}x4s"
        self.fields = Struct(inode.format + body).unpack_from
        self.sets: dict[bytes, tuple[Xattrs, int] | None] = {}
        """By their ids: attributes, and the bits that the name filter must leave clear; None if they are not plain."""


class PlainFiles:
    """Finds plain files as soon as `Nodes.algorithm` is known."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._image = nodes.image
        self._shapes: dict[bytes, _Shape | None] = {}
        superblock = nodes.superblock
        self._single_chunk = superblock.version == 2
        self._chunk_format_min = nodes.chunk_format_min
        self._nanoseconds_end = 1 if superblock.version == 2 else NANOSECONDS
        self._build_time_ns = superblock.build_time_ns
        self._build_nanoseconds = superblock.build_time_ns % NANOSECONDS
        self._filter_mask = 0xFFFFFFFF if superblock.has_filter else 0

    def find(self, nid: int) -> PlainFile | None:
        """The regular file *nid*; None if it is anything but a flawless plain one."""
        image, offset = self._image, nid * SLOT
        key = image[offset : offset + 4]
        shape = self._shapes[key] if key in self._shapes else self._shape(key)
        if shape is None:
            return None
        try:
            # fmt: off
            if shape.extended:
                (_, _, mode, size, chunk, uid, gid, seconds, nanoseconds, nlink, name_filter, shared, ids,
                 metacopy, digest, redirect, path, address) = shape.fields(image, offset)
                mtime_ns = seconds * NANOSECONDS + nanoseconds
            else:
                (_, _, mode, nlink, size, chunk, uid, gid, name_filter, shared, ids,
                 metacopy, digest, redirect, path, address) = shape.fields(image, offset)
                mtime_ns, nanoseconds = self._build_time_ns, self._build_nanoseconds
            # fmt: on
        except struct.error:  # it is cut short
            return None
        if (
            metacopy != shape.metacopy
            or redirect != shape.redirect
            or path != hexlify(digest, b"/", len(digest) - 1)
            or address != NULL_CHUNK
            or shared != shape.shared
            or mode & _TYPE_MASK != _REGULAR
            or not self._chunk_format_min <= chunk <= CHUNK_FORMAT_MAX
            or (size > BLOCK_SIZE << chunk and not self._single_chunk)
            or nanoseconds >= self._nanoseconds_end
        ):
            return None
        found = shape.sets[ids] if ids in shape.sets else self._set(shape, ids, offset)
        if found is None or name_filter & found[1]:
            return None
        return mode, nlink, uid, gid, mtime_ns, found[0], size, digest

    def _set(self, shape: _Shape, ids: bytes, offset: int) -> tuple[Xattrs, int] | None:
        xattrs = self._nodes.xattrs.shared(ids, offset) if ids else NO_XATTR_SET
        plain = not (xattrs.has_overlay or xattrs.repeated)
        found = (xattrs.own, (xattrs.filter_bits | _OVERLAY_BITS) & self._filter_mask) if plain else None
        shape.sets[ids] = found
        return found

    def _shape(self, key: bytes) -> _Shape | None:
        """The shape of inodes that begin with *key*, which are i_format and i_xattr_icount."""
        algorithm = self._nodes.algorithm
        if algorithm is None or len(key) < 4:
            return None
        form, icount = int.from_bytes(key[:2], "little"), int.from_bytes(key[2:], "little")
        found = None
        if form >> 1 == CHUNK_BASED and 0 <= (shared := icount - _Shape.icount(algorithm)) < 256:
            found = _Shape(bool(form & 1), shared, algorithm)
        self._shapes[key] = found
        return found


def _entry(index: int, suffix: bytes, size: int) -> bytes:
    return XATTR_ENTRY.pack(len(suffix), index, size) + suffix

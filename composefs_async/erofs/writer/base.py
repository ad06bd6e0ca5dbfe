"""What the writers of all layouts share: the two headers, directories, data blocks, and joining pieces.

Owns nothing that differs between layouts: those are `writer_classic` and `writer_flat`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

from ...tree.inodes import Directory, ExternalFile, Inode, Special
from ..format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    COMPOSEFS_HEADER,
    COMPOSEFS_HEADER_VERSION,
    COMPOSEFS_MAGIC,
    EROFS_MAGIC,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
)
from .blocks import DIRECTORY_ENTRY, directory_block, pad, with_dots
from .plan import Listing, Plan, refuse
from .xattrs import Attributes

__all__ = ["PIECES", "SECOND", "ImageWriter"]

SECOND: Final = 1_000_000_000
PIECES: Final = 4096
"""So many pieces, usually some hundred kilobytes, are joined before they leave the writer."""
_FEATURES: Final = 6  # EROFS_FEATURE_COMPAT_MTIME, EROFS_FEATURE_COMPAT_XATTR_FILTER
_U32: Final = 0xFFFFFFFF
_SECONDS_MAX: Final = 1 << 63
_NID_MAX: Final = 0xFFFF


class ImageWriter(ABC):
    """One image, laid out when this is made; the bytes come when they are asked for."""

    version: int

    def __init__(self, root: Directory, plan: Plan, attributes: Attributes, types: list[int]) -> None:
        self.root = root
        self.plan = plan
        self.attributes = attributes
        self.types = types
        self.positions: list[int] = []
        """Offset of every inode."""
        self.nids: list[int] = []
        self.filled: list[tuple[int, int]] = []
        """Index and number of data blocks of each inode that has any."""
        self.inodes_end: int = 0

    def pieces(self) -> Iterator[bytes]:
        """The image from its start to its end."""
        try:
            yield self._headers()
            yield from self.inodes()
            yield b"".join(self.attributes.table) + pad(-(self.inodes_end + self.attributes.table_size) % BLOCK_SIZE)
            yield from self._data()
        except struct.error as error:
            self._refuse_numbers()
            raise AssertionError("a field of an inode has no room") from error  # pragma: no cover

    @abstractmethod
    def inodes(self) -> Iterator[bytes]:
        """From the first inode to `inodes_end`."""

    @abstractmethod
    def header_fields(self) -> tuple[int, int, int]:
        """Flags of the composefs header, the build time in nanoseconds, and the block from which shared ids count."""

    @abstractmethod
    def data(self, index: int) -> Iterator[bytes]:
        """The data blocks of an inode in `filled`."""

    def first_block(self) -> int:
        """The number of the first data block."""
        return -(-(self.inodes_end + self.attributes.table_size) // BLOCK_SIZE)

    def _headers(self) -> bytes:
        flags, build_time, xattr_block = self.header_fields()
        seconds, nanoseconds = divmod(build_time, SECOND)
        blocks = self.first_block() + sum(count for _, count in self.filled)
        header = COMPOSEFS_HEADER.pack(COMPOSEFS_MAGIC, COMPOSEFS_HEADER_VERSION, flags, self.version)
        count = len(self.plan.inodes)
        if self.nids[0] > _NID_MAX or blocks > _U32:
            refuse(self.root, self.root, "its attributes, or the tree, are too large for an image")
        superblock = SUPERBLOCK.pack(
            *(EROFS_MAGIC, 0, _FEATURES, BLOCK_BITS, 0, self.nids[0], count, seconds, nanoseconds, blocks, 0),
            *(xattr_block, b"", b"", 0, 0, 0, 0, 0, 0, 0, 0, 0),
        )
        return header + pad(SUPERBLOCK_OFFSET - len(header)) + superblock

    def _data(self) -> Iterator[bytes]:
        for index, _ in self.filled:
            yield from self.data(index)

    # -- directories

    def set_positions(self, positions: list[int], end: int) -> None:
        """Take the offsets of the inodes in bytes, and the offset behind the last one."""
        self.positions = positions
        self.nids = [position // SLOT for position in positions]
        self.inodes_end = end + SLOT - 1 & -SLOT

    def directory_tail(self, listing: Listing) -> bytes:
        """What of a directory stands behind its inode."""
        names, nids, types = self._entries(listing)
        if not listing.cuts:
            return directory_block(names, nids, types)
        start = listing.cuts[-1]
        return directory_block(names[start:], nids[start:], types[start:]) if start < len(names) else b""

    def directory_blocks(self, listing: Listing) -> Iterator[bytes]:
        """What of it stands in data blocks."""
        names, nids, types = self._entries(listing)
        start = 0
        for cut in listing.cuts:
            block = directory_block(names[start:cut], nids[start:cut], types[start:cut])
            yield block + pad(BLOCK_SIZE - len(block))
            start = cut

    def _entries(self, listing: Listing) -> tuple[list[bytes], list[int], list[int]]:
        names, dot, dots = with_dots(listing.names)
        nids = self.plan.column(listing, self.nids)
        types = self.plan.column(listing, self.types)
        nids.insert(dot, self.nids[listing.index])
        nids.insert(dots, self.nids[(listing.parent or listing).index])
        types.insert(dot, DIRECTORY_ENTRY)
        types.insert(dots, DIRECTORY_ENTRY)
        return names, nids, types

    # -- what cannot be

    def _refuse_numbers(self) -> None:
        """Name the inode of which ``struct`` said that some number is too large."""
        for inode in self.plan.inodes:
            for name, value, limit in _numbers(inode):
                if not 0 <= value <= limit:
                    refuse(self.root, inode, f"{name} {value} is not between 0 and {limit}")
            if not -_SECONDS_MAX <= inode.mtime_ns // SECOND < _SECONDS_MAX:
                refuse(self.root, inode, f"time {inode.mtime_ns} does not fit into 64 bits of seconds")


def _numbers(inode: Inode) -> Iterator[tuple[str, int, int]]:
    yield "owner", inode.uid, _U32
    yield "group", inode.gid, _U32
    yield "link count", inode.nlink, _U32
    if isinstance(inode, Special):
        yield "device number", inode.rdev, _U32
    if isinstance(inode, ExternalFile):
        yield "size", inode.size, (1 << 64) - 1

"""The two headers of an image: decides whether the rest may be read at all.

Owns the composefs header and the EROFS superblock (linux/fs/erofs/erofs_fs.h, ``struct erofs_super_block``) and
everything in them that composefs never writes.  Does not look at any inode.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Final, TypeAlias

from ...errors import ErofsError
from ..format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    COMPOSEFS_HEADER,
    COMPOSEFS_HEADER_VERSION,
    COMPOSEFS_MAGIC,
    EROFS_MAGIC,
    HAS_ACL,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
)

__all__ = [
    "HEADERS_SIZE",
    "IMAGE_LIMIT",
    "NANOSECONDS",
    "Image",
    "Superblock",
    "announced_size",
    "parse_superblock",
    "snapshot",
]

Image: TypeAlias = bytes | bytearray | memoryview | mmap.mmap
"""What every reader of images accepts."""

IMAGE_LIMIT: Final = 1 << 30
"""The longest image that is read unless the caller says otherwise, in bytes; composefs-rs has the same limit."""

HEADERS_SIZE: Final = SUPERBLOCK_OFFSET + SUPERBLOCK.size
"""Bytes at the start of an image in which both headers are."""

NANOSECONDS: Final = 1_000_000_000

_CHECKSUM_MTIME_FILTER: Final = 7  # EROFS_FEATURE_COMPAT_SB_CHKSUM, _MTIME, _XATTR_FILTER
_XATTR_FILTER: Final = 4
_CHUNKED_FILE: Final = 4  # EROFS_FEATURE_INCOMPAT_CHUNKED_FILE: composefs leaves it clear, the kernel ignores it
_NEWEST_LAYOUT: Final = 2


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the readers need of the headers."""

    version: int
    """Version of the layout: 0, 1 (as mkcomposefs writes) or 2 (composefs-rs)."""
    has_acl: bool
    root: int
    """Number of the root's inode, which lies at 32 times that."""
    inodes: int
    build_time_ns: int
    """The mtime of inodes that do not store their own."""
    xattr_base: int
    """Offset in the image from which ids of shared attributes count."""
    has_filter: bool
    """Whether the kernel skips attributes that the name filter of an inode rules out."""


def snapshot(image: Image, limit: int) -> bytes:
    """The bytes of *image*: copied unless they are `bytes`, so that what was checked cannot change afterwards."""
    size = len(image) if not isinstance(image, memoryview) else image.nbytes
    if size > limit:
        raise ErofsError(f"an image of {size} bytes is longer than the limit of {limit}", limit)
    return image if isinstance(image, bytes) else bytes(image)


def announced_size(headers: bytes) -> int:
    """How long the image is that begins with *headers*, in bytes, as these say, which are checked."""
    fields = _Fields(*SUPERBLOCK.unpack_from(headers, SUPERBLOCK_OFFSET))
    size = fields.blocks * BLOCK_SIZE
    parse_superblock(headers, size)
    return size


def parse_superblock(image: bytes, size: int | None = None) -> Superblock:
    """Check the headers of *image*.

    Args:
        size: of the image in bytes, if only its start is given.

    Raises:
        ErofsError: it is no image, it is cut short, or it uses what composefs does not write.
    """
    if len(image) < HEADERS_SIZE:
        raise ErofsError(f"{len(image)} bytes are too short for an image", len(image))
    magic, header_version, flags, version = COMPOSEFS_HEADER.unpack_from(image)
    if magic != COMPOSEFS_MAGIC:
        raise ErofsError("not a composefs image: its first four bytes are wrong", 0)
    if header_version != COMPOSEFS_HEADER_VERSION:
        raise ErofsError(f"unknown version {header_version} of the composefs header", 4)
    if version > _NEWEST_LAYOUT:
        raise ErofsError(f"unknown layout version {version}", 12)
    return _parse_erofs(image, len(image) if size is None else size, version, bool(flags & HAS_ACL))


def _parse_erofs(headers: bytes, size: int, version: int, has_acl: bool) -> Superblock:
    fields = _Fields(*SUPERBLOCK.unpack_from(headers, SUPERBLOCK_OFFSET))
    for reason, offset, wrong in fields.faults(size):
        if wrong:
            raise ErofsError(reason, SUPERBLOCK_OFFSET + offset)
    return Superblock(
        version,
        has_acl,
        fields.root_nid,
        fields.inos,
        fields.build_time * NANOSECONDS + fields.build_time_nsec,
        fields.xattr_blkaddr * BLOCK_SIZE,
        bool(fields.feature_compat & _XATTR_FILTER),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """``struct erofs_super_block``, without what is reserved."""

    magic: int
    checksum: int
    feature_compat: int
    blkszbits: int
    sb_extslots: int
    root_nid: int
    inos: int
    build_time: int
    build_time_nsec: int
    blocks: int
    meta_blkaddr: int
    xattr_blkaddr: int
    uuid: bytes
    volume_name: bytes
    feature_incompat: int
    available_compr_algs: int
    extra_devices: int
    devt_slotoff: int
    dirblkbits: int
    xattr_prefix_count: int
    xattr_prefix_start: int
    packed_nid: int
    xattr_filter_reserved: int

    def faults(self, size: int) -> list[tuple[str, int, bool]]:
        """Everything that could be wrong: what to say, where in the superblock, and whether it is."""
        blocks, rest = divmod(size, BLOCK_SIZE)
        return [
            ("not an EROFS image: the magic number of its superblock is wrong", 0, self.magic != EROFS_MAGIC),
            (
                f"unknown compatible features {self.feature_compat:#x}",
                8,
                self.feature_compat & ~_CHECKSUM_MTIME_FILTER != 0,
            ),
            (f"blocks of 2^{self.blkszbits} bytes, not 2^{BLOCK_BITS}", 12, self.blkszbits != BLOCK_BITS),
            (f"{self.sb_extslots} extra superblock slots", 13, self.sb_extslots != 0),
            (f"{self.build_time_nsec} nanoseconds in its build time", 32, self.build_time_nsec >= NANOSECONDS),
            (f"{self.blocks} blocks announced in {size} bytes", 36, rest != 0 or self.blocks != blocks),
            (f"metadata begins at block {self.meta_blkaddr}, not 0", 40, self.meta_blkaddr != 0),
            (f"shared attributes begin at block {self.xattr_blkaddr} of {blocks}", 44, self.xattr_blkaddr > blocks),
            (f"unknown features {self.feature_incompat:#x}", 80, self.feature_incompat & ~_CHUNKED_FILE != 0),
            (f"compression algorithms {self.available_compr_algs:#x}", 84, self.available_compr_algs != 0),
            (f"{self.extra_devices} extra devices", 86, self.extra_devices != 0),
            (f"directory blocks of 2^{self.dirblkbits} blocks", 90, self.dirblkbits != 0),
            (f"{self.xattr_prefix_count} long attribute prefixes", 91, self.xattr_prefix_count != 0),
            (f"packed inode {self.packed_nid}", 96, self.packed_nid != 0),
            ("a reserved attribute filter", 104, self.xattr_filter_reserved != 0),
        ]

"""Structures and constants of a composefs image: an EROFS file system behind a small header of its own.

Owns what readers and the writer have in common.  Does not own where things are put: that is `layout` and
`writer` on one side, and the checks of the readers on the other.

An image is, in order: the composefs header, zeros up to 1024, the superblock, inodes (each with its attributes
and its inline tail), the table of shared attributes, zeros up to a block, and data blocks.  All integers are
little-endian.  Sources: EROFS is linux/fs/erofs/erofs_fs.h and xattr.c; the composefs header is
``struct lcfs_erofs_header_s`` of C composefs.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

__all__ = [
    "BLOCK_BITS",
    "BLOCK_SIZE",
    "CHUNK_BASED",
    "CHUNK_BITS_MAX",
    "CHUNK_MAP_MAX",
    "COMPACT_INODE",
    "COMPACT_INODE_WITH_INO",
    "COMPOSEFS_HEADER",
    "COMPOSEFS_HEADER_VERSION",
    "COMPOSEFS_MAGIC",
    "CONTENT_MAX",
    "DEPTH_MAX",
    "DIRECTORY_TYPE",
    "DIRENT_SIZE",
    "EROFS_MAGIC",
    "ESCAPED_OVERLAY_PREFIX",
    "EXTENDED_INODE",
    "EXTENDED_INODE_WITH_INO",
    "FILE_TYPES",
    "FIRST_INODE",
    "FLAT_INLINE",
    "FLAT_PLAIN",
    "HAS_ACL",
    "NAME_MAX",
    "NULL_CHUNK",
    "OVERLAY_METACOPY",
    "OVERLAY_OPAQUE",
    "OVERLAY_PREFIX",
    "OVERLAY_REDIRECT",
    "PATH_MAX",
    "SHARED_MAX",
    "SLOT",
    "SUPERBLOCK",
    "SUPERBLOCK_OFFSET",
    "TARGET_MAX",
    "XATTR_ENTRY",
    "XATTR_HEADER",
    "XATTR_NAME_MAX",
    "XATTR_PREFIXES",
    "dirents",
    "filter_bit",
    "split_xattr_name",
    "xxh32",
]

BLOCK_BITS: Final = 12
BLOCK_SIZE: Final = 4096
SLOT: Final = 32
"""The number of an inode times this is its offset in the image (EROFS_ISLOTBITS)."""

# -- the two headers ---------------------------------------------------------------------------

COMPOSEFS_MAGIC: Final = 0xD078629A
COMPOSEFS_HEADER_VERSION: Final = 1
HAS_ACL: Final = 1
"""Flag of the composefs header: some inode has a POSIX ACL, so the mount must not use ``noacl``."""
COMPOSEFS_HEADER: Final = Struct("<IIII16x")
"""Magic, version of this header, flags, version of the layout."""

EROFS_MAGIC: Final = 0xE0F5E1E2
SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK: Final = Struct("<IIIBBHQqIIII16s16sIHHHBBIQB23x")
"""``struct erofs_super_block``: magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time,
build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, available_compr_algs,
extra_devices, devt_slotoff, dirblkbits, xattr_prefix_count, xattr_prefix_start, packed_nid, xattr_filter_reserved."""
FIRST_INODE: Final = SUPERBLOCK_OFFSET + SUPERBLOCK.size

# -- inodes ------------------------------------------------------------------------------------

# i_format is the data layout times two, plus one for the extended form.
FLAT_PLAIN: Final = 0
FLAT_INLINE: Final = 2
CHUNK_BASED: Final = 4

COMPACT_INODE: Final = Struct("<HHHHI4xI4xHH4x")
"""Format, xattr count, mode, nlink, size, i_u, uid, gid; without i_ino, which nothing needs to read."""
EXTENDED_INODE: Final = Struct("<HHH2xQI4xIIqII16x")
"""Format, xattr count, mode, size, i_u, uid, gid, mtime in seconds, its nanoseconds, nlink; without i_ino."""
COMPACT_INODE_WITH_INO: Final = Struct("<HHHHI4xIIHH4x")
"""Format, xattr count, mode, nlink, size, i_u, ino, uid, gid."""
EXTENDED_INODE_WITH_INO: Final = Struct("<HHH2xQIIIIqII16x")
"""Format, xattr count, mode, size, i_u, ino, uid, gid, mtime in seconds, its nanoseconds, nlink."""

CONTENT_MAX: Final = {0: 5000, 1: 5000, 2: 512}
"""Bytes of content inside an image, by its layout; no program reads more."""
PATH_MAX: Final = 4095
"""Bytes in the path of an object below the object store (PATH_MAX of linux/limits.h without its NUL)."""
TARGET_MAX: Final = {0: PATH_MAX, 1: PATH_MAX, 2: 1024}
"""Bytes in the target of a symlink, by the layout; composefs-rs allows fewer."""
CHUNK_BITS_MAX: Final = 43
"""A chunk has at most 2 to this many bytes: the format has five bits for what exceeds `BLOCK_BITS`."""
CHUNK_MAP_MAX: Final = 1024
"""More chunks than these C composefs does not write; files of more than 2^53 bytes would need them."""
NULL_CHUNK: Final = b"\xff\xff\xff\xff"
"""The address of a chunk that is a hole (EROFS_NULL_ADDR)."""

# -- directories -------------------------------------------------------------------------------

DEPTH_MAX: Final = 2048
"""Of directories in one another: paths have at most 4096 bytes; composefs-rs reads no deeper ones."""
NAME_MAX: Final = 255
"""Bytes in a name (EROFS_NAME_LEN); the kernel refuses longer ones."""
DIRENT_SIZE: Final = 12
DIRECTORY_TYPE: Final = 2
FILE_TYPES: Final = {
    0o100000: 1,
    0o040000: DIRECTORY_TYPE,
    0o020000: 3,
    0o060000: 4,
    0o010000: 5,
    0o140000: 6,
    0o120000: 7,
}
"""The type in a dirent (include/linux/fs_types.h, FT_*) by the type bits of ``st_mode``."""


@lru_cache(1024)
def dirents(count: int) -> Struct:
    """The array at the start of a directory block: *count* times nid, offset of the name in the block, file type."""
    return Struct("<" + "QHBx" * count)


# -- extended attributes -----------------------------------------------------------------------

XATTR_HEADER: Final = Struct("<IB7x")
"""Name filter, number of shared ids that follow."""
XATTR_ENTRY: Final = Struct("<BBH")
"""Length of the name's suffix, index of its prefix, length of the value."""
XATTR_NAME_MAX: Final = 255
"""Bytes in a name before escaping (XATTR_NAME_MAX of linux/limits.h)."""
XATTR_PREFIXES: Final = {
    0: b"",
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    5: b"lustre.",
    6: b"security.",
}
"""What the indices stand for (EROFS_XATTR_INDEX_*)."""
SHARED_MAX: Final = 128
"""C composefs refers to at most this many shared attributes from one inode and stores further ones inline."""

OVERLAY_PREFIX: Final = b"trusted.overlay."
ESCAPED_OVERLAY_PREFIX: Final = b"trusted.overlay.overlay."
"""What a user's own attributes with `OVERLAY_PREFIX` begin with in an image; overlayfs takes one level off."""
OVERLAY_METACOPY: Final = b"trusted.overlay.metacopy"
OVERLAY_REDIRECT: Final = b"trusted.overlay.redirect"
OVERLAY_OPAQUE: Final = b"trusted.overlay.opaque"

_LUSTRE: Final = 5
_INDICES: Final = tuple((index, prefix) for index, prefix in XATTR_PREFIXES.items() if index)
_FILTER_SEED: Final = 0x25BBE08F  # EROFS_XATTR_FILTER_SEED


def split_xattr_name(name: bytes, lustre: bool) -> tuple[int, bytes]:
    """Index of the prefix, and the suffix.  C composefs does not know *lustre*, composefs-rs does."""
    for index, prefix in _INDICES:
        if name.startswith(prefix) and (lustre or index != _LUSTRE):
            return index, name[len(prefix) :]
    return 0, name


@lru_cache(4096)
def filter_bit(index: int, suffix: bytes) -> int:
    """The bit of the name filter, 0 to 31, that is clear in inodes with this attribute."""
    return xxh32(suffix, _FILTER_SEED + index) & 31


_M32: Final = 0xFFFFFFFF
_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


def xxh32(data: bytes, seed: int) -> int:
    """The 32-bit xxHash, which EROFS uses for name filters (linux/lib/xxhash.c)."""
    striped = len(data) & ~15
    hashed = _stripes(data[:striped], seed) if striped else seed + _P5
    hashed = (hashed + len(data)) & _M32
    words = len(data) & ~3
    for at in range(striped, words, 4):
        hashed = _rotate((hashed + int.from_bytes(data[at : at + 4], "little") * _P3) & _M32, 17) * _P4 & _M32
    for byte in data[words:]:
        hashed = _rotate((hashed + byte * _P5) & _M32, 11) * _P1 & _M32
    hashed = (hashed ^ hashed >> 15) * _P2 & _M32
    hashed = (hashed ^ hashed >> 13) * _P3 & _M32
    return hashed ^ hashed >> 16


def _stripes(data: bytes, seed: int) -> int:
    """Four lanes over every sixteen bytes."""
    lanes = [(seed + _P1 + _P2) & _M32, (seed + _P2) & _M32, seed & _M32, (seed - _P1) & _M32]
    for at in range(0, len(data), 4):
        word = int.from_bytes(data[at : at + 4], "little")
        lane = at >> 2 & 3
        lanes[lane] = _rotate((lanes[lane] + word * _P2) & _M32, 13) * _P1 & _M32
    return sum(_rotate(value, bits) for value, bits in zip(lanes, (1, 7, 12, 18), strict=True))


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _M32

"""Single inodes of an image: header, attributes, data and references to objects, each checked before it is used.

Owns the two inode forms (linux/fs/erofs/erofs_fs.h) and what makes a file external.  Does not walk directories,
and does not undo what layouts 0 and 1 do to whiteouts.

Memory stays bounded by the image although structures of a hostile one may overlap: `Nodes.claim` adds up what
has been decoded, and more than there are bytes in the image is refused.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Final

from ...digest import Algorithm
from ...errors import ErofsError
from ...tree.inodes import object_path
from ..format import (
    BLOCK_SIZE,
    CHUNK_BASED,
    CHUNK_MAP_MAX,
    COMPACT_INODE,
    EXTENDED_INODE,
    FLAT_INLINE,
    FLAT_PLAIN,
    NULL_CHUNK,
    PATH_MAX,
    SLOT,
)
from .superblock import NANOSECONDS, Superblock
from .xattrs import NO_XATTR_SET, XattrReader, XattrSet

__all__ = ["CHUNK_FORMAT_MAX", "Header", "Nodes"]

CHUNK_FORMAT_MAX: Final = 31  # EROFS_CHUNK_FORMAT_BLKBITS_MASK
_TYPE_MASK: Final = 0o170000
_CHUNK_MAP_INLINE_MAX: Final = 1016  # mkcomposefs moves a longer one to a block, where no reader looks for it


class Header:
    """The header of the inode *nid*, and where the rest of it lies."""

    __slots__ = (
        "address",
        "body",
        "data",
        "gid",
        "kind",
        "layout",
        "mode",
        "mtime_ns",
        "nid",
        "nlink",
        "offset",
        "size",
        "tail",
        "uid",
    )

    nid: int
    offset: int
    mode: int
    nlink: int
    size: int
    address: int
    uid: int
    gid: int
    mtime_ns: int
    body: int
    layout: int
    kind: int
    data: int
    tail: int

    def __init__(self, image: bytes, superblock: Superblock, nid: int) -> None:
        self.nid = nid
        self.offset = offset = nid * SLOT
        if offset + 64 > len(image) and (offset + 32 > len(image) or image[offset] & 1):
            raise ErofsError(f"inode {nid} lies outside the image of {len(image)} bytes", offset)
        if image[offset] & 1:
            (form, icount, self.mode, self.size, self.address, self.uid, self.gid, seconds, nanoseconds, self.nlink) = (
                EXTENDED_INODE.unpack_from(image, offset)
            )
            self.mtime_ns = seconds * NANOSECONDS + nanoseconds
            self.body = offset + 64
        else:
            (form, icount, self.mode, self.nlink, self.size, self.address, self.uid, self.gid) = (
                COMPACT_INODE.unpack_from(image, offset)
            )
            self.mtime_ns = superblock.build_time_ns
            nanoseconds = self.mtime_ns % NANOSECONDS
            self.body = offset + 32
        if nanoseconds and (superblock.version == 2 or nanoseconds >= NANOSECONDS):
            raise ErofsError(f"inode {nid} has a time with {nanoseconds} nanoseconds", offset)
        self.layout = form >> 1
        self.kind = self.mode & _TYPE_MASK
        self.data = self.body + (8 + 4 * icount if icount else 0)
        self.tail = tail = self.size % BLOCK_SIZE if self.layout == FLAT_INLINE else 0
        if self.layout not in (FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED):
            raise ErofsError(f"inode {nid} has the unknown data layout {self.layout}", offset)
        if self.data + tail > len(image):
            raise ErofsError(f"inode {nid} is cut short", offset)
        # The kernel maps a single page for it.
        if tail and self.data % BLOCK_SIZE + tail > BLOCK_SIZE:
            raise ErofsError(f"the tail of inode {nid} crosses a block boundary", self.data)


class _Budget:
    def __init__(self, size: int) -> None:
        self._left = size

    def claim(self, size: int, offset: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ErofsError("structures of the image overlap", offset)


class Nodes:
    """Access to the inodes of one image.

    Args:
        algorithm: what digests must be of; None accepts those of the first one found.
    """

    def __init__(self, image: bytes, superblock: Superblock, algorithm: Algorithm | None) -> None:
        self.image = image
        self.superblock = superblock
        self.algorithm = algorithm
        self.chunk_format_min: int = CHUNK_FORMAT_MAX if superblock.version == 2 else 0
        # Not a method of this class: in a cycle the image would stay until the garbage collector comes by.
        self.claim: Callable[[int, int], None] = _Budget(len(image)).claim
        """Take note that so many bytes, at this offset, have been decoded."""
        self.xattrs: XattrReader = XattrReader(image, superblock.xattr_base, superblock.has_filter, self.claim)

    def header(self, nid: int) -> Header:
        """Read the header of inode *nid*."""
        return Header(self.image, self.superblock, nid)

    def xattr_set(self, header: Header) -> XattrSet:
        """Read the extended attributes of an inode."""
        if header.data == header.body:
            return NO_XATTR_SET
        return self.xattrs.read(header.body, header.data - header.body)

    def pieces(self, header: Header) -> Iterator[tuple[int, bytes]]:
        """The whole blocks of a file, symlink or directory one by one, then the tail, each with its offset."""
        blocks = self._blocks(header)
        self.claim(len(blocks) * BLOCK_SIZE + header.tail, header.offset)
        for block in blocks:
            yield block * BLOCK_SIZE, self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
        if header.tail:
            yield header.data, self.image[header.data : header.data + header.tail]

    def content(self, header: Header, limit: int) -> bytes:
        """The data of a file or symlink of at most *limit* bytes."""
        if header.size > limit:
            raise ErofsError(f"inode {header.nid} holds {header.size} bytes, more than {limit}", header.offset)
        return b"".join(piece for _, piece in self.pieces(header))[: header.size]

    def _blocks(self, header: Header) -> range:
        if header.layout == CHUNK_BASED:
            raise ErofsError(f"inode {header.nid} is in chunks, which only regular files are", header.offset)
        count = (header.size + (BLOCK_SIZE - 1) * (header.layout == FLAT_PLAIN)) // BLOCK_SIZE
        if count and header.address + count > len(self.image) // BLOCK_SIZE:
            raise ErofsError(f"the data of inode {header.nid} lies outside the image", header.offset)
        return range(header.address, header.address + count)

    def check_data(self, header: Header) -> None:
        """Check what an inode that is neither directory nor external says of its data, without reading it."""
        if header.kind not in (stat.S_IFREG, stat.S_IFLNK):
            if header.size or header.layout != FLAT_PLAIN:
                raise ErofsError(f"inode {header.nid} of mode {header.mode:o} has data", header.offset)
            return
        if header.layout != FLAT_INLINE or header.size >= BLOCK_SIZE:
            self._blocks(header)
        if header.kind == stat.S_IFREG or header.layout != FLAT_INLINE or self.superblock.version == 2:
            return
        fits = header.offset % BLOCK_SIZE + (header.data - header.offset) + header.tail <= BLOCK_SIZE
        # So says the kernel of a target that it finds behind its inode (fs/erofs/inode.c, erofs_fill_symlink).
        if not fits:
            raise ErofsError(f"symlink {header.nid} crosses a block boundary", header.offset)

    # -- external files -----------------------------------------------------------------------

    def reference(self, header: Header, found: XattrSet) -> tuple[bytes | None, bytes | None]:
        """`digest` and `payload`, as an `ExternalFile` has them, of the regular file *header*, which is in chunks."""
        if found.metacopy is None or found.opaque:
            raise ErofsError(f"inode {header.nid} is in chunks but not an external file", header.offset)
        digest = self._digest(header, found.metacopy)
        self._check_chunks(header, digest is not None)
        redirect = found.redirect
        canonical = object_path(digest) if digest else None
        if redirect is None:
            payload = b"" if digest else None
        elif not 1 < len(redirect) <= PATH_MAX + 1 or redirect[:1] != b"/" or b"\0" in redirect:
            raise ErofsError(f"inode {header.nid} has a malformed redirect attribute", header.offset)
        else:
            payload = None if redirect[1:] == canonical else redirect[1:]
        if self.superblock.version == 2 and digest and payload is not None:
            raise ErofsError(f"inode {header.nid} leads to another object than that of its digest", header.offset)
        return digest, payload

    def _digest(self, header: Header, metacopy: bytes) -> bytes | None:
        """The digest in the value of a metacopy attribute; None if it is empty, as for what is not verified."""
        if not metacopy:
            return None
        version, size, flags, number = metacopy[:4].ljust(4, b"\0")
        found = _ALGORITHMS.get((number, len(metacopy)))
        if found is None or (version, size, flags) != (0, len(metacopy), 0):
            raise ErofsError(f"inode {header.nid} has a malformed metacopy attribute", header.offset)
        self.require(found, header)
        return metacopy[4:]

    def require(self, found: Algorithm, header: Header) -> None:
        """Refuse an image that refers to objects of several algorithms, or of another one than the caller's."""
        if self.algorithm is None:
            self.algorithm = found
        if found is not self.algorithm:
            raise ErofsError(
                f"inode {header.nid} refers to an object by {found.value}, not by {self.algorithm.value}", header.offset
            )

    def _check_chunks(self, header: Header, verified: bool) -> None:
        """Refuse an external file that has data inside the image: its map may hold only null addresses.

        In layout 2 all chunks have the largest size, and what a map looks like depends on nothing but whether the file
        is verified: one entry whatever the size, or none, although the kernel expects one for each chunk.
        """
        high, form = divmod(header.address, 1 << 16)
        count = -(-header.size // (BLOCK_SIZE << min(form, CHUNK_FORMAT_MAX)))
        spilled = False
        if self.superblock.version == 2:
            count = int(verified)
        elif count > CHUNK_MAP_MAX:
            raise ErofsError(f"inode {header.nid} has {count} chunks, more than {CHUNK_MAP_MAX}", header.offset)
        else:
            spilled = count > _CHUNK_MAP_INLINE_MAX
        if not self.chunk_format_min <= form <= CHUNK_FORMAT_MAX or (high and not spilled):
            raise ErofsError(f"inode {header.nid} has the unknown chunk format {header.address:#x}", header.offset)
        if spilled:
            return
        self.claim(4 * count, header.data)
        if self.image[header.data : header.data + 4 * count] != NULL_CHUNK * count:
            raise ErofsError(f"inode {header.nid} has a chunk inside the image", header.data)


_ALGORITHMS: Final = {(algorithm.number, algorithm.digest_size + 4): algorithm for algorithm in Algorithm}

"""Layout 2, which composefs-rs made its own: depth first, extended inodes only, nothing done to whiteouts.

Owns the places and the bytes of inodes in this layout.  Does not own directories and headers (`writer_base`), nor
attributes (`layout_xattrs`).

Two inputs are stored as composefs-rs should have done, not as it did: sparse and unverified external files get
the null chunk that their layout promises (it wrote none, and the kernel takes what follows as an address).  Files
of more than 8 TiB get one chunk only, as there; such an image is for reading the tree, not for mounting.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Iterator
from typing import Any, Final

from ...digest import Algorithm
from ...tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ..format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_BASED,
    CHUNK_BITS_MAX,
    CONTENT_MAX,
    EXTENDED_INODE_WITH_INO,
    FIRST_INODE,
    FLAT_INLINE,
    FLAT_PLAIN,
    NULL_CHUNK,
    SLOT,
    TARGET_MAX,
)
from .base import PIECES, SECOND, ImageWriter
from .blocks import pad
from .plan import Listing, depth_first, refuse, types
from .xattrs import INLINE, Attributes, Rules

__all__ = ["FlatImage"]

_RULES: Final = Rules(
    by_index=True,
    overlay_first=True,
    shared_max=1 << 16,
    lustre=True,
    payloads=False,
    empty_is_external=True,
    size_max=(1 << 64) - 1,
    total_max=0,
)
_HEADER: Final = EXTENDED_INODE_WITH_INO.size
_CHUNK_FORMAT: Final = CHUNK_BITS_MAX - BLOCK_BITS
_CHUNKED: Final = CHUNK_BASED << 1 | 1
_pack = EXTENDED_INODE_WITH_INO.pack


class FlatImage(ImageWriter):
    """An image in layout 2."""

    version = 2

    def __init__(self, root: Directory, algorithm: Algorithm) -> None:
        plan = depth_first(root)
        super().__init__(root, plan, Attributes(root, plan.inodes, {}, _RULES, algorithm), types(root, plan.inodes))
        self._listings = {listing.index: listing for listing in plan.listings}
        self._nlinks = [plan.linked.get(inode, 1) for inode in plan.inodes] if plan.linked else [1] * len(plan.inodes)
        for listing in plan.listings:
            self._nlinks[listing.index] = 2 + listing.subdirectories
            if listing.cuts:
                self.filled.append((listing.index, len(listing.cuts)))
        self._place()
        self.attributes.locate(self.inodes_end)

    def header_fields(self) -> tuple[int, int, int]:
        """Return zeros: this layout has no flags, no build time, and counts shared ids from the first block."""
        return 0, 0, 0

    def data(self, index: int) -> Iterator[bytes]:
        """Yield the data blocks of a directory in `filled`."""
        return self.directory_blocks(self._listings[index])

    def _place(self) -> None:
        positions = []
        listings = iter(self.plan.listings)
        position = FIRST_INODE
        for inode, shape in zip(self.plan.inodes, self.attributes.shapes, strict=True):
            if type(inode) is ExternalFile:
                tail = len(NULL_CHUNK)
                head = _HEADER + shape.size
            else:
                tail = next(listings).tail if type(inode) is Directory else self._tail_size(inode)
                head = _HEADER + shape.size
                if tail:
                    last = position + head - 1
                    # One more than needed: a tail may not end at the end of a block either.
                    if last // BLOCK_SIZE != (last + 1 + tail) // BLOCK_SIZE:
                        position += BLOCK_SIZE - last % BLOCK_SIZE + SLOT - 1
                        position &= -SLOT
            positions.append(position)
            position = position + head + tail + SLOT - 1 & -SLOT
        self.set_positions(positions, position)

    def _tail_size(self, inode: Inode) -> int:
        if type(inode) is Symlink:
            if not 0 < len(inode.target) <= TARGET_MAX[2]:
                refuse(self.root, inode, f"a target of {len(inode.target)} bytes, not 1 to {TARGET_MAX[2]}")
            return len(inode.target)
        if type(inode) is InlineFile:
            if len(inode.content) > CONTENT_MAX[2]:
                refuse(self.root, inode, f"{len(inode.content)} bytes inline, at most {CONTENT_MAX[2]}")
            return len(inode.content)
        return 0

    def inodes(self) -> Iterator[bytes]:
        """Yield the bytes from the first inode to `inodes_end`."""
        out: list[bytes] = []
        end = FIRST_INODE
        block = self.first_block()
        listings = iter(self.plan.listings)
        inodes: list[Any] = self.plan.inodes
        columns = zip(inodes, self.positions, self.attributes.shapes, self._nlinks, self.nids, strict=True)
        for inode, position, shape, nlink, nid in columns:
            if position != end:
                out.append(pad(position - end))
            common = inode.uid, inode.gid, inode.mtime_ns // SECOND, 0, nlink
            kind = type(inode)
            if shape.slots:
                header = _pack(_CHUNKED, shape.icount, inode.mode, inode.size, _CHUNK_FORMAT, nid, *common)
                digest = inode.digest
                if shape.slots == INLINE:
                    path = hexlify(digest, b"/", len(digest) - 1)
                    out += (header, shape.before, digest, shape.between, path, shape.after)
                else:
                    metacopy, redirect = self.attributes.ids[digest]
                    out += (header, shape.before, metacopy, shape.between, redirect, shape.after)
                end = position + _HEADER + shape.room
            else:
                listing = next(listings) if kind is Directory else None
                form, size, address, tail = self._body(inode, listing, block)
                if listing is not None:
                    block += len(listing.cuts)
                out += (_pack(form, shape.icount, inode.mode, size, address, nid, *common), shape.before, tail)
                end = position + _HEADER + shape.size + len(tail)
            if len(out) >= PIECES:
                yield b"".join(out)
                out.clear()
        out.append(pad(self.inodes_end - end))
        yield b"".join(out)

    def _body(self, inode: Inode, listing: Listing | None, block: int) -> tuple[int, int, int, bytes]:
        """Format, size, i_u and tail of whatever is no plain external file."""
        if listing is not None:
            tail = self.directory_tail(listing)
            size = BLOCK_SIZE * len(listing.cuts) + len(tail)
            return _flat(tail), size, block if listing.cuts else 0, tail
        if isinstance(inode, ExternalFile):
            return _CHUNKED, inode.size, _CHUNK_FORMAT, NULL_CHUNK
        if isinstance(inode, Special):
            return FLAT_PLAIN << 1 | 1, 0, inode.rdev, b""
        content = (
            inode.target if isinstance(inode, Symlink) else inode.content if isinstance(inode, InlineFile) else b""
        )
        return _flat(content), len(content), 0, content


def _flat(tail: bytes) -> int:
    return (FLAT_INLINE if tail else FLAT_PLAIN) << 1 | 1

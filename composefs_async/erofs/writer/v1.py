"""Layouts 0 and 1, those of mkcomposefs: breadth first, compact inodes where they fit, whiteouts hidden and added.

Owns the places and the bytes of inodes in these layouts, and what is done to a tree before: the 256 whiteouts that
every root gets, so that no name of the objects shows through, and the attributes that stand for whiteouts of the
tree itself.  The tree stays unchanged.  Does not own directories and headers (`writer_base`), nor attributes
(`layout_xattrs`).
"""

from __future__ import annotations

import stat
from binascii import hexlify
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, Final

from ...digest import Algorithm
from ...tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from ..format import (
    BLOCK_SIZE,
    CHUNK_BASED,
    CHUNK_BITS_MAX,
    CHUNK_MAP_MAX,
    COMPACT_INODE_WITH_INO,
    CONTENT_MAX,
    EXTENDED_INODE_WITH_INO,
    FILE_TYPES,
    FIRST_INODE,
    FLAT_INLINE,
    FLAT_PLAIN,
    HAS_ACL,
    NULL_CHUNK,
    OVERLAY_OPAQUE,
    SHARED_MAX,
    SLOT,
    TARGET_MAX,
)
from .base import PIECES, SECOND, ImageWriter
from .blocks import CHUNK_FORMATS, TAIL_MAX, chunk_bits, chunk_format, pad
from .plan import Listing, Plan, breadth_first, refuse, types
from .xattrs import INLINE, Attributes, Pairs, Rules, escaped

__all__ = ["C_RULES", "RUST_RULES", "ClassicImage"]

C_RULES: Final = Rules(
    by_index=False,
    overlay_first=False,
    shared_max=SHARED_MAX,
    lustre=False,
    payloads=True,
    empty_is_external=False,
    size_max=1 << CHUNK_BITS_MAX,
    total_max=32767,
)
"""As mkcomposefs applies these layouts."""
RUST_RULES: Final = C_RULES._replace(shared_max=1 << 16, payloads=False, empty_is_external=True, total_max=0)
"""As composefs-rs applies them."""

_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_COMPACT: Final = COMPACT_INODE_WITH_INO.size
_EXTENDED: Final = EXTENDED_INODE_WITH_INO.size
_CHUNKED: Final = CHUNK_BASED << 1
_REGULAR_TYPE: Final = FILE_TYPES[stat.S_IFREG] << 16
_DEVICE_TYPE: Final = FILE_TYPES[stat.S_IFCHR] << 16
_STUB_NAMES: Final = [b"%02x" % number for number in range(256)]
_LABEL: Final = b"security.selinux"
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_WHITEOUT: Final = {b"trusted.overlay.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
_HAS_WHITEOUTS: Final = {b"trusted.overlay.overlay.whiteouts": b"", b"user.overlay.whiteouts": b""}
_OPAQUE: Final = {b"trusted.overlay.overlay.opaque": b"x", b"user.overlay.opaque": b"x"}
_pack_compact = COMPACT_INODE_WITH_INO.pack
_pack_extended = EXTENDED_INODE_WITH_INO.pack


class ClassicImage(ImageWriter):
    """An image in layout 0 or 1.

    Args:
        rules: `C_RULES` or `RUST_RULES`.
    """

    def __init__(self, root: Directory, version: int, rules: Rules, algorithm: Algorithm) -> None:
        self.version = version
        self._rules = rules
        self._as_c = rules.payloads
        stubs = _stubs(root)
        plan = breadth_first(root, stubs, self._as_c)
        self._special: dict[Inode, Pairs] = {}
        kinds = types(root, plan.inodes)
        self._whiteouts = self._find_whiteouts(plan, kinds, set(stubs.values()))
        self._mark(root, plan)
        attributes = Attributes(root, plan.inodes, self._special, rules, algorithm)
        super().__init__(root, plan, attributes, kinds)
        for index in self._whiteouts:
            self.types[index] = _REGULAR_TYPE
        self._nlinks = self._count_links()
        self._build_time = self._earliest()
        self._small = bytearray(len(plan.inodes))
        """Whether an inode is compact."""
        self._bodies: list[tuple[int, int, int]] = []
        """Size, data blocks and tail of each inode that is no plain external file."""
        self._place()
        attributes.locate(self.inodes_end % BLOCK_SIZE)

    # -- what the tree becomes

    def _find_whiteouts(self, plan: Plan, kinds: list[int], stubs: set[Inode]) -> dict[int, Special]:
        """The tree's own whiteouts by index."""
        devices = [(index, plan.inodes[index]) for index, kind in enumerate(kinds) if kind == _DEVICE_TYPE]
        found: dict[int, Special] = {
            index: inode
            for index, inode in devices
            if isinstance(inode, Special) and inode.is_whiteout and inode not in stubs
        }
        if not found or self._as_c:
            return found
        for inode in found.values():
            if inode in plan.linked:
                refuse(plan.listings[0].directory, inode, "a whiteout with several names")
        top = plan.listings[0]
        like_stubs = [index for index, inode in found.items() if _is_like_stub(top, inode)]
        return {index: inode for index, inode in found.items() if index not in like_stubs}

    def _mark(self, root: Directory, plan: Plan) -> None:
        """Collect what further attributes whiteouts, their directories and the root get."""
        added: dict[Inode, dict[bytes, bytes]] = {root: {}}
        starts = [listing.start for listing in plan.listings]
        for index, whiteout in self._whiteouts.items():
            added[whiteout] = _WHITEOUT
            # Of listings that own nothing and start at the same index, the owner is the last.
            directory = plan.listings[bisect_right(starts, index) - 1].directory
            added.setdefault(directory, {}).update(_HAS_WHITEOUTS | (_OPAQUE if self.version else {}))
        added[root][OVERLAY_OPAQUE] = b"y"
        for inode, pairs in added.items():
            self._special[inode] = list((dict(escaped(inode.xattrs)) | pairs).items())

    def _count_links(self) -> list[int]:
        plan = self.plan
        if self._as_c:
            nlinks = [inode.nlink for inode in plan.inodes]
        else:
            nlinks = [1] * len(plan.inodes)
            for inode, count in plan.linked.items():
                nlinks[plan.places[inode]] = count
        for listing in plan.listings:
            nlinks[listing.index] = 2 + listing.subdirectories
        return nlinks

    def _earliest(self) -> int:
        times = [inode.mtime_ns for inode in self.plan.inodes]
        earliest = min(times)
        if earliest >= 0 or self._as_c:
            return earliest
        # composefs-rs compares seconds without their sign, so that those before 1970 count as the largest.
        return min(times, key=lambda time: (time // SECOND & _U64, time % SECOND))

    # -- places

    def _place(self) -> None:
        build_time = self._build_time
        small, bodies, positions = self._small, self._bodies, []
        end = FIRST_INODE
        listings = iter(self.plan.listings)
        inodes: list[Any] = self.plan.inodes
        columns = zip(inodes, self.attributes.shapes, self._nlinks, strict=True)
        for index, (inode, shape, nlink) in enumerate(columns):
            position = end
            if shape.slots:
                # A null chunk never crosses the end of a block: what stands before it is a multiple of its four bytes.
                if (
                    inode.mtime_ns == build_time
                    and nlink <= _U16
                    and inode.uid <= _U16
                    and inode.gid <= _U16
                    and inode.size <= _U32
                ):
                    small[index] = 1
                    end = position + _COMPACT + shape.room
                else:
                    end = position + _EXTENDED + shape.room
            else:
                size, blocks, tail = self._measure(inode, next(listings) if type(inode) is Directory else None)
                stated = inode.size if type(inode) is Special and not inode.is_whiteout else size
                compact = inode.mtime_ns == build_time and max(nlink, inode.uid, inode.gid) <= _U16 and stated <= _U32
                small[index] = compact
                head = (_COMPACT if compact else _EXTENDED) + shape.size
                if tail:
                    place = _place_symlink if type(inode) is Symlink else _place_tail
                    position, spilled = place(position, head, tail)
                    if spilled:
                        blocks, tail = blocks + 1, 0
                bodies.append((size, blocks, tail))
                if blocks:
                    self.filled.append((index, blocks))
                end = position + head + tail + SLOT - 1 & -SLOT
            positions.append(position)
        self.set_positions(positions, end)

    def _measure(self, inode: Inode, listing: Listing | None) -> tuple[int, int, int]:
        """Size, number of data blocks, and bytes of the tail."""
        if listing is not None:
            blocks = len(listing.cuts)
            return BLOCK_SIZE * blocks + listing.tail, blocks, listing.tail
        if isinstance(inode, Symlink):
            size = len(inode.target)
            if not 0 < size <= TARGET_MAX[self.version]:
                refuse(self.root, inode, f"a target of {size} bytes, not 1 to {TARGET_MAX[self.version]}")
            return size, 0, size
        if isinstance(inode, InlineFile):
            size = len(inode.content)
            if size > CONTENT_MAX[self.version]:
                refuse(self.root, inode, f"{size} bytes inline, at most {CONTENT_MAX[self.version]}")
            blocks, tail = divmod(size, BLOCK_SIZE)
            return (size, blocks + 1, 0) if tail > TAIL_MAX else (size, blocks, tail)
        if isinstance(inode, ExternalFile):
            return inode.size, 0, self._map_size(inode)
        return 0, 0, 0

    def _map_size(self, file: ExternalFile) -> int:
        if file.size > CHUNK_MAP_MAX << CHUNK_BITS_MAX or file.size < 0:
            refuse(self.root, file, f"{file.size} bytes, at most {CHUNK_MAP_MAX << CHUNK_BITS_MAX}")
        return len(NULL_CHUNK) * -(-file.size >> chunk_bits(file.size)) if file.size else 0

    # -- bytes

    def header_fields(self) -> tuple[int, int, int]:
        """Return the flags, the build time in nanoseconds, and the block from which shared ids count."""
        names = self.attributes.names()
        acl = any(name in _ACLS if self._as_c else name.startswith(_ACLS) for name in names)
        return HAS_ACL * acl, self._build_time, self.inodes_end // BLOCK_SIZE

    def inodes(self) -> Iterator[bytes]:
        """Yield the bytes from the first inode to `inodes_end`."""
        out: list[bytes] = []
        end = FIRST_INODE
        ids, formats = self.attributes.ids, CHUNK_FORMATS
        bodies, listings, block = iter(self._bodies), iter(self.plan.listings), self.first_block()
        inodes: list[Any] = self.plan.inodes
        columns = zip(inodes, self.positions, self._small, self.attributes.shapes, self._nlinks, strict=True)
        for ino, (inode, position, small, shape, nlink) in enumerate(columns):
            if position != end:
                out.append(pad(position - end))
            if not shape.slots:
                body = next(bodies)
                pieces = self._general(ino, inode, next(listings) if type(inode) is Directory else None, body, block)
                block += body[1]
                end = position + sum(map(len, pieces))
                out += pieces
            else:
                length = inode.size
                chunks = formats[(length - 1).bit_length()]
                mode, uid, gid = inode.mode, inode.uid, inode.gid
                if small:
                    end = position + _COMPACT + shape.room
                    header = _pack_compact(_CHUNKED, shape.icount, mode, nlink, length, chunks, ino, uid, gid)
                else:
                    end = position + _EXTENDED + shape.room
                    seconds, rest = divmod(inode.mtime_ns, SECOND)
                    icount = shape.icount
                    header = _pack_extended(
                        _CHUNKED | 1, icount, mode, length, chunks, ino, uid, gid, seconds, rest, nlink
                    )
                digest = inode.digest
                if shape.slots == INLINE:
                    path = hexlify(digest, b"/", len(digest) - 1)
                    out += (header, shape.before, digest, shape.between, path, shape.after)
                else:
                    metacopy, redirect = ids[digest]
                    out += (header, shape.before, metacopy, shape.between, redirect, shape.after)
            if len(out) >= PIECES:
                yield b"".join(out)
                out.clear()
        out.append(pad(self.inodes_end - end))
        yield b"".join(out)

    def _general(
        self, ino: int, inode: Inode, listing: Listing | None, body: tuple[int, int, int], block: int
    ) -> tuple[bytes, bytes, bytes]:
        """Header, attributes and tail of whatever is no plain external file."""
        size, blocks, tail_size = body
        shape, small, nlink = self.attributes.shapes[ino], self._small[ino], self._nlinks[ino]
        layout, address, mode = FLAT_INLINE if tail_size else FLAT_PLAIN, block if blocks else 0, inode.mode
        tail = b""
        if listing is not None:
            tail = self.directory_tail(listing)
        elif isinstance(inode, ExternalFile):
            if size or self._rules.empty_is_external:
                # The format takes half of the field, also where C composefs has an address in it.
                layout, address = CHUNK_BASED, address & ~_U16 | chunk_format(size)
            tail = NULL_CHUNK * (tail_size // len(NULL_CHUNK))
        elif isinstance(inode, Special):
            address = inode.rdev
            if ino in self._whiteouts:
                mode = stat.S_IFREG | stat.S_IMODE(mode)
        elif tail_size:
            tail = _content(inode)[-tail_size:]
        if small:
            header = _pack_compact(layout << 1, shape.icount, mode, nlink, size, address, ino, inode.uid, inode.gid)
        else:
            seconds, nanoseconds = divmod(inode.mtime_ns, SECOND)
            fields = layout << 1 | 1, shape.icount, mode, size, address, ino, inode.uid, inode.gid
            header = _pack_extended(*fields, seconds, nanoseconds, nlink)
        return header, shape.before, tail

    def data(self, index: int) -> Iterator[bytes]:
        """Yield the data blocks of an inode in `filled`."""
        inode = self.plan.inodes[index]
        if isinstance(inode, Directory):
            yield from self.directory_blocks(self._listing(index))
        elif isinstance(inode, ExternalFile):
            yield NULL_CHUNK * (BLOCK_SIZE // len(NULL_CHUNK))
        else:
            block = _content(inode)[:BLOCK_SIZE]
            yield block + pad(BLOCK_SIZE - len(block))

    def _listing(self, index: int) -> Listing:
        return self.plan.listings[bisect_left(self.plan.listings, index, key=lambda listing: listing.index)]


def _content(inode: Inode) -> bytes:
    return inode.target if isinstance(inode, Symlink) else inode.content if isinstance(inode, InlineFile) else b""


def _place_symlink(position: int, head: int, tail: int) -> tuple[int, bool]:
    """Where the inode goes, and whether its target gets a block: all of it must lie in one block."""
    total = head + tail
    if position // BLOCK_SIZE != (position + total - 1) // BLOCK_SIZE:
        position = -(-position // BLOCK_SIZE) * BLOCK_SIZE
    return position, total >= BLOCK_SIZE


def _place_tail(position: int, head: int, tail: int) -> tuple[int, bool]:
    """Where an inode goes of which only the tail must lie in one block, and whether it was moved for that."""
    room = BLOCK_SIZE - (position + head) % BLOCK_SIZE
    if room >= tail:
        return position, False
    moved = position + (room + SLOT - 1 & -SLOT)
    if tail <= BLOCK_SIZE - (moved + head) % BLOCK_SIZE:
        return moved, False
    # Only chunk maps of more than 1016 entries come here.  C composefs writes them where no reader looks.
    return -(-position // BLOCK_SIZE) * BLOCK_SIZE, True


def _stubs(root: Directory) -> dict[bytes, Inode]:
    """The whiteouts that hide the directories of the object store, where the root has no such name itself."""
    label: Xattrs = tuple(pair for pair in root.xattrs if pair[0] == _LABEL)
    fields = stat.S_IFCHR | 0o644, 1, root.uid, root.gid, root.mtime_ns, label
    return {name: Special(*fields) for name in _STUB_NAMES if name not in root.children}


def _is_like_stub(top: Listing, inode: Special) -> bool:
    """Whether composefs-rs takes a whiteout of the tree for one of `_stubs`."""
    root = top.directory
    label = tuple(pair for pair in root.xattrs if pair[0] == _LABEL)
    return (
        any(root.children.get(name) is inode for name in _STUB_NAMES)
        and inode.permissions == 0o644
        and (inode.uid, inode.gid, inode.mtime_ns, inode.xattrs) == (root.uid, root.gid, root.mtime_ns, label)
    )

"""The walk over an image from its root: breadth first, each inode once, in time linear in the image.

Owns what can only be seen from several inodes together: that directories form a tree, that entries say what
their inodes are, link counts, the number of inodes, and the stubs of layouts 0 and 1.  What is made of the
inodes is up to the subclasses (`reader`, `references`).
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections import deque
from typing import Final

from ...digest import Algorithm
from ...errors import ErofsError
from ..format import BLOCK_SIZE, DEPTH_MAX, FILE_TYPES, FLAT_PLAIN, SLOT
from .directory import Listing, parse_listing
from .nodes import Header, Nodes
from .plain import PlainFiles
from .superblock import Image, Superblock, parse_superblock, snapshot
from .xattrs import XattrSet

__all__ = ["REGULAR_TYPE", "STUB_NAMES", "ImageWalk", "OpenDirectory"]

STUB_NAMES: Final = frozenset(b"%02x" % number for number in range(256))
"""Names in the root of layouts 0 and 1: the directories of an object store, which overlayfs must not show.

Where the tree has no such name, the image has a whiteout.
"""

REGULAR_TYPE: Final = FILE_TYPES[stat.S_IFREG]


class OpenDirectory:
    """A directory whose entries are still to be read."""

    __slots__ = ("depth", "header", "parent", "xattrs")

    header: Header
    xattrs: XattrSet
    parent: int
    depth: int

    def __init__(self, header: Header, xattrs: XattrSet, parent: int, depth: int) -> None:
        self.header, self.xattrs, self.parent, self.depth = header, xattrs, parent, depth


class ImageWalk(ABC):
    """One walk over one image; `run` may be called once.

    Raises:
        ErofsError: also from the constructor; no input makes it raise anything else.
    """

    def __init__(self, image: Image, algorithm: Algorithm | None, limit: int) -> None:
        self.image: bytes = snapshot(image, limit)
        self.superblock: Superblock = parse_superblock(self.image)
        self.nodes: Nodes = Nodes(self.image, self.superblock, algorithm)
        self.plain: PlainFiles = PlainFiles(self.nodes)
        self.directories: dict[int, OpenDirectory] = {}
        self._waiting: deque[OpenDirectory] = deque()
        self.nlinks: dict[int, int] = {}
        """What inodes say of their number of names, unless it is one."""
        self.linked: dict[int, int] = {}
        """How many names inodes have, of which several were seen."""

    @abstractmethod
    def visit(self, directory: OpenDirectory, listing: Listing) -> int:
        """Take the entries of one directory and return how many subdirectories are among them."""

    @abstractmethod
    def count(self) -> int:
        """How many inodes that are not directories have been seen."""

    def run(self) -> None:
        """Visit every directory, the root first, then check the numbers of links and inodes."""
        root = self.superblock.root
        self.open_directory(self.nodes.header(root), None)
        while self._waiting:
            directory = self._waiting.popleft()
            header = directory.header
            listing = parse_listing(self.nodes.pieces(header), header.nid, directory.parent, header.offset)
            if not directory.depth and self.superblock.version < 2 and not STUB_NAMES.issubset(listing.names):
                raise ErofsError("the root lacks a name between '00' and 'ff'", header.offset)
            subdirectories = self.visit(directory, listing)
            if header.nlink != 2 + subdirectories:
                reason = f"directory {header.nid} has {subdirectories} subdirectories but {header.nlink} links"
                raise ErofsError(reason, header.offset)
        self._check_totals()

    def open_directory(self, header: Header, parent: OpenDirectory | None) -> OpenDirectory:
        """Queue the directory with this *header* for its visit."""
        if header.kind != stat.S_IFDIR:
            raise ErofsError(f"inode {header.nid} is not a directory", header.offset)
        if header.nid in self.directories:
            raise ErofsError(f"directory {header.nid} has two names", header.offset)
        depth = parent.depth + 1 if parent else 0
        if depth >= DEPTH_MAX:
            raise ErofsError(f"directories are nested deeper than {DEPTH_MAX}", header.offset)
        if header.layout == FLAT_PLAIN and header.size % BLOCK_SIZE:
            raise ErofsError(f"directory {header.nid} ends inside a block", header.offset)
        found = OpenDirectory(header, self.nodes.xattr_set(header), parent.header.nid if parent else header.nid, depth)
        # overlayfs obeys these attributes, so the names below could be hidden or come from elsewhere.
        if found.xattrs.has_overlay and not self._may_be_opaque(found):
            raise ErofsError(f"directory {header.nid} has attributes of overlayfs", header.offset)
        self.directories[header.nid] = found
        self._waiting.append(found)
        return found

    def leaf_header(self, nid: int, file_type: int) -> Header:
        """The header of an inode that its entry says is of *file_type*, and no directory."""
        header = self.nodes.header(nid)
        if FILE_TYPES.get(header.kind) != file_type:
            raise ErofsError(f"inode {nid} has mode {header.mode:o}, its entry has type {file_type}", header.offset)
        if header.nlink != 1:
            self.nlinks[nid] = header.nlink
        return header

    def leaf_xattrs(self, header: Header) -> XattrSet:
        """The attributes of an inode that is neither directory nor external."""
        self.nodes.check_data(header)
        found = self.nodes.xattr_set(header)
        if found.has_overlay:
            raise ErofsError(f"inode {header.nid} has attributes of overlayfs but is not external", header.offset)
        return found

    def seen_again(self, nid: int, file_type: int, known: int) -> None:
        """Count another name of an inode of the type *known*."""
        if file_type != known:
            raise ErofsError(f"the entries of inode {nid} give it the types {known} and {file_type}", nid * SLOT)
        self.linked[nid] = self.linked.get(nid, 1) + 1

    def is_native_whiteout(self, header: Header) -> bool:
        """Whether an inode is a whiteout in a layout that escapes those of the tree."""
        return self.superblock.version < 2 and header.kind == stat.S_IFCHR and not header.address

    def check_stub(self, directory: OpenDirectory, name: bytes) -> None:
        """Refuse a native whiteout that is not one of those added to the root."""
        if directory.depth or name not in STUB_NAMES:
            raise ErofsError(f"a whiteout {name!r} that is not escaped", directory.header.offset)

    def _may_be_opaque(self, directory: OpenDirectory) -> bool:
        found = directory.xattrs
        at_root = not directory.depth and self.superblock.version < 2
        return at_root and found.metacopy is None and found.redirect is None

    def _check_totals(self) -> None:
        inodes = len(self.directories) + self.count()
        if inodes != self.superblock.inodes:
            raise ErofsError(f"{self.superblock.inodes} inodes announced, {inodes} found", 1024 + 16)
        # mkcomposefs writes the number that the dump file states, whether true or not.
        if self.superblock.version == 2:
            wrong = self.nlinks.items() ^ self.linked.items()
            for nid, _ in sorted(wrong):
                found = self.linked.get(nid, 1)
                raise ErofsError(f"inode {nid} has {found} names but {self.nlinks.get(nid, 1)} links", nid * SLOT)

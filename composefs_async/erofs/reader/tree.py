"""Image to tree: the inverse of `writer`, for all three layouts and safe for hostile input.

Owns what inodes become in a tree, and undoing what layouts 0 and 1 do to whiteouts.  Does not own the checks of
the form of an image, which are in the modules ``reader_*``, nor its references (`references`).
"""

from __future__ import annotations

import stat
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ...digest import Algorithm
from ...errors import ErofsError
from ...tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from ..format import CHUNK_BASED, CONTENT_MAX, DIRECTORY_TYPE, FILE_TYPES, OVERLAY_PREFIX, TARGET_MAX
from ..references import ReferenceWalk
from .directory import Listing
from .nodes import Header
from .superblock import IMAGE_LIMIT, Image
from .walk import REGULAR_TYPE, ImageWalk, OpenDirectory
from .xattrs import XattrSet

__all__ = ["IMAGE_LIMIT", "Image", "ImageInfo", "image_info", "image_to_tree"]

_WHITEOUT_MARKS: Final = ((OVERLAY_PREFIX + b"whiteout", b""), (b"user.overlay.whiteout", b""))
_PARENT_MARKS_0: Final = ((OVERLAY_PREFIX + b"whiteouts", b""), (b"user.overlay.whiteouts", b""))
_PARENT_MARKS: Final = {
    0: _PARENT_MARKS_0,
    1: (*_PARENT_MARKS_0, (OVERLAY_PREFIX + b"opaque", b"x"), (b"user.overlay.opaque", b"x")),
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image is, apart from its tree."""

    version: int
    """Version of the layout: 0 and 1 are those of mkcomposefs, 2 is the other one of composefs-rs."""
    algorithm: Algorithm | None
    """Algorithm of the objects that the image refers to; None if there are none."""
    size: int
    """Size of the image in bytes."""
    inodes: int
    """Whiteouts that the layout adds to the root included."""
    directories: int
    objects: int
    """How many different ones it refers to."""
    has_acl: bool
    """Whether it says that POSIX ACLs occur in it, which layout 2 never does."""


def image_to_tree(image: Image, algorithm: Algorithm | None = None, *, limit: int = IMAGE_LIMIT) -> Directory:
    """The root of the tree from which *image* was made.

    Whiteouts come back as character devices 0:0, and a user's own attributes ``trusted.overlay.*`` under their
    names; what a layout adds is left out.  Safe for untrusted input: time and memory are linear in the image, which is
    copied first unless it is `bytes`, and a tree that comes back can be written and read again with the same result.
    `Inode.nlink` is what the image says, which in layouts 0 and 1 need not be true.

    A user's attribute that had the name of a mark on a directory with a whiteout is lost in the image already.

    Args:
        algorithm: of the objects referred to; None accepts either, but not both in one image.
        limit: in bytes; a longer image is refused.

    Raises:
        ErofsError: the image is damaged or hostile.
    """
    walk = _TreeWalk(image, algorithm, limit)
    walk.run()
    return walk.finish()


def image_info(image: Image, *, limit: int = IMAGE_LIMIT) -> ImageInfo:
    """Facts about *image*; reads and checks all of it, as `references.image_object_ids` does.

    Raises:
        ErofsError: the image is damaged or hostile.
    """
    walk = ReferenceWalk(image, None, limit)
    walk.run()
    superblock = walk.superblock
    return ImageInfo(
        superblock.version,
        walk.nodes.algorithm,
        len(walk.image),
        superblock.inodes,
        len(walk.directories),
        len(walk.found),
        superblock.has_acl,
    )


class _TreeWalk(ImageWalk):
    def __init__(self, image: Image, algorithm: Algorithm | None, limit: int) -> None:
        super().__init__(image, algorithm, limit)
        self._leaves: dict[int, Inode] = {}
        self._directories: dict[int, Directory] = {}
        self._unsettled: dict[int, list[tuple[OpenDirectory, bytes]]] = {}
        """Names of what could be a stub or an escaped whiteout."""

    def count(self) -> int:
        return len(self._leaves)

    def open_directory(self, header: Header, parent: OpenDirectory | None) -> OpenDirectory:
        found = super().open_directory(header, parent)
        self._directories[header.nid] = Directory(
            header.mode, header.nlink, header.uid, header.gid, header.mtime_ns, found.xattrs.own
        )
        return found

    def visit(self, directory: OpenDirectory, listing: Listing) -> int:
        children = self._directories[directory.header.nid].children
        leaves, unsettled, subdirectories = self._leaves, self._unsettled, 0
        for name, nid, file_type in zip(listing.names, listing.nids, listing.types, strict=True):
            node = leaves.get(nid)
            if node is not None:
                self.seen_again(nid, file_type, FILE_TYPES[stat.S_IFMT(node.mode)])
            elif file_type == DIRECTORY_TYPE:
                self.open_directory(self.nodes.header(nid), directory)
                node = self._directories[nid]
                subdirectories += 1
            else:
                node = leaves[nid] = self._plain_file(nid, file_type) or self._leaf(nid, file_type)
            children[name] = node
            if nid in unsettled:
                unsettled[nid].append((directory, name))
        return subdirectories

    def _plain_file(self, nid: int, file_type: int) -> ExternalFile | None:
        found = self.plain.find(nid) if file_type == REGULAR_TYPE else None
        if found is None:
            return None
        mode, nlink, uid, gid, mtime_ns, xattrs, size, digest = found
        if nlink != 1:
            self.nlinks[nid] = nlink
        return ExternalFile(mode, nlink, uid, gid, mtime_ns, xattrs, size, digest, None)

    def _leaf(self, nid: int, file_type: int) -> Inode:
        header = self.leaf_header(nid, file_type)
        if file_type == REGULAR_TYPE and header.layout == CHUNK_BASED:
            found = self.nodes.xattr_set(header)
            digest, payload = self.nodes.reference(header, found)
            return ExternalFile(*_stat(header, found), header.size, digest, payload)
        found = self.leaf_xattrs(header)
        version = self.superblock.version
        if file_type == REGULAR_TYPE:
            if version < 2 and not header.size and all(mark in found.own for mark in _WHITEOUT_MARKS):
                self._unsettled[nid] = []
            return InlineFile(*_stat(header, found), self.nodes.content(header, CONTENT_MAX[version]))
        if header.kind == stat.S_IFLNK:
            return Symlink(*_stat(header, found), self._target(header))
        if self.is_native_whiteout(header):
            self._unsettled[nid] = []
        rdev = header.address if header.kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return Special(*_stat(header, found), rdev)

    def _target(self, header: Header) -> bytes:
        target = self.nodes.content(header, TARGET_MAX[self.superblock.version])
        if not target or b"\0" in target:
            raise ErofsError(f"symlink {header.nid} has an invalid target", header.offset)
        return target

    # -- whiteouts ----------------------------------------------------------------------------

    def finish(self) -> Directory:
        """Settle what only the whole walk could tell, and return the root."""
        if self.linked and self.superblock.version < 2:
            self._mark_links()  # while the stubs are there, which count
        for nid, places in self._unsettled.items():
            file = self._leaves[nid]
            if isinstance(file, InlineFile):
                self._settle_file(file, places)
                continue
            for directory, name in places:
                self.check_stub(directory, name)
                del self._directories[directory.header.nid].children[name]
        for directory in self.directories.values():
            if directory.xattrs.repeated:
                _check_names(self._directories[directory.header.nid].xattrs, directory.header)
        return self._directories[self.superblock.root]

    def _settle_file(self, file: InlineFile, places: list[tuple[OpenDirectory, bytes]]) -> None:
        """Turn an escaped whiteout back into one: then its directory has marks too, which a user's own file lacks."""
        marks = _PARENT_MARKS[self.superblock.version]
        marked = [directory for directory, _ in places if all(mark in directory.xattrs.own for mark in marks)]
        if not marked:
            return
        mode, own = file.permissions | stat.S_IFCHR, _without(file.xattrs, _WHITEOUT_MARKS)
        whiteout = Special(mode, file.nlink, file.uid, file.gid, file.mtime_ns, own)
        for directory, name in places:
            self._directories[directory.header.nid].children[name] = whiteout
        for directory in marked:
            self._directories[directory.header.nid].xattrs = _without(directory.xattrs.own, marks)

    def _mark_links(self) -> None:
        """Set `Directory.links`: of several names, the inode is that of the one where it stands in the image.

        Inodes with one name stand in the order of the walk, so a name owns its inode if as many of those come before
        it in the image as in the walk.
        """
        numbers = {inode: nid for nid, inode in (*self._leaves.items(), *self._directories.items())}
        listings = [(directory, list(directory.children.items())) for directory in self._directories.values()]
        single = sorted(
            nid for _, children in listings for _, child in children if (nid := numbers[child]) not in self.linked
        )
        passed, owned = 0, set[int]()
        for directory, children in listings:
            links = set[bytes]()
            for name, child in children:
                nid = numbers[child]
                if nid not in self.linked:
                    passed += 1
                elif nid not in owned and bisect_left(single, nid) == passed:
                    owned.add(nid)
                else:
                    links.add(name)
            directory.links = frozenset(links)


def _stat(header: Header, found: XattrSet) -> tuple[int, int, int, int, int, Xattrs]:
    if found.repeated:
        _check_names(found.own, header)
    return header.mode, header.nlink, header.uid, header.gid, header.mtime_ns, found.own


def _without(xattrs: Xattrs, marks: tuple[tuple[bytes, bytes], ...]) -> Xattrs:
    """*xattrs* less one of each mark; composefs-rs adds marks also beside an attribute of the same name."""
    kept = list(xattrs)
    for mark in marks:
        kept.remove(mark)
    return tuple(kept)


def _check_names(xattrs: Xattrs, header: Header) -> None:
    names = [name for name, _ in xattrs]
    for before, name in pairwise(names):
        if before == name:
            raise ErofsError(f"inode {header.nid} has two attributes {name!r}", header.offset)

"""Inodes of a composefs tree: what one file, directory, link or device is, and nothing about its name.

Owns the kinds and their fields.  Does not own walking (`walk`), text (`dumpfile`) or images (`erofs`).

A tree is its root `Directory`.  A **hard link** is the same object under two names, so inodes compare by
identity.  Names, targets and xattrs are bytes and are not checked here: whoever reads them from outside checks
them, and `erofs.writer` refuses what an image cannot hold.

These are plain classes with slots because trees have a hundred thousand of them: 0.2 µs to build one, where a
frozen dataclass takes 1.1 µs.  Treat an inode that several threads see as immutable.
"""

from __future__ import annotations

import stat
from binascii import hexlify
from typing import Final, TypeAlias

__all__ = [
    "NO_XATTRS",
    "Directory",
    "ExternalFile",
    "InlineFile",
    "Inode",
    "Special",
    "Symlink",
    "Xattrs",
    "make_xattrs",
    "object_path",
]

Xattrs: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Pairs of name and value in byte order of the names, each name once.

Inodes with equal xattrs should share one tuple: it saves memory, and the image writer is fastest then.
"""

NO_XATTRS: Final[Xattrs] = ()


class Inode:
    """What all kinds have in common; never an inode by itself."""

    __slots__ = ("gid", "mode", "mtime_ns", "nlink", "uid", "xattrs")

    mode: int
    """``st_mode`` with the type bits, which agree with the class."""
    nlink: int
    """As a dump file or an image states it; `walk.count_links` counts what a tree really has."""
    uid: int
    gid: int
    mtime_ns: int
    """Nanoseconds since 1970; may be negative."""
    xattrs: Xattrs

    def __init__(self, mode: int, nlink: int, uid: int, gid: int, mtime_ns: int, xattrs: Xattrs = NO_XATTRS) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs

    @property
    def permissions(self) -> int:
        """`mode` without the type bits."""
        return self.mode & 0o7777

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {stat.filemode(self.mode)} {self.uid}:{self.gid}>"


class Directory(Inode):
    """A directory; its children are in no particular order."""

    __slots__ = ("children", "links")

    children: dict[bytes, Inode]
    links: frozenset[bytes]
    """Names of children that a dump file gave as hard links (``@``), so that another name owns the inode.

    Only the image layout of the C tools looks at this, and only for the order of inodes.  Where it says nothing,
    the first name in sorted pre-order owns the inode.
    """

    def __init__(
        self,
        mode: int,
        nlink: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        xattrs: Xattrs = NO_XATTRS,
        children: dict[bytes, Inode] | None = None,
    ) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.children = {} if children is None else children
        self.links = _NO_NAMES


class InlineFile(Inode):
    """A regular file whose content lies in the image."""

    __slots__ = ("content",)

    content: bytes

    def __init__(
        self, mode: int, nlink: int, uid: int, gid: int, mtime_ns: int, xattrs: Xattrs = NO_XATTRS, content: bytes = b""
    ) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.content = content


class ExternalFile(Inode):
    """A regular file whose content lies in an object.

    ==========  ============  ==================================================================
    `digest`    `payload`     meaning
    ==========  ============  ==================================================================
    bytes       None          the usual one: the object at ``XX/REST`` of the digest
    bytes       a path        verified, but the object has another path
    bytes       ``b""``       verified, but the image does not say where the object is
    None        a path        an object that nothing verifies
    None        None, b""     sparse: `size` bytes of zeros, no object
    ==========  ============  ==================================================================
    """

    __slots__ = ("digest", "payload", "size")

    size: int
    """In bytes."""
    digest: bytes | None
    """The raw fs-verity digest, 32 or 64 bytes; an `ObjectId` is one."""
    payload: bytes | None
    """The object's path below the object store; None where it is the canonical one."""

    def __init__(  # noqa: PLR0917 - keywords would cost more than the inode
        self,
        mode: int,
        nlink: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        xattrs: Xattrs,
        size: int,
        digest: bytes | None,
        payload: bytes | None = None,
    ) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.size = size
        self.digest = digest
        self.payload = payload

    @property
    def path(self) -> bytes:
        """The path of the object below the object store, `payload` or ``XX/REST``; empty if there is none."""
        if self.payload is not None:
            return self.payload
        return object_path(self.digest) if self.digest else b""

    @property
    def is_sparse(self) -> bool:
        """True if the file has a size and neither a digest nor content: it reads as zeros."""
        return self.digest is None and not self.payload


class Symlink(Inode):
    """A symbolic link."""

    __slots__ = ("target",)

    target: bytes

    def __init__(self, mode: int, nlink: int, uid: int, gid: int, mtime_ns: int, xattrs: Xattrs, target: bytes) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.target = target


class Special(Inode):
    """A device, fifo or socket: the type bits of `mode` tell which."""

    __slots__ = ("rdev", "size")

    rdev: int
    """As in ``st_rdev``; 0 for fifos and sockets."""
    size: int
    """In bytes, as a dump file says; means nothing, but makes the inode extended where it has more than 32 bits."""

    def __init__(
        self, mode: int, nlink: int, uid: int, gid: int, mtime_ns: int, xattrs: Xattrs = NO_XATTRS, rdev: int = 0
    ) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.rdev = rdev
        self.size = 0

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs would take it for a deleted name: a character device 0:0."""
        return self.rdev == 0 and stat.S_ISCHR(self.mode)


_NO_NAMES: Final[frozenset[bytes]] = frozenset()


def object_path(digest: bytes) -> bytes:
    """The canonical path ``XX/REST`` of the object with this raw digest."""
    return hexlify(digest, b"/", len(digest) - 1)


def make_xattrs(pairs: dict[bytes, bytes]) -> Xattrs:
    """Xattrs in the order that inodes need."""
    return tuple(sorted(pairs.items()))

"""What is done to a tree before it becomes the image of an operating system: `transform_for_oci`.

Owns that transformation, which trees from layers and from directories share.  Does not own how they are put together.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Final

from .inodes import NO_XATTRS, Directory, Inode, Xattrs
from .walk import directories

__all__ = ["XattrFilter", "clamp_times", "filter_xattrs", "settle_links", "transform_for_oci"]

_CAPABILITY: Final = b"security.capability"
_USER: Final = b"user."


class XattrFilter(enum.Enum):
    """Which extended attributes stay; the values of the first two are how composefs-rs spells them."""

    ALLOWLIST_ONLY = "allowlist-only"
    """Only ``security.capability``: the others depend on the machine that packed the layer."""
    KEEP_USER_XATTRS = "keep-user-xattrs"
    """These, and all ``user.*``."""
    NONE = "none"
    """All of them."""


def transform_for_oci(root: Directory, xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY) -> None:
    """Make the tree independent of how it came about, in place.

    The root gets permissions, owner, time and attributes of ``/usr``, because what layers say of it varies; ``/run``
    is emptied and gets the time of ``/usr``; then attributes are filtered, and link counts made true.

    A tree without a directory ``/usr`` keeps its root, and ``/run`` its time; composefs-rs refuses it.  A ``/run``
    that is no directory stays as it is, where composefs-rs refuses it too.
    """
    usr, run = root.children.get(b"usr"), root.children.get(b"run")
    if isinstance(usr, Directory):
        root.mode, root.uid, root.gid, root.mtime_ns, root.xattrs = usr.mode, usr.uid, usr.gid, usr.mtime_ns, usr.xattrs
    if isinstance(run, Directory):
        run.children = {}
        if isinstance(usr, Directory):
            run.mtime_ns = usr.mtime_ns
    filter_xattrs(root, xattrs)
    settle_links(root)


def clamp_times(root: Directory, epoch: int) -> None:
    """Give everything that is newer than *epoch*, in seconds since 1970, that time, in place.

    Trees that were made at different moments, and differ in nothing else, are equal then; see SOURCE_DATE_EPOCH of
    reproducible-builds.org.
    """
    limit = epoch * 1_000_000_000
    root.mtime_ns = min(root.mtime_ns, limit)
    for directory in directories(root):
        for inode in directory.children.values():
            inode.mtime_ns = min(inode.mtime_ns, limit)


def settle_links(root: Directory) -> None:
    """Let every inode say how many names it has, in place."""
    names: list[Inode] = []
    for directory in directories(root):
        children = directory.children.values()
        names += children
        directory.nlink = 2 + list(map(type, children)).count(Directory)
    for inode, count in Counter(names).items():
        if inode.nlink != count and type(inode) is not Directory:
            inode.nlink = count


def filter_xattrs(root: Directory, xattrs: XattrFilter) -> None:
    """Drop the attributes that *xattrs* does not keep, in place; equal ones share one tuple afterwards."""
    keep = _KEPT[xattrs]
    filtered: dict[Xattrs, Xattrs] = {NO_XATTRS: NO_XATTRS}

    def pick(found: Xattrs) -> Xattrs:
        kept = tuple((name, value) for name, value in found if keep(name))
        return filtered.setdefault(found, filtered.setdefault(kept, kept))

    if root.xattrs:
        root.xattrs = pick(root.xattrs)
    for directory in directories(root):
        for inode in directory.children.values():
            if inode.xattrs:
                known = filtered.get(inode.xattrs)
                inode.xattrs = pick(inode.xattrs) if known is None else known


_KEPT: Final[dict[XattrFilter, Callable[[bytes], bool]]] = {
    XattrFilter.ALLOWLIST_ONLY: lambda name: name == _CAPABILITY,
    XattrFilter.KEEP_USER_XATTRS: lambda name: name == _CAPABILITY or name.startswith(_USER),
    XattrFilter.NONE: lambda name: True,
}

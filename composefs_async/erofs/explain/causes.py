"""Why two programs make different images of one file system: the known reasons, as a table of changes to a tree.

Owns `CAUSES`.  Does not own the search among them, which is `explain`.

A cause is told by a function that takes a tree and returns the changed one, or None if it changes nothing; the
tree it is given stays as it is.  Most can be undone only by whoever knows the original, so the search tries them
on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, TypeVar

from ...digest import Algorithm
from ...fsverity import digest as fsverity_digest
from ...tree.inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Xattrs
from ...tree.walk import count_links
from ..writer import Dialect

__all__ = ["AS_COMPOSEFS_RS", "CAUSES", "Cause", "Rewrite"]

Rewrite: TypeAlias = Callable[[Directory, Algorithm], Directory | None]
_Change: TypeAlias = Callable[[Inode], Inode]
_AnyInode = TypeVar("_AnyInode", bound=Inode)

_NANOSECONDS: Final = 1_000_000_000
_INLINE_MAX: Final = 64  # INLINE_CONTENT_MAX_V0 of composefs-rs, LCFS_INLINE_CONTENT_MAX of C composefs
_CAPABILITY: Final = b"security.capability"


@dataclass(frozen=True, slots=True)
class Cause:
    """One known reason."""

    name: str
    summary: str
    """What the other program did, as the end of "it may be that …"."""
    groups: frozenset[str]
    """Two causes that share a group are not tried together: they are alternatives, or one contains the other."""
    rewrite: Rewrite | None
    version: int | None = None
    """Version of the layout, if that is what differs; there is no `rewrite` then."""
    dialect: Dialect | None = None
    """Dialect of layouts 0 and 1, likewise."""
    lost: str = ""
    """What a tree to which this has happened cannot tell any more; empty if nothing is."""


# -- changing trees ----------------------------------------------------------------------------


def _map(root: Directory, change: _Change) -> Directory | None:
    """*root* with *change* made to each inode once; None if it returns every inode as it was."""
    made: dict[Inode, Inode] = {}
    changed = False

    def take(inode: Inode) -> Inode:
        nonlocal changed
        new = change(inode)
        changed = changed or new is not inode
        if isinstance(inode, Directory):
            new = copy.copy(new) if new is inode else new
            pending.append((inode, new))
        made[inode] = new
        return new

    pending: list[tuple[Directory, Inode]] = []
    new_root = take(root)
    while pending:
        old, new = pending.pop()
        if isinstance(new, Directory):
            new.children = {name: made.get(child) or take(child) for name, child in old.children.items()}
    return new_root if changed and isinstance(new_root, Directory) else None


def _with(inode: _AnyInode, *, xattrs: Xattrs | None = None, mtime_ns: int | None = None) -> _AnyInode:
    """*inode* itself if it is so already, otherwise a copy that is."""
    xattrs = inode.xattrs if xattrs is None else xattrs
    mtime_ns = inode.mtime_ns if mtime_ns is None else mtime_ns
    if xattrs == inode.xattrs and mtime_ns == inode.mtime_ns:
        return inode
    made = copy.copy(inode)
    made.xattrs, made.mtime_ns = xattrs, mtime_ns
    return made


_Metadata: TypeAlias = tuple[int, int, int, int, Xattrs]
_DEFAULT: Final[_Metadata] = (0o40755, 0, 0, 0, NO_XATTRS)


def _metadata(directory: Directory) -> _Metadata:
    return directory.mode, directory.uid, directory.gid, directory.mtime_ns, directory.xattrs


def _with_metadata(directory: Directory, metadata: _Metadata) -> Directory:
    made = copy.copy(directory)
    made.mode, made.uid, made.gid, made.mtime_ns, made.xattrs = metadata
    return made


# -- the rewrites ------------------------------------------------------------------------------


def _rewrite_inodes(change: _Change, root: Directory, _: Algorithm) -> Directory | None:
    return _map(root, change)


def _keep_xattrs(names: Iterable[bytes], prefixes: tuple[bytes, ...], inode: Inode) -> Inode:
    kept = tuple(pair for pair in inode.xattrs if pair[0] in names or pair[0].startswith(prefixes))
    return _with(inode, xattrs=kept)


def _drop_nanoseconds(inode: Inode) -> Inode:
    return _with(inode, mtime_ns=inode.mtime_ns - inode.mtime_ns % _NANOSECONDS)


def _zero_time(inode: Inode) -> Inode:
    return _with(inode, mtime_ns=0)


def _root_from_usr(root: Directory, _: Algorithm) -> Directory | None:
    usr = root.children.get(b"usr")
    if not isinstance(usr, Directory) or _metadata(usr) == _metadata(root):
        return None
    return _with_metadata(root, _metadata(usr))


def _default_root(root: Directory, _: Algorithm) -> Directory | None:
    return None if _metadata(root) == _DEFAULT else _with_metadata(root, _DEFAULT)


def _empty_run(root: Directory, _: Algorithm) -> Directory | None:
    run, usr = root.children.get(b"run"), root.children.get(b"usr")
    if not isinstance(run, Directory) or not isinstance(usr, Directory):
        return None
    if not run.children and run.mtime_ns == usr.mtime_ns:
        return None
    emptied, made = copy.copy(run), copy.copy(root)
    emptied.mtime_ns, emptied.children, emptied.links, emptied.nlink = usr.mtime_ns, {}, frozenset(), 2
    made.children = root.children | {b"run": emptied}
    return made


def _implicit_like_parents(root: Directory, _: Algorithm) -> Directory | None:
    return _map_directories(root, lambda metadata, parent: parent if metadata == _DEFAULT else metadata)


def _implicit_by_default(root: Directory, _: Algorithm) -> Directory | None:
    return _map_directories(root, lambda metadata, parent: _DEFAULT if metadata == parent else metadata)


def _map_directories(root: Directory, choose: Callable[[_Metadata, _Metadata], _Metadata]) -> Directory | None:
    """Every directory but the root with what *choose* makes of its metadata and its parent's, as changed already."""
    chosen: dict[Inode, _Metadata] = {root: _metadata(root)}
    pending = [root]
    while pending:
        directory = pending.pop()
        for child in directory.children.values():
            if isinstance(child, Directory):
                chosen[child] = choose(_metadata(child), chosen[directory])
                pending.append(child)

    def change(inode: Inode) -> Inode:
        if not isinstance(inode, Directory) or chosen[inode] == _metadata(inode):
            return inode
        return _with_metadata(inode, chosen[inode])

    return _map(root, change)


def _externalize(limit: int, root: Directory, algorithm: Algorithm) -> Directory | None:
    def change(inode: Inode) -> Inode:
        if not isinstance(inode, InlineFile) or len(inode.content) <= limit:
            return inode
        digest = bytes(fsverity_digest(inode.content, algorithm))
        common = inode.mode, inode.nlink, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs
        return ExternalFile(*common, len(inode.content), digest)

    return _map(root, change)


def _break_links(root: Directory, _: Algorithm) -> Directory | None:
    """Every name gets an inode of its own."""
    linked = {inode for inode, names in count_links(root).items() if names > 1 and not isinstance(inode, Directory)}
    if not linked:
        return None
    made = _map(root, copy.copy)
    pending = [made] if made else []
    while pending:
        directory = pending.pop()
        directory.links = frozenset()
        for name, child in directory.children.items():
            if isinstance(child, Directory):
                pending.append(child)
            else:
                single = directory.children[name] = copy.copy(child)
                single.nlink = 1
    return made


def _container_root(keep: Rewrite, root: Directory, algorithm: Algorithm) -> Directory | None:
    """What composefs-rs does to the root of a container, in its order."""
    made = root
    for rewrite in (_root_from_usr, _empty_run, keep):
        made = rewrite(made, algorithm) or made
    return None if made is root else made


_ALLOW_LIST: Final = partial(_rewrite_inodes, partial(_keep_xattrs, (_CAPABILITY,), ()))
_KEEP_USER: Final = partial(_rewrite_inodes, partial(_keep_xattrs, (_CAPABILITY,), (b"user.",)))
_ONLY_USER: Final = partial(_rewrite_inodes, partial(_keep_xattrs, (), (b"user.",)))
_NO_XATTRS: Final = partial(_rewrite_inodes, partial(_keep_xattrs, (), ()))


def _cause(name: str, summary: str, groups: str, rewrite: Rewrite, lost: str = "") -> Cause:
    return Cause(name, summary, frozenset(groups.split()), rewrite, lost=lost)


def _layout(version: int, summary: str) -> Cause:
    return Cause(f"layout-{version}", summary, frozenset({"layout"}), None, version)


def _dialect(dialect: Dialect, summary: str) -> Cause:
    return Cause(f"dialect-{dialect.value}", summary, frozenset({"dialect"}), None, None, dialect)


CAUSES: Final = (
    _layout(0, "the image has layout version 0 (mkcomposefs --max-version=0)"),
    _layout(1, "the image has layout version 1 (the default of composefs-rs since 0.9.0, mkcomposefs --min-version=1)"),
    _layout(2, "the image has layout version 2 (composefs-rs before 0.9.0)"),
    _dialect(Dialect.C, "mkcomposefs made the image, by its rules where programs differ (see Dialect)"),
    _dialect(Dialect.RUST, "composefs-rs made the image, by its rules where programs differ (see Dialect)"),
    _cause(
        "container-root",
        "the root took the metadata of /usr, /run was emptied and only security.capability was kept",
        "root run xattrs",
        partial(_container_root, _ALLOW_LIST),
    ),
    _cause(
        "container-root-keep-user-xattrs",
        "the root took the metadata of /usr, /run was emptied and only security.capability and user.* were kept",
        "root run xattrs",
        partial(_container_root, _KEEP_USER),
    ),
    _cause(
        "container-root-all-xattrs",
        "the root took the metadata of /usr and /run was emptied (composefs-rs before 0.9.0, layers)",
        "root run",
        partial(_container_root, lambda root, algorithm: None),
    ),
    _cause("root-from-usr", "the root took the metadata of /usr", "root", _root_from_usr, "the root's own metadata"),
    _cause("root-default", "the root has mode 0755, owner 0:0 and time 0", "root", _default_root),
    _cause("run-emptied", "/run was emptied and took the time of /usr", "run", _empty_run, "the content of /run"),
    _cause(
        "xattrs-allow-list",
        "only security.capability was kept",
        "xattrs",
        _ALLOW_LIST,
        "other attributes than security.capability",
    ),
    _cause("xattrs-keep-user", "only security.capability and user.* were kept", "xattrs", _KEEP_USER),
    _cause(
        "xattrs-only-user",
        "only user.* was kept (mkcomposefs --user-xattrs)",
        "xattrs",
        _ONLY_USER,
        "other attributes than user.*",
    ),
    _cause("xattrs-none", "all attributes were dropped (mkcomposefs --skip-xattrs)", "xattrs", _NO_XATTRS),
    _cause(
        "nanoseconds-dropped",
        "times have whole seconds",
        "mtime",
        partial(_rewrite_inodes, _drop_nanoseconds),
        "nanoseconds of times",
    ),
    _cause(
        "times-zero", "times are 0 (mkcomposefs --use-epoch)", "mtime", partial(_rewrite_inodes, _zero_time), "times"
    ),
    _cause(
        "implicit-like-parents",
        "directories that nothing describes took the metadata of their parents, not mode 0755, owner 0:0, time 0",
        "implicit",
        _implicit_like_parents,
    ),
    _cause(
        "implicit-by-default",
        "directories that nothing describes got mode 0755, owner 0:0 and time 0, not the metadata of their parents",
        "implicit",
        _implicit_by_default,
    ),
    _cause(
        "inline-threshold",
        f"content of more than {_INLINE_MAX} bytes is not in the image",
        "inline",
        partial(_externalize, _INLINE_MAX),
        f"content of more than {_INLINE_MAX} bytes that was in the image",
    ),
    _cause("inline-none", "no content is in the image", "inline", partial(_externalize, 0)),
    _cause(
        "links-broken",
        "hard links became files of their own (mkcomposefs of a directory)",
        "links",
        _break_links,
        "hard links",
    ),
)
"""In the order in which they are tried, and in which two of them are applied."""

AS_COMPOSEFS_RS: Final = Cause(
    "read-as-composefs-rs",
    "the layers were read as composefs-rs 0.9.0 reads them, where their members or whiteouts contradict each other",
    frozenset(("reading",)),
    None,
)
"""Nothing that a tree could tell: the layers have to be read anew."""

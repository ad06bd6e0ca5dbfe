"""What is different between two trees, path by path and field by field.

Owns only that.  Where the trees come from (images, dump files) is up to the caller, and why they differ is a
question for `explain`.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..digest import Algorithm
from ..fsverity import digest as fsverity_digest
from .inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from .walk import count_links, walk

__all__ = ["Change", "ChangeKind", "FieldChange", "Value", "diff_trees", "iter_changes"]

Value: TypeAlias = int | bytes | str | None
"""Of a field: None where the inode has no such field."""

_Pair: TypeAlias = tuple[bytes, Iterator[bytes], Directory | None, Directory | None]
"""What is being compared: path with a slash at the end, names still to come, both directories."""

_TYPE_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_ALGORITHMS: Final = {algorithm.digest_size: algorithm for algorithm in Algorithm}


class ChangeKind(enum.Enum):
    """What happened to a path from the first tree to the second."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs.

    Names: ``type``, ``mode`` (permissions), ``uid``, ``gid``, ``mtime_ns``, ``rdev``, ``target``, ``content`` (of
    files inside the image), ``stored`` (inline, external, unverified, sparse), ``size``, ``digest``, ``path`` (of
    the object), ``link`` (first path of the same inode), and ``xattr NAME`` for each attribute.
    """

    name: str
    before: Value
    after: Value

    @property
    def before_text(self) -> str:
        """As people read it: modes in octal, digests in hexadecimal."""
        return _text(self.name, self.before)

    @property
    def after_text(self) -> str:
        """Value afterwards, as text."""
        return _text(self.name, self.after)


def _text(name: str, value: Value) -> str:
    if value is None:
        return "nothing"
    if name == "mode" and isinstance(value, int):
        return f"{value:04o}"
    if isinstance(value, bytes):
        return value.hex() if name == "digest" else repr(value)[1:]
    return str(value)


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs.  Below a directory that was added or removed, every path is a change of its own."""

    path: bytes
    kind: ChangeKind
    fields: tuple[FieldChange, ...]
    """Fields of a change: what differs, in a fixed order, attributes last.  Otherwise empty."""
    size_before: int | None
    """In bytes, of files and symlinks; None where there is none."""
    size_after: int | None


def diff_trees(before: Directory, after: Directory) -> list[Change]:
    """Every path that differs, in the order of `walk`.

    A link count is no field: it follows from the paths.  A file inside one image and outside the other has the
    same content if its digest is the same, which takes hashing those inside.
    """
    return list(iter_changes(before, after))


def iter_changes(before: Directory, after: Directory) -> Iterator[Change]:
    """Compare two trees and yield the changes one by one; the trees must not change meanwhile."""
    links = _first_names(before), _first_names(after)
    yield from _compare(b"/", before, after, *links)
    pending: list[_Pair] = [(b"/", _names(before, after), before, after)]
    while pending:
        prefix, names, old, new = pending[-1]
        for name in names:
            left, right = _child(old, name), _child(new, name)
            path = prefix + name
            yield from _compare(path, left, right, *links)
            if isinstance(left, Directory) or isinstance(right, Directory):
                left, right = _as_directory(left), _as_directory(right)
                pending.append((path + b"/", _names(left, right), left, right))
                break
        else:
            pending.pop()


def _child(directory: Directory | None, name: bytes) -> Inode | None:
    return directory.children.get(name) if directory else None


def _as_directory(inode: Inode | None) -> Directory | None:
    return inode if isinstance(inode, Directory) else None


def _names(before: Directory | None, after: Directory | None) -> Iterator[bytes]:
    old = before.children.keys() if before else ()
    new = after.children.keys() if after else ()
    return iter(sorted({*old, *new}))


def _first_names(root: Directory) -> dict[Inode, bytes]:
    """The first path of each inode that has several names."""
    linked = {inode for inode, names in count_links(root).items() if names > 1 and not isinstance(inode, Directory)}
    found: dict[Inode, bytes] = {}
    if linked:
        for path, inode in walk(root):
            if inode in linked:
                found.setdefault(inode, path)
    return found


def _compare(
    path: bytes, before: Inode | None, after: Inode | None, old_links: dict[Inode, bytes], new_links: dict[Inode, bytes]
) -> Iterator[Change]:
    if before is None or after is None:
        kind = ChangeKind.ADDED if before is None else ChangeKind.REMOVED
        yield Change(path, kind, (), _size(before), _size(after))
        return
    if before is after and not old_links and not new_links:
        return
    old, new = _fields(before, after), _fields(after, before)
    if before in old_links or after in new_links:
        old["link"], new["link"] = old_links.get(before), new_links.get(after)
    if old != new or before.xattrs != after.xattrs:
        changes = (*_differences(old, new), *_xattr_differences(before, after))
        yield Change(path, ChangeKind.CHANGED, changes, _size(before), _size(after))


def _differences(old: dict[str, Value], new: dict[str, Value]) -> Iterator[FieldChange]:
    for name in old | new:
        if old.get(name) != new.get(name):
            yield FieldChange(name, old.get(name), new.get(name))


def _xattr_differences(before: Inode, after: Inode) -> Iterator[FieldChange]:
    old, new = dict(before.xattrs), dict(after.xattrs)
    for name in sorted(old | new):
        if old.get(name) != new.get(name):
            yield FieldChange(f"xattr {name.decode(errors='backslashreplace')}", old.get(name), new.get(name))


def _fields(inode: Inode, other: Inode) -> dict[str, Value]:
    """What is comparable of *inode*; how its content is told depends on what the *other* has."""
    fields: dict[str, Value] = {
        "type": _TYPE_NAMES.get(stat.S_IFMT(inode.mode), f"{inode.mode:o}"),
        "mode": inode.permissions,
        "uid": inode.uid,
        "gid": inode.gid,
        "mtime_ns": inode.mtime_ns,
    }
    if isinstance(inode, InlineFile):
        fields |= _inline_fields(inode, other)
    elif isinstance(inode, ExternalFile):
        fields |= {"stored": _storage(inode), "size": inode.size, "digest": inode.digest and bytes(inode.digest)}
        fields["path"] = inode.path
    elif isinstance(inode, Symlink):
        fields["target"] = inode.target
    elif isinstance(inode, Special):
        fields["rdev"] = inode.rdev
    return fields


def _inline_fields(inode: InlineFile, other: Inode) -> dict[str, Value]:
    fields: dict[str, Value] = {"stored": "inline", "size": len(inode.content)}
    if not isinstance(other, ExternalFile):
        fields["content"] = inode.content
    elif other.digest:
        fields["digest"] = bytes(fsverity_digest(inode.content, _ALGORITHMS[len(other.digest)]))
    return fields


def _storage(inode: ExternalFile) -> str:
    if inode.is_sparse:
        return "sparse"
    return "external" if inode.digest else "unverified"


def _size(inode: Inode | None) -> int | None:
    if isinstance(inode, InlineFile):
        return len(inode.content)
    if isinstance(inode, ExternalFile):
        return inode.size
    return len(inode.target) if isinstance(inode, Symlink) else None

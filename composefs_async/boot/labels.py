"""Labels of SELinux in trees: the policy that a tree brings along, and every file's label by it.

Owns where in a tree a policy is, and ``security.selinux`` of its inodes.  Does not own policies (`policy`), nor what
else is done to a bootable tree (`transform`).

Files of a policy are taken from the tree alone, and no symbolic link is followed: a link in an image could lead
to the policy of the machine that builds it.
"""

from __future__ import annotations

import copy
import re
import stat
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import SELinuxPolicyError
from ..tree.inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Symlink, Xattrs
from ..tree.transform import settle_links
from ..tree.walk import directories, find
from .policy import ALIAS_FILES, FILE_LIMIT, SPECIFICATION_FILES, Engine, Policy

__all__ = [
    "ATTRIBUTE",
    "ReadFile",
    "find_policy",
    "kind_of",
    "kind_of_inode",
    "label_settled_tree",
    "label_tree",
    "read_policy_files",
    "remove_labels",
]

ATTRIBUTE: Final = b"security.selinux"
"""The extended attribute that holds a label; without a NUL at its end."""

ReadFile = Callable[[bytes, ExternalFile], bytes]
"""The content of a file that is not in the tree itself, by its absolute path and inode; sizes are checked before."""

_KINDS: Final = {
    stat.S_IFREG: ord("-"),
    stat.S_IFDIR: ord("d"),
    stat.S_IFLNK: ord("l"),
    stat.S_IFCHR: ord("c"),
    stat.S_IFBLK: ord("b"),
    stat.S_IFIFO: ord("p"),
    stat.S_IFSOCK: ord("s"),
}
_TYPE_BITS: Final = 0o170000
_spaces = re.compile("^[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+|"
                     "[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+$")  # fmt: skip
_CONFIG: Final = "/etc/selinux/config"
_CONFIG_LIMIT: Final = 1 << 20


# -- the policy in a tree ----------------------------------------------------------------------


def find_policy(root: Directory, read: ReadFile, *, engine: Engine | None = None) -> Policy | None:
    """The policy that ``/etc/selinux/config`` of the tree names; None if there is none.  Blocks as *read* does.

    Whether SELinux is enabled there does not matter.

    Raises:
        SELinuxPolicyError: a file of it is missing, malformed, too large, or no regular file.
    """
    files = read_policy_files(root, read)
    return None if files is None else Policy.from_files(files, engine=engine)


def read_policy_files(root: Directory, read: ReadFile) -> dict[str, bytes] | None:
    """The content of the policy's files by their names without a directory; None if the tree has no policy."""
    selinux = _directory(root, "", "etc/selinux", required=False)
    if selinux is None:
        return None
    config = _file(selinux, "/etc/selinux", "config", read, _CONFIG_LIMIT)
    name = None if config is None else _type_in(config)
    if name is None:
        return None
    place = _directory(selinux, "/etc/selinux", f"{name}/contexts/files", required=True)
    assert place is not None
    where = f"/etc/selinux/{name}/contexts/files"
    files = ((each, _file(place, where, each, read, FILE_LIMIT)) for each in (*SPECIFICATION_FILES, *ALIAS_FILES))
    found = {each: content for each, content in files if content is not None}
    if SPECIFICATION_FILES[0] not in found:
        raise SELinuxPolicyError(f"{where}/{SPECIFICATION_FILES[0]}", "the policy has no such file")
    return found


def _type_in(config: bytes) -> str | None:
    """The value of SELINUXTYPE; quotes and comments behind it belong to it."""
    for line, raw in enumerate(config.split(b"\n"), 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise SELinuxPolicyError(_CONFIG, "it is not UTF-8", line) from None
        key, equals, value = text.partition("=")
        if equals and _spaces.sub("", key).upper() == "SELINUXTYPE":
            return _spaces.sub("", value)
    return None


def _directory(top: Directory, where: str, path: str, *, required: bool) -> Directory | None:
    for name in filter(None, path.split("/")):
        where = f"{where}/{name}"
        if name in (".", "..") or "\0" in name:
            raise SELinuxPolicyError(_CONFIG, f"the policy's directory {where!r} is no path inside /etc/selinux")
        found = top.children.get(name.encode())
        if found is None:
            if required:
                raise SELinuxPolicyError(where, f"there is no such directory, which {_CONFIG} asks for")
            return None
        if not isinstance(found, Directory):
            raise SELinuxPolicyError(where, _not_a("directory", found))
        top = found
    return top


def _file(directory: Directory, where: str, name: str, read: ReadFile, limit: int) -> bytes | None:
    """The content of a file; None if it is not there, or has no content at all (is sparse)."""
    inode = directory.children.get(name.encode())
    path = f"{where}/{name}"
    if inode is None or (isinstance(inode, ExternalFile) and inode.is_sparse):
        return None
    if isinstance(inode, InlineFile):
        return inode.content
    if not isinstance(inode, ExternalFile):
        raise SELinuxPolicyError(path, _not_a("regular file", inode))
    if inode.size > limit:
        raise SELinuxPolicyError(path, f"{inode.size} bytes are more than the limit of {limit}")
    return read(path.encode(), inode)


def _not_a(wanted: str, found: Inode) -> str:
    if isinstance(found, Symlink):
        return f"it is a symbolic link, which is not followed, and not a {wanted}"
    return f"it is not a {wanted}"


# -- labels ------------------------------------------------------------------------------------


def remove_labels(root: Directory) -> None:
    """Take the labels from all inodes, in place."""
    known: dict[Xattrs, Xattrs] = {}
    for inode in _inodes(root):
        if inode.xattrs:
            found = known.get(inode.xattrs)
            if found is None:
                found = known[inode.xattrs] = _without_label(inode.xattrs)
            inode.xattrs = found


def label_tree(root: Directory, policy: Policy) -> None:
    """Give every inode the label that *policy* has for its path, in place; link counts are true afterwards.

    The first name of a file, depth first in byte order, decides.  A later name that would have another label gets
    a file of its own.
    """
    settle_links(root)
    label_settled_tree(root, policy)


def label_settled_tree(root: Directory, policy: Policy) -> None:
    """Label a tree whose link counts are true, as `label_tree` does."""
    labelled = _Labelled()
    kinds = _KINDS
    linked: list[tuple[tuple[bytes, ...], Directory, bytes]] = []
    found = policy.decide(b"/", kinds[stat.S_IFDIR])
    root.xattrs = labelled[root.xattrs, found.context if found else None]
    pending: list[tuple[Directory, tuple[bytes, ...], bytes]] = [(root, (), b"/")]
    while pending:
        directory, names, place = pending.pop()
        label = policy.labels_in(place)
        for name, inode in directory.children.items():
            if type(inode) is Directory:
                pending.append((inode, (*names, name), policy.inside(place, name)))
            elif inode.nlink > 1:
                linked.append(((*names, name), directory, policy.inside(place, name)))
                continue
            inode.xattrs = labelled[inode.xattrs, label(name, kinds[inode.mode & _TYPE_BITS])]
    if linked:
        _label_links(linked, policy, labelled)
        settle_links(root)


class _Labelled(dict[tuple[Xattrs, bytes | None], Xattrs]):
    """Attributes with a label in place of theirs; equal ones are one tuple."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Xattrs, Xattrs] = {}

    def __missing__(self, key: tuple[Xattrs, bytes | None]) -> Xattrs:
        made = _with_label(*key)
        found = self[key] = self._made.setdefault(made, made)
        return found


def _label_links(
    linked: list[tuple[tuple[bytes, ...], Directory, bytes]],
    policy: Policy,
    labelled: _Labelled,
) -> None:
    first: dict[Inode, bytes | None] = {}
    linked.sort(key=lambda each: each[0])
    for names, directory, path in linked:
        inode = directory.children[names[-1]]
        found = policy.decide(path, _KINDS[inode.mode & _TYPE_BITS])
        context = found.context if found else None
        if inode not in first:
            first[inode] = context
        elif first[inode] != context:
            inode = directory.children[names[-1]] = copy.copy(inode)
            directory.links -= {names[-1]}
        else:
            continue
        inode.xattrs = labelled[inode.xattrs, context]


def kind_of(root: Directory, path: bytes) -> int | None:
    """The type of the file *path* as policies have it (`matching.KINDS`); None if it is not there."""
    found = find(root, path)
    return None if found is None else kind_of_inode(found)


def kind_of_inode(inode: Inode) -> int:
    """The type of a file as policies have it (`matching.KINDS`)."""
    return _KINDS[inode.mode & _TYPE_BITS]


def _inodes(root: Directory) -> Iterator[Inode]:
    yield root
    for directory in directories(root):
        yield from directory.children.values()


def _without_label(xattrs: Xattrs) -> Xattrs:
    return tuple(pair for pair in xattrs if pair[0] != ATTRIBUTE) or NO_XATTRS


def _with_label(xattrs: Xattrs, context: bytes | None) -> Xattrs:
    others = _without_label(xattrs)
    return others if context is None else tuple(sorted((*others, (ATTRIBUTE, context))))

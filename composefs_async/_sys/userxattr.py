"""Composefs mounts without privileges: metadata in a tmpfs, content from objects, joined by overlayfs.

Owns the tmpfs that stands in for an image, and the overlay above it.  Works in a user namespace, where the kernel
mounts no EROFS: each large file is an empty one of the right size, whose attributes ``user.overlay.…`` say where its
content is.  No process stays.  Does not own the namespaces (`namespaces`), nor which image is meant (`_repo.rootless`).

Kernels: overlayfs with ``userxattr`` takes content from objects since Linux 6.16; attributes of users on tmpfs came
with 6.6.  What a namespace cannot have is left out and told: owners that do not exist in it, devices, attributes of
the system.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

from ..digest import ObjectId
from ..errors import MountError
from ..tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from .mount_api import MOUNT_ATTR_RDONLY, Context
from .namespaces import IdMap

__all__ = ["LeftOut", "fill", "mount_metadata", "mount_overlay"]

_METACOPY: Final = "user.overlay.metacopy"
_REDIRECT: Final = "user.overlay.redirect"
_USER: Final = b"user."
_OVERLAY: Final = b"user.overlay."
_ESCAPED: Final = b"user.overlay.overlay."
# fs/overlayfs/overlayfs.h, struct ovl_metacopy: version, length, flags, algorithm
_DIGEST: Final = struct.Struct("<BBBB")
_ALGORITHMS: Final = {"sha256": 1, "sha512": 2}  # linux/fsverity.h
_REFUSED: Final = (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_ADVICE: Final = (
    "overlayfs with userxattr takes content from objects since Linux 6.16; with an older kernel root can mount, "
    "or FUSE (--fuse)"
)


@dataclass(slots=True)
class LeftOut:
    """How much of an image a namespace cannot have."""

    owners: int = 0
    """Files whose user or group does not exist in it; they belong to its root."""
    devices: int = 0
    """Devices, which are not there."""
    attributes: int = 0
    """Extended attributes that only the system sets: labels, capabilities, access control lists."""

    def __str__(self) -> str:
        parts = [
            (self.owners, "files have another owner"),
            (self.devices, "devices are not there"),
            (self.attributes, "attributes of the system are not there"),
        ]
        return ", ".join(f"{count} {what}" for count, what in parts if count)


def mount_metadata(name: str) -> int:
    """An empty tmpfs that is attached nowhere; the caller closes the descriptor, which drops it.

    Raises:
        MountError
    """
    with Context("tmpfs", name) as context:
        context.set_source(f"composefs:{name}")
        context.set_string("mode", "0755")
        context.set_string("nr_inodes", "0")  # as many as there are
        context.create()
        return context.mount(0)


def mount_overlay(
    metadata: int,
    objects: int,
    name: str,
    *,
    verity: bool,
    upper: int | None = None,
    work: int | None = None,
    read_write: bool = False,
) -> int:
    """What is in *metadata*, with the content of *objects*: a mount that is attached nowhere, which the caller closes.

    Args:
        metadata: a directory that `fill` has filled.
        verity: refuse files whose objects fs-verity does not guard.
        upper, work: for changes, as descriptors that stay the caller's.

    Raises:
        MountError: the kernel cannot, with what would help.
    """
    try:
        with Context("overlay", name) as context:
            context.set_source(f"composefs:{name}")
            context.set_flag("userxattr")
            if verity:
                context.set_string("verity", "require")
            for key, fd in (("upperdir", upper), ("workdir", work)):
                if fd is not None:
                    context.set_fd(key, fd)
            context.set_fd("lowerdir+", metadata)
            context.set_fd("datadir+", objects)
            context.create()
            return context.mount(0 if read_write else MOUNT_ATTR_RDONLY)
    except MountError as error:
        if error.errno in (errno.EINVAL, errno.EBADF, errno.EPERM, errno.EOPNOTSUPP):
            said = f"{error.log}; {_ADVICE}" if error.log else _ADVICE
            raise MountError(error.errno, name, said) from error
        raise


# -- the tree ----------------------------------------------------------------------------------


def fill(root: Directory, place: int, ids: IdMap) -> LeftOut:
    """Make the tree below *root* in the empty directory *place*, a descriptor.  Blocks for some 25 µs an inode.

    Raises:
        OSError: there is no more memory, or an attribute is too large.
    """
    filler = _Filler(place, ids)
    previous = os.umask(0)
    try:
        filler.run(root)
    finally:
        os.umask(previous)
    return filler.left_out


class _Filler:
    def __init__(self, place: int, ids: IdMap) -> None:
        self._place = place
        self._users = _Mapped(ids.users)
        self._groups = _Mapped(ids.groups)
        self._first: dict[Inode, bytes] = {}
        self._attributes: dict[Xattrs, list[tuple[str, bytes]]] = {}
        self.left_out = LeftOut()

    def run(self, root: Directory) -> None:
        """Depth first, with one descriptor for each level: times of directories are set when they are left."""
        stack = [(root, os.open(".", _OPEN, dir_fd=self._place), b"", iter(root.children.items()))]
        try:
            while stack:
                directory, fd, prefix, children = stack[-1]
                for name, inode in children:
                    if isinstance(inode, Directory):
                        os.mkdir(name, 0o700, dir_fd=fd)
                        below = os.open(name, _OPEN, dir_fd=fd)
                        stack.append((inode, below, b"%b%b/" % (prefix, name), iter(inode.children.items())))
                        break
                    self._leaf(fd, name, inode, prefix)
                else:
                    self._finish(directory, fd)
                    os.close(fd)
                    stack.pop()
        finally:
            for _, fd, _, _ in stack:
                os.close(fd)

    def _leaf(self, fd: int, name: bytes, inode: Inode, prefix: bytes) -> None:
        if inode.nlink > 1:
            first = self._first.setdefault(inode, prefix + name)
            if first != prefix + name:
                os.link(first, name, src_dir_fd=self._place, dst_dir_fd=fd, follow_symlinks=False)
                return
        if isinstance(inode, ExternalFile | InlineFile):
            self._file(fd, name, inode)
        elif isinstance(inode, Symlink):
            os.symlink(inode.target, name, dir_fd=fd)
            self._finish_link(fd, name, inode)
        elif isinstance(inode, Special):
            self._special(fd, name, inode)

    def _file(self, directory: int, name: bytes, inode: ExternalFile | InlineFile) -> None:
        fd = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            if isinstance(inode, ExternalFile):
                os.ftruncate(fd, inode.size)
                path = inode.path
                if path and inode.size:
                    os.setxattr(fd, _METACOPY, _metacopy(inode))
                    os.setxattr(fd, _REDIRECT, b"/" + path)
            else:
                content = inode.content
                while content:
                    content = content[os.write(fd, content) :]
            self._finish(inode, fd)
        finally:
            os.close(fd)

    def _special(self, fd: int, name: bytes, inode: Special) -> None:
        kind = stat.S_IFMT(inode.mode)
        if inode.is_whiteout:
            # In a mounted image it is an empty file with a mark, which another overlay takes for a whiteout.
            whiteout = os.open(name, _CREATE, 0o600, dir_fd=fd)
            try:
                os.setxattr(whiteout, (_ESCAPED + b"whiteout").decode(), b"")
                os.setxattr(fd, (_ESCAPED + b"whiteouts").decode(), b"")
                self._finish(inode, whiteout)
            finally:
                os.close(whiteout)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
            os.mknod(name, kind | 0o600, dir_fd=fd)
            self._finish_named(fd, name, inode)
        else:
            self.left_out.devices += 1

    # -- owners, modes, attributes, times

    def _finish(self, inode: Inode, fd: int) -> None:
        self._own(inode, fd)
        os.fchmod(fd, inode.mode & 0o7777)
        if inode.xattrs:
            self._set(fd, inode.xattrs)
        os.utime(fd, ns=(inode.mtime_ns, inode.mtime_ns))

    def _finish_named(self, fd: int, name: bytes, inode: Inode) -> None:
        """Set the attributes of a pipe or socket, which cannot be opened without consequences."""
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            user, group = self._owner(inode)
            if user or group:
                os.chown(name, user, group, dir_fd=fd, follow_symlinks=False)
            os.chmod(f"/proc/self/fd/{place}", inode.mode & 0o7777)
            self.left_out.attributes += len(inode.xattrs)
            os.utime(name, ns=(inode.mtime_ns, inode.mtime_ns), dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(place)

    def _finish_link(self, fd: int, name: bytes, inode: Symlink) -> None:
        user, group = self._owner(inode)
        if user or group:
            os.chown(name, user, group, dir_fd=fd, follow_symlinks=False)
        self.left_out.attributes += len(inode.xattrs)
        os.utime(name, ns=(inode.mtime_ns, inode.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _own(self, inode: Inode, fd: int) -> None:
        user, group = self._owner(inode)
        if user or group:
            os.fchown(fd, user, group)

    def _owner(self, inode: Inode) -> tuple[int, int]:
        user, group = inode.uid, inode.gid
        if user in self._users and group in self._groups:
            return user, group
        self.left_out.owners += 1
        return user if user in self._users else 0, group if group in self._groups else 0

    def _set(self, fd: int, xattrs: Xattrs) -> None:
        found = self._attributes.get(xattrs)
        if found is None:
            found = self._attributes[xattrs] = [
                (_escaped(name).decode(errors="surrogateescape"), value) for name, value in xattrs
            ]
        for name, value in found:
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if name.startswith("user.") or error.errno not in _REFUSED:
                    raise
                self.left_out.attributes += 1


class _Mapped:
    """The ids that exist in a namespace."""

    def __init__(self, entries: tuple[tuple[int, int, int], ...]) -> None:
        self._ranges = [range(inside, inside + count) for inside, _, count in entries]

    def __contains__(self, number: int) -> bool:
        return any(number in each for each in self._ranges)


def _escaped(name: bytes) -> bytes:
    """A user's own attribute under the name that overlayfs gives back as it was."""
    return _ESCAPED + name[len(_OVERLAY) :] if name.startswith(_OVERLAY) else name


def _metacopy(inode: ExternalFile) -> bytes:
    """What says that the content is elsewhere, and the digest that fs-verity must find there."""
    if inode.digest is None:
        return b""
    digest = bytes(inode.digest)
    algorithm = _ALGORITHMS[ObjectId(digest).algorithm.value]
    return _DIGEST.pack(0, _DIGEST.size + len(digest), 0, algorithm) + digest

"""What a deployment may change: ``state/deploy/HEX`` beside the repository, in the forms that two programs expect.

Owns its directories and files, and copying ``/etc`` out of an image without mounting it.  Does not own the boot
partition (`bootfiles`).

==========================  =========================================================================================
form                        content
==========================  =========================================================================================
``bls`` (composefs-rs)      ``var``, ``etc/upper`` (0755), ``etc/work`` (0700), which composefs-setup-root mounts
``bootc``                   ``etc`` as in the image without ``.updated``, ``var`` as a link to ``os/default/var``,
                            which all deployments share, and ``HEX.origin``
==========================  =========================================================================================

What is there is left alone: a machine may have changed it.  A crash leaves nothing, or all of it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .._sys import files
from ..errors import BootError
from ..tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ..tree.walk import find
from .bootfiles import OpenFile
from .plan import BootLayout

__all__ = ["Origin", "make_state", "state_path"]

_DEPLOY: Final = "state/deploy"
_SHARED_VAR: Final = "state/os/default/var"
_VAR_LINK: Final = "../../os/default/var"


@dataclass(frozen=True, slots=True)
class Origin:
    """What bootc wants to know of a deployment."""

    container_reference: str
    boot_type: str
    boot_digest: str
    manifest_digest: str

    def encode(self) -> bytes:
        """As an INI file."""
        sections = {
            "origin": {"container-image-reference": f"ostree-unverified-image:{self.container_reference}"},
            "boot": {"boot_type": self.boot_type, "digest": self.boot_digest},
            "image": {"manifest_digest": self.manifest_digest},
        }
        text = ""
        for name, items in sections.items():
            text += f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in items.items()) + "\n"
        return text.encode()


def state_path(sysroot: str, image: str) -> str:
    """Where the state of the deployment of *image*, in hexadecimal, is."""
    return os.path.join(sysroot, _DEPLOY, image)


def make_state(
    sysroot: str, image: str, layout: BootLayout, root: Directory, open_file: OpenFile, origin: Origin
) -> bool:
    """Make the state of a deployment, durably; False if it was there.

    Args:
        sysroot: the directory that ``state`` is in.
        root: the bootable tree.

    Raises:
        OSError: something cannot be made; owners and labels need privileges.
        BootError: ``/etc`` of the image is no directory.
    """
    place = state_path(sysroot, image)
    if os.path.lexists(place):
        return False
    above = os.path.dirname(place)
    os.makedirs(above, exist_ok=True)
    temporary = os.path.join(above, f".{image}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        os.mkdir(temporary, 0o755)
        if layout == "bls":
            for name, mode in (("var", 0o755), ("etc", 0o755), ("etc/upper", 0o755), ("etc/work", 0o700)):
                os.mkdir(os.path.join(temporary, name), mode)
        else:
            _make_bootc(sysroot, temporary, image, root, open_file, origin)
        _sync(temporary)
        os.rename(temporary, place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(above)
    return True


def _make_bootc(sysroot: str, place: str, image: str, root: Directory, open_file: OpenFile, origin: Origin) -> None:
    shared = os.path.join(sysroot, _SHARED_VAR)
    if not os.path.lexists(shared):
        os.makedirs(os.path.dirname(shared), exist_ok=True)
        _copy_whole(root, b"var", shared, open_file, lambda path: False)
    _copy_whole(root, b"etc", os.path.join(place, "etc"), open_file, lambda path: path == b".updated")
    os.symlink(_VAR_LINK, os.path.join(place, "var"))
    fd = os.open(os.path.join(place, f"{image}.origin"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        files.write_all(fd, origin.encode())
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)


# -- copies out of a tree ----------------------------------------------------------------------


def _copy_whole(
    root: Directory, name: bytes, target: str, open_file: OpenFile, leave_out: Callable[[bytes], bool]
) -> None:
    """The directory *name* of the tree as *target*, which appears when all of it is there."""
    found = find(root, name)
    if found is None:
        found = Directory(stat.S_IFDIR | 0o755, 2, 0, 0, 0)
    if not isinstance(found, Directory):
        raise BootError(f"/{name.decode()}", "it is no directory")
    temporary = f"{target}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _Copier(open_file, leave_out).run(found, temporary)
        _sync(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(os.path.dirname(target))


class _Copier:
    def __init__(self, open_file: OpenFile, leave_out: Callable[[bytes], bool]) -> None:
        self._open, self._leave_out = open_file, leave_out
        self._first: dict[Inode, str] = {}

    def run(self, top: Directory, target: str) -> None:
        """Parents first; what directories say of themselves is set when all is in them."""
        os.mkdir(target, 0o700)
        pending = [(top, target, b"")]
        made: list[tuple[Directory, str]] = []
        while pending:
            directory, place, prefix = pending.pop()
            made.append((directory, place))
            for name, inode in sorted(directory.children.items()):
                path = prefix + name
                if self._leave_out(path):
                    continue
                where = os.path.join(place, os.fsdecode(name))
                if isinstance(inode, Directory):
                    os.mkdir(where, 0o700)
                    pending.append((inode, where, path + b"/"))
                else:
                    self._leaf(inode, where)
        for directory, place in reversed(made):
            _finish(directory, place)

    def _leaf(self, inode: Inode, where: str) -> None:
        first = self._first.setdefault(inode, where)
        if first != where:
            os.link(first, where, follow_symlinks=False)
            return
        if isinstance(inode, ExternalFile | InlineFile):
            self._file(inode, where)
        elif isinstance(inode, Symlink):
            os.symlink(inode.target, where)
        elif isinstance(inode, Special):
            os.mknod(where, stat.S_IFMT(inode.mode) | 0o600, inode.rdev)
        _finish(inode, where)

    def _file(self, inode: ExternalFile | InlineFile, where: str) -> None:
        fd = os.open(where, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if isinstance(inode, InlineFile):
                files.write_all(fd, inode.content)
            elif inode.is_sparse:
                os.ftruncate(fd, inode.size)
            else:
                source = self._open(inode)
                try:
                    files.copy_content(source, fd)
                finally:
                    os.close(source)
        finally:
            os.close(fd)


def _finish(inode: Inode, where: str) -> None:
    """Owner, mode, attributes and time; owners first, since they take away modes and capabilities."""
    found = os.lstat(where)
    if (found.st_uid, found.st_gid) != (inode.uid, inode.gid):
        os.chown(where, inode.uid, inode.gid, follow_symlinks=False)
    if not isinstance(inode, Symlink):
        os.chmod(where, inode.mode & 0o7777)
    for name, value in inode.xattrs:
        os.setxattr(where, name, value, follow_symlinks=False)
    os.utime(where, ns=(inode.mtime_ns, inode.mtime_ns), follow_symlinks=False)


def _sync(place: str) -> None:
    with files.opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd:
        files.syncfs(fd)


def _flush(directory: str) -> None:
    with files.opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)

"""Mounting the images of a repository by name.

Owns which image and objects are meant, and how safe the mount must be.  Does not own how a kernel mounts them
(`_sys.mount`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._sys import mount
from .._sys.files import opened
from .._sys.mount import MountOptions
from ..erofs.format import COMPOSEFS_HEADER, COMPOSEFS_MAGIC, HAS_ACL
from ..errors import ErofsError
from .images import open_image
from .state import RepoState

__all__ = ["mount_at", "mount_image", "unmount"]

Path = str | os.PathLike[str]

_FLAT_LAYOUT = 2
"""It never says whether there are ACLs."""


def mount_image(
    state: RepoState,
    name: str,
    *,
    upper: Path | None = None,
    work: Path | None = None,
    read_write: bool = False,
    idmap: int | None = None,
) -> int:
    """A detached mount of the image *name*, an id or a reference; the caller closes the descriptor.

    In a secure repository the image is measured, and the kernel refuses to open files whose objects are not
    protected as the image says.

    Raises:
        MountError, ErofsError, and the errors of `open_image`.
        ValueError: only one of *upper* and *work* is given, or *read_write* without them.
    """
    if (upper is None) != (work is None):
        raise ValueError("upper and work are given both or not at all")
    if read_write and upper is None:
        raise ValueError("a mount that can be written needs upper and work")
    with state.shared(), _image(state, name) as image, _directory(upper) as upper_fd, _directory(work) as work_fd:
        options = MountOptions(
            verity=state.secure,
            acl=_can_have_acls(image, name),
            upper=upper_fd,
            work=work_fd,
            read_write=read_write,
            idmap=idmap,
        )
        return mount.mount_composefs(image, name, state.objects_fd, options)


def mount_at(
    state: RepoState,
    name: str,
    mountpoint: Path,
    *,
    upper: Path | None = None,
    work: Path | None = None,
    read_write: bool = False,
    idmap: int | None = None,
) -> None:
    """Mount the image *name* at the directory *mountpoint*, until it is unmounted; the repository may be closed."""
    fd = mount_image(state, name, upper=upper, work=work, read_write=read_write, idmap=idmap)
    try:
        mount.attach(fd, os.fspath(mountpoint))
    finally:
        os.close(fd)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Remove the mount at *mountpoint*."""
    mount.unmount(os.fspath(mountpoint), lazy=lazy)


@contextlib.contextmanager
def _image(state: RepoState, name: str) -> Iterator[int]:
    """The open image, measured as far as the file system can."""
    fd = open_image(state, name)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _directory(path: Path | None) -> Iterator[int | None]:
    if path is None:
        yield None
    else:
        with opened(os.fspath(path), os.O_PATH | os.O_DIRECTORY) as fd:
            yield fd


def _can_have_acls(image: int, name: str) -> bool:
    header = os.pread(image, COMPOSEFS_HEADER.size, 0)
    if len(header) < COMPOSEFS_HEADER.size:
        raise ErofsError(f"{len(header)} bytes are too short for an image", len(header), name)
    magic, _, flags, version = COMPOSEFS_HEADER.unpack(header)
    if magic != COMPOSEFS_MAGIC:
        raise ErofsError("not a composefs image: its first four bytes are wrong", 0, name)
    return version >= _FLAT_LAYOUT or bool(flags & HAS_ACL)

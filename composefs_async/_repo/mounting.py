"""Mounting the images of a repository by name.

Owns which image and objects are meant, and how safe the mount must be.  Does not own how a kernel mounts them
(`_sys.mount`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack

from .._sys import mount
from .._sys.files import naming_descriptor, opened
from .._sys.mount import KernelOptions
from ..erofs.format import COMPOSEFS_HEADER, COMPOSEFS_MAGIC, HAS_ACL
from ..errors import ErofsError
from ..results import MountOptions, Path
from . import objects
from .images import find_image
from .state import RepoState

__all__ = ["mount_at", "mount_image", "opened_directory", "unmount"]

_FLAT_LAYOUT = 2
"""It never says whether there are ACLs."""


def mount_image(state: RepoState, name: str, options: MountOptions) -> int:
    """A detached mount of the image *name*, an id or a reference; the caller closes the descriptor.

    In a secure repository the image is measured, and the kernel refuses to open files whose objects are not
    protected as the image says.

    Raises:
        MountError, ErofsError, and the errors of `open_image`.
    """
    with state.shared(), _image(state, name) as (image, image_id), ExitStack() as stack:
        upper, work = (stack.enter_context(opened_directory(path)) for path in (options.upper, options.work))
        kernel = KernelOptions(
            verity=state.secure,
            acl=_can_have_acls(image, name),
            upper=upper,
            work=work,
            read_write=options.read_write,
            idmap=options.idmap,
            source=image_id,
        )
        return mount.mount_composefs(image, name, state.objects_fd, kernel)


def mount_at(state: RepoState, name: str, mountpoint: Path, options: MountOptions) -> None:
    """Mount the image *name* at the directory *mountpoint*, until it is unmounted; the repository may be closed."""
    fd = mount_image(state, name, options)
    try:
        mount.attach(fd, os.fspath(mountpoint))
    finally:
        os.close(fd)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Remove the mount at *mountpoint*."""
    mount.unmount(os.fspath(mountpoint), lazy=lazy)


@contextlib.contextmanager
def _image(state: RepoState, name: str) -> Iterator[tuple[int, str]]:
    """The open image, measured as far as the file system can, and its id."""
    image_id = find_image(state, name)
    fd = objects.open_object(state, image_id)
    try:
        yield fd, image_id.hex()
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_directory(path: Path | None) -> Iterator[int | None]:
    """A descriptor (O_PATH) of the directory *path* for the block; None where *path* is."""
    if path is None:
        yield None
    else:
        with opened(os.fspath(path), os.O_PATH | os.O_DIRECTORY) as fd:
            yield fd


def _can_have_acls(image: int, name: str) -> bool:
    with naming_descriptor(image):
        header = os.pread(image, COMPOSEFS_HEADER.size, 0)
    if len(header) < COMPOSEFS_HEADER.size:
        raise ErofsError(f"{len(header)} bytes are too short for an image", len(header), name)
    magic, _, flags, version = COMPOSEFS_HEADER.unpack(header)
    if magic != COMPOSEFS_MAGIC:
        raise ErofsError("not a composefs image: its first four bytes are wrong", 0, name)
    return version >= _FLAT_LAYOUT or bool(flags & HAS_ACL)

"""Mounting an image: EROFS for names and metadata, overlayfs above it for the content of large files.

Owns the two mounts and what is done where a kernel cannot do it the short way.  Does not own system calls
(`mount_api`, `loop`), nor which image and objects are meant (`_repo.mounting`).

Kernels: verity needs Linux 6.6, objects hidden from the mounted tree 6.5, an image mounted from its file 6.12
(before, through a loop device), layers given as descriptors 6.13, and descriptors of detached mounts 6.15.
Everything is tried at run time, the short way first.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..errors import MountError
from . import mount_api
from .files import opened
from .loop import loop_device
from .mount_api import MOUNT_ATTR_RDONLY, Context

__all__ = ["Backing", "KernelOptions", "Layering", "attach", "mount_composefs", "mount_erofs", "unmount"]

unmount = mount_api.unmount

_NO_FILE_BACKING: Final = (errno.ENOTBLK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a kernel answers that mounts EROFS from block devices only, or not from files of this file system."""
_NOT_UNDERSTOOD: Final = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a kernel answers to a form of the layers that is too new for it; EBADF to descriptors made with O_PATH."""

_UPPER_ADVICE: Final = (
    "upper and work must be two directories, not one inside the other, on one file system that can be an upper layer"
)
"""The kernel says why only in its own log."""


class Backing(enum.Enum):
    """Where the kernel reads the image from."""

    FILE = "file"
    LOOP = "loop"


class Layering(enum.Enum):
    """How overlayfs is told of its layers."""

    DESCRIPTORS = "descriptors"
    """As descriptors, also of mounts that are attached nowhere (Linux 6.15)."""
    STRINGS = "strings"
    """One parameter for each; the image is attached to a temporary directory meanwhile (Linux 6.7)."""
    JOINED = "joined"
    """All in one parameter with colons between them (Linux 6.5)."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How to mount, and what may be tried for it."""

    verity: bool = False
    """Refuse to open a file whose object fs-verity does not guard as the image says."""
    acl: bool = True
    """Whether the image can have POSIX ACLs; where it has none the kernel need not look for them."""
    upper: int | None = None
    """A directory for what is changed in the mounted tree, as a descriptor that stays the caller's."""
    work: int | None = None
    """An empty directory on the same file system, for overlayfs itself."""
    read_write: bool = False
    idmap: int | None = None
    """A descriptor of the user namespace whose map of owners applies to the image."""
    source: str | None = None
    """What the mount table says is mounted: the id of the image, by which gc knows it; its name if not given."""
    backings: tuple[Backing, ...] = tuple(Backing)
    layerings: tuple[Layering, ...] = tuple(Layering)


def mount_composefs(image: int, name: str, objects: int, options: KernelOptions) -> int:
    """A mount of the open *image* that is attached nowhere; closing the descriptor drops it, `attach` keeps it.

    Both descriptors stay the caller's and may be closed afterwards.

    Args:
        name: for the mount table, and errors.
        objects: the directory of the objects.

    Raises:
        MountError: in the kernel's words.
    """
    erofs = mount_erofs(image, name, options)
    try:
        return _mount_overlay(erofs, name, objects, options)
    finally:
        os.close(erofs)


def attach(mount: int, mountpoint: str) -> None:
    """Let the detached *mount*, which stays the caller's, appear at the directory *mountpoint*.

    Raises:
        MountError
        OSError: there is no such directory.
    """
    with opened(mountpoint, os.O_PATH | os.O_DIRECTORY) as target:
        mount_api.move_mount(mount, target, mountpoint)


# -- the image ---------------------------------------------------------------------------------


def mount_erofs(image: int, name: str, options: KernelOptions) -> int:
    """The metadata alone, in which large files are empty: a detached mount, which the caller closes."""
    for backing in options.backings:
        try:
            mount = _mount_backed(backing, image, name, options)
        except MountError as error:
            if backing is not options.backings[-1] and error.errno in _NO_FILE_BACKING:
                continue
            raise
        break
    else:
        raise ValueError("no backing to try")
    if options.idmap is not None:
        try:
            mount_api.idmap(mount, options.idmap, name)
        except BaseException:
            os.close(mount)
            raise
    return mount


def _mount_backed(backing: Backing, image: int, name: str, options: KernelOptions) -> int:
    if backing is Backing.FILE:
        return _mount_source(f"/proc/self/fd/{image}", name, options)
    with loop_device(image, name) as device:
        return _mount_source(device, name, options)


def _mount_source(source: str, name: str, options: KernelOptions) -> int:
    with Context("erofs", name) as context:
        context.set_flag("ro")
        if not options.acl:
            context.set_flag("noacl")
        context.set_source(source)
        context.create()
        return context.mount(MOUNT_ATTR_RDONLY)


# -- the overlay -------------------------------------------------------------------------------


def _mount_overlay(erofs: int, name: str, objects: int, options: KernelOptions) -> int:
    work = partial(_mount_layers, erofs=erofs, name=name, objects=objects, options=options)
    errors: list[MountError] = []
    if Layering.DESCRIPTORS in options.layerings and (mount := _try([Layering.DESCRIPTORS], work, errors)) is not None:
        return mount
    others = [layering for layering in options.layerings if layering is not Layering.DESCRIPTORS]
    if others:
        with _attached(erofs, name):
            if (mount := _try(others, work, errors)) is not None:
                return mount
    # What a later way failed with may be less to the point.
    error = next((error for error in errors if error.log), errors[0])
    if options.upper is not None and (error.errno, error.log) == (errno.EINVAL, ""):
        raise MountError(errno.EINVAL, name, _UPPER_ADVICE)
    raise error


def _try(layerings: Sequence[Layering], work: Callable[[Layering], int], errors: list[MountError]) -> int | None:
    """The first mount that succeeds; None, with the *errors*, if the kernel understands none of the ways."""
    for layering in layerings:
        try:
            return work(layering)
        except MountError as error:
            if error.errno not in _NOT_UNDERSTOOD:
                raise
            errors.append(error)
    return None


def _mount_layers(layering: Layering, erofs: int, name: str, objects: int, options: KernelOptions) -> int:
    with Context("overlay", name) as context:
        _configure(context, name, options)
        _set_layers(context, layering, erofs, objects, options)
        context.create()
        return context.mount(0 if options.read_write else MOUNT_ATTR_RDONLY)


def _configure(context: Context, name: str, options: KernelOptions) -> None:
    context.set_source(f"composefs:{options.source or name}")
    context.set_string("metacopy", "on")
    context.set_string("redirect_dir", "on")
    if options.verity:
        context.set_string("verity", "require")


def _set_layers(context: Context, layering: Layering, lower: int, objects: int, options: KernelOptions) -> None:
    writable = [(key, fd) for key, fd in (("upperdir", options.upper), ("workdir", options.work)) if fd is not None]
    if layering is Layering.DESCRIPTORS:
        for key, fd in (*writable, ("lowerdir+", lower), ("datadir+", objects)):
            context.set_fd(key, fd)
        return
    for key, fd in writable:
        context.set_string(key, f"/proc/self/fd/{fd}")
    paths = f"/proc/self/fd/{lower}", f"/proc/self/fd/{objects}"
    if layering is Layering.STRINGS:
        context.set_string("lowerdir+", paths[0])
        context.set_string("datadir+", paths[1])
    else:
        # Two colons: what follows holds content only, and its own names are not seen.
        context.set_string("lowerdir", "::".join(paths))


@contextlib.contextmanager
def _attached(mount: int, name: str) -> Iterator[None]:
    """Have *mount* in the file system for the time of the block, where nobody else looks; afterwards it is gone."""
    with tempfile.TemporaryDirectory(prefix="composefs-") as place:
        with opened(place, os.O_PATH | os.O_DIRECTORY) as target:
            mount_api.move_mount(mount, target, name)
        try:
            yield
        finally:
            mount_api.unmount(place, lazy=True)

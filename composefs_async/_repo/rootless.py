"""Mounting images of a repository without privileges.

Owns which image is meant, that it is what its name says, and where the mount appears.  Does not own namespaces nor the
file systems (`_sys.namespaces`, `_sys.userxattr`).
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from .. import fsverity
from .._sys import mount, namespaces, userxattr
from .._sys.files import opened
from .._sys.userxattr import LeftOut
from ..digest import ObjectId
from ..errors import DigestMismatchError, ImageNotFoundError, MountError
from ..results import MountOptions, Path
from ..tree.inodes import Directory
from .images import has_image, open_image
from .mounting import opened_directory
from .state import RepoState

__all__ = ["RootlessMount", "enter_rootless", "require_image", "verified_tree"]

DEFAULT: Final = MountOptions()
_DIRECTORY: Final = "composefs-async"


@dataclass(frozen=True, slots=True)
class RootlessMount:
    """A mount in the namespace of this process."""

    path: str
    """Where its root is."""
    left_out: LeftOut


def enter_rootless(
    state: RepoState,
    name: str,
    *,
    mountpoint: Path | None = None,
    options: MountOptions = DEFAULT,
) -> RootlessMount:
    """Move this process, which must have one thread, into new namespaces, and mount the image *name* there.

    Its root becomes the working directory.  Blocks for a read of the image and some 50 µs for each inode.  The image is
    verified by its digest here before it is believed, since no kernel mounts it; in a secure repository the kernel
    verifies the content of every file that is opened.

    Args:
        mountpoint: a directory; by default one of this user's below the directory for temporary files, which
            stays, empty, for the next time.
        options: its directories are on one file system that has attributes of users; it has no idmap.

    Raises:
        ImageNotFoundError, IntegrityError, ErofsError
        MountError: the system or its kernel cannot do it, with what would help; nothing has been mounted.
        ValueError: *options* has an idmap.
    """
    if options.idmap is not None:
        raise ValueError("a rootless mount has the owners of its own namespace and takes no idmap")
    root = verified_tree(state, name)
    place = os.path.abspath(_own_directory() if mountpoint is None else mountpoint)
    with ExitStack() as stack:
        ids = namespaces.enter_namespaces()
        # Descriptors from before lead to mounts of the old namespace, which overlayfs does not take.
        objects = stack.enter_context(_again(state.objects_fd))
        upper, work = (stack.enter_context(opened_directory(path)) for path in (options.upper, options.work))
        metadata = userxattr.mount_metadata(name)
        stack.callback(os.close, metadata)
        try:
            left_out = userxattr.fill(root, metadata, ids)
        except OSError as error:
            raise MountError(error.errno or 0, name, f"its metadata cannot be made in a tmpfs: {error}") from error
        overlay = userxattr.mount_overlay(
            metadata, objects, name, verity=state.secure, upper=upper, work=work, read_write=options.read_write
        )
        stack.callback(os.close, overlay)
        mount.attach(overlay, place)
    os.chdir(place)
    return RootlessMount(place, left_out)


def verified_tree(state: RepoState, name: str) -> Directory:
    """The tree of an image whose digest has been computed here.

    Raises:
        ImageNotFoundError, ErofsError
        DigestMismatchError: it is not the image that its name says.
    """
    from ..erofs.reader.tree import IMAGE_LIMIT, image_to_tree

    expected = require_image(state, name)
    with open(open_image(state, name), "rb") as file:
        image = file.read(IMAGE_LIMIT + 1)
    found = fsverity.digest(image, state.algorithm)
    if found != expected:
        raise DigestMismatchError(f"image {name}", expected.hex(), found.hex())
    return image_to_tree(image, state.algorithm)


def require_image(state: RepoState, name: str) -> ObjectId:
    """The id of the image *name*.

    Raises:
        ImageNotFoundError
    """
    found = has_image(state, name)
    if found is None:
        raise ImageNotFoundError(name)
    return found


def _own_directory() -> str:
    """A directory of this user's alone, made if it is not there."""
    path = os.path.join(tempfile.gettempdir(), f"{_DIRECTORY}-{os.geteuid()}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return tempfile.mkdtemp(prefix=f"{_DIRECTORY}-")
    return path


@contextmanager
def _again(directory: int) -> Iterator[int]:
    """The open *directory*, opened again by its path.

    Raises:
        MountError: it is not there any more.
    """
    path = os.readlink(f"/proc/self/fd/{directory}")
    with opened(path, os.O_PATH | os.O_DIRECTORY) as fd:
        if not os.path.sameopenfile(fd, directory):
            raise MountError(errno.ESTALE, path, "another directory has taken its place")
        yield fd

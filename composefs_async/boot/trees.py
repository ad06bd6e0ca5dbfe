"""Bootable trees: of a directory, and of an image in a repository.

Owns putting together what the other rooms do: scanning or reading layers, what is done to every tree, and what is done
to bootable ones.  Does not own images of them (`images`).  Functions here block; ``x_async`` runs ``x`` in a worker
thread.
"""

from __future__ import annotations

import os

from .._aio.hops import hop, write_hop
from .._aio.operations import async_operation, operation
from .._repo.scan import ScanOptions, scan_and_store, scan_directory
from ..digest import Algorithm
from ..errors import BootError
from ..oci.catalogue import OciImage
from ..oci.erofs_images import image_tree
from ..repository import Repository, state_of
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter, transform_for_oci
from .reading import directory_reader, object_reader
from .transform import Nanoseconds, transform_for_boot

__all__ = [
    "directory_boot_tree",
    "directory_boot_tree_async",
    "image_boot_tree",
    "image_boot_tree_async",
]

Path = str | os.PathLike[str]


def directory_boot_tree(
    path: Path,
    algorithm: Algorithm = Algorithm.SHA512,
    *,
    repository: Repository | None = None,
    xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY,
    propagate_usr: bool = True,
    nanoseconds: Nanoseconds = "keep",
    options: ScanOptions | None = None,
) -> Directory:
    """The tree that a machine boots of the root file system in the directory *path*.  Blocks for a read of all of it.

    Args:
        algorithm: of the digests; that of the *repository* where one is given.
        repository: to store the files in; not durable before an image of the tree is published.
        xattrs, propagate_usr: without *propagate_usr* root, ``/run`` and all attributes stay as they are; otherwise
            as for `transform_for_oci`.
        nanoseconds: as for `transform_for_boot`.
        options: of the scan.

    Raises:
        BootError: *path* is ``/``, or lacks ``/usr``, ``/boot`` or ``/sysroot``.
        SELinuxPolicyError, IntegrityError
        OSError: something cannot be read.
    """
    refuse_root(path)
    if repository is None:
        root = scan_directory(path, algorithm, options)
    else:
        root = scan_and_store(state_of(repository), path, options)
    if propagate_usr:
        transform_for_oci(root, xattrs)
    transform_for_boot(root, directory_reader(path), nanoseconds=nanoseconds)
    return root


async def directory_boot_tree_async(
    path: Path,
    algorithm: Algorithm = Algorithm.SHA512,
    *,
    repository: Repository | None = None,
    xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY,
    propagate_usr: bool = True,
    nanoseconds: Nanoseconds = "keep",
    options: ScanOptions | None = None,
) -> Directory:
    """Make the bootable tree of a directory in a worker thread; see `directory_boot_tree`."""
    return await hop(
        directory_boot_tree,
        path,
        algorithm,
        repository=repository,
        xattrs=xattrs,
        propagate_usr=propagate_usr,
        nanoseconds=nanoseconds,
        options=options,
    )


def refuse_root(path: Path) -> None:
    """Refuse the running system's root, whose content changes while it is read and is on several file systems.

    Raises:
        BootError
    """
    found, root = os.stat(path), os.stat("/")
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
        raise BootError(os.fspath(path), "it is the root of the running system; give a copy or a mount of the tree")


@operation
def image_boot_tree(
    repo: Repository,
    image: OciImage,
    *,
    xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY,
    nanoseconds: Nanoseconds = "keep",
) -> Directory:
    """The tree that a machine boots of *image*.  Blocks; reads the streams of its layers, and its policy's files.

    Raises:
        OciError: it is an artifact, or its layers contradict each other.
        BootError: it lacks ``/usr``, ``/boot`` or ``/sysroot``.
        SELinuxPolicyError, NotFoundError, IntegrityError, SplitstreamError, TarError
    """
    root = image_tree(repo, image, xattrs)
    transform_for_boot(root, object_reader(state_of(repo)), nanoseconds=nanoseconds)
    return root


@async_operation
async def image_boot_tree_async(
    repo: Repository,
    image: OciImage,
    *,
    xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY,
    nanoseconds: Nanoseconds = "keep",
) -> Directory:
    """Make the bootable tree of an image in a worker thread; see `image_boot_tree`."""
    return await write_hop(state_of(repo), image_boot_tree, repo, image, xattrs=xattrs, nanoseconds=nanoseconds)

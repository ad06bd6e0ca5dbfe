"""Where commands take images and trees from: repositories, files, directories.

A source is the name of an image in the repository (an id, or a reference with or without ``refs/``; if there is none, a
tag), ``tag:NAME`` for the tree that the layers of an OCI image make, or a path with a slash in it: of an image, a dump
file or a directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from ..digest import Algorithm
from ..erofs.reader.tree import IMAGE_LIMIT, image_info, image_to_tree
from ..errors import ErofsError, ImageNotFoundError, inputs_named
from ..tree import Directory, ExternalFile
from ..tree.transform import XattrFilter, transform_for_oci
from ..tree.walk import walk
from .context import Settings

if TYPE_CHECKING:
    from ..boot.labels import ReadFile
    from ..repository import Repository

__all__ = ["Source", "algorithm_of", "boot_source", "read_image", "repository_image", "take", "take_both"]

_DEFAULT_VERSION: Final = 1
_OF_TAGS: Final = ("tag:", "oci:")
"""What begins the name of an OCI image; the second is older, and means an image directory elsewhere."""
_DUMP_START: Final = b"/ "


@dataclass(frozen=True, slots=True)
class Source:
    """A tree and how it is written as an image."""

    tree: Directory
    version: int
    """Of the layout; of what is no image, the one that its repository, or composefs-rs, prefers."""
    algorithm: Algorithm | None
    """None if nothing tells."""
    image: bytes | None = None
    """None if it is none."""
    as_composefs_rs: Callable[[], Directory | None] | None = None
    """For an OCI image: makes the tree that composefs-rs has of its layers, None if it refuses them."""


def read_image(path: str | int) -> bytes:
    """The content of the file at *path*, or behind a descriptor, which is closed; perhaps it is no image.

    Raises:
        ErofsError: it is longer than any image may be.
    """
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > IMAGE_LIMIT:
            raise ErofsError(f"{size} bytes are more than the limit of {IMAGE_LIMIT}", IMAGE_LIMIT, str(path))
        return file.read(IMAGE_LIMIT + 1)


def repository_image(repo: Repository, name: str) -> bytes:
    """The image *name* of the repository."""
    try:
        return read_image(repo.open_image(name))
    except ImageNotFoundError:
        if os.path.exists(name):
            raise ImageNotFoundError(f"{name}; the file of this name is ./{name}") from None
        raise


def algorithm_of(tree: Directory) -> Algorithm | None:
    """The algorithm of the digests in *tree*; None if there are none."""
    digests = (inode.digest for _, inode in walk(tree) if isinstance(inode, ExternalFile) and inode.digest)
    size = len(next(digests, b""))
    return next((algorithm for algorithm in Algorithm if algorithm.digest_size == size), None)


def images_layers(repo: Repository, name: str) -> Directory | None:
    """The tree of the OCI image that *name* means, with or without ``tag:``; None if no image has that name."""
    from ..errors import StreamNotFoundError
    from ..oci import catalogue
    from ..oci.erofs_images import image_tree

    try:
        return image_tree(repo, catalogue.open_image(repo, name.removeprefix("tag:").removeprefix("oci:")))
    except StreamNotFoundError:
        return None


def take_both(settings: Settings, first: str, second: str, *, bootable: bool = False) -> tuple[Source, Source]:
    """Two sources to be compared; where one is a directory, the other says by which algorithm it is digested."""
    if _is_directory(first):
        other = take(settings, second, bootable=bootable)
        return take(settings, first, other.algorithm, bootable=bootable), other
    found = take(settings, first, bootable=bootable)
    return found, take(settings, second, found.algorithm, bootable=bootable)


def take(settings: Settings, source: str, algorithm: Algorithm | None = None, *, bootable: bool = False) -> Source:
    """What *source* says; a directory is read as it is, and digested by *algorithm*.

    Args:
        bootable: of directories and OCI images the tree that a machine boots; images and dump files stay as they are.
    """
    if bootable and (_is_directory(source) or source.startswith(_OF_TAGS)):
        return _bootable(settings, source, algorithm)
    if _is_path(source):
        return _from_path(source, settings.algorithm or algorithm)
    with settings.open() as repo:
        if source.startswith(_OF_TAGS):
            from ..oci import catalogue

            name = source.partition(":")[2]
            catalogue.open_image(repo, name)  # whose error says more
            return _of_layers(settings, repo, name)
        try:
            image = repository_image(repo, source)
        except ImageNotFoundError:
            if images_layers(repo, source) is None:
                raise
            return _of_layers(settings, repo, source)
        return Source(image_to_tree(image, repo.algorithm), image_info(image).version, repo.algorithm, image)


def _of_layers(settings: Settings, repo: Repository, name: str) -> Source:
    """The tree of an OCI image that is there."""
    from ..oci import catalogue
    from ..oci.erofs_images import image_tree

    tree, theirs = image_tree(repo, catalogue.open_image(repo, name)), partial(_as_composefs_rs, settings, name)
    return Source(tree, repo.metadata.formats.default, repo.algorithm, as_composefs_rs=theirs)


def boot_source(
    settings: Settings, source: str, algorithm: Algorithm | None = None
) -> tuple[Callable[[XattrFilter], Directory], ReadFile, Algorithm, int]:
    """Return what a bootable image is made from, for the tree of a directory or OCI image.

    That is: what makes the tree before it is transformed for booting, what reads files of its policy, the algorithm of
    its digests, and the layout of its image.
    What is made reads the repository anew; nothing has to be closed.

    Raises:
        click.UsageError: *source* is anything else.
    """
    from ..boot.reading import directory_reader

    if _is_directory(source):
        chosen = settings.algorithm or algorithm or Algorithm.SHA512
        version = _DEFAULT_VERSION if settings.version is None else settings.version
        return partial(_scanned, source, chosen), directory_reader(source), chosen, version
    if not source.startswith(_OF_TAGS):
        raise click.UsageError(f"{source}: only a directory or tag:NAME has a tree that can be made bootable")
    name = source.partition(":")[2]
    with settings.open() as repo:
        return partial(_layers, settings, name), partial(_read, settings), repo.algorithm, repo.metadata.formats.default


def _as_composefs_rs(settings: Settings, name: str) -> Directory | None:
    from ..errors import FormatError
    from ..oci import catalogue
    from ..oci.as_composefs_rs import tree_as_composefs_rs

    with settings.open() as repo:
        try:
            return tree_as_composefs_rs(repo, catalogue.open_image(repo, name))
        except FormatError:
            return None


def _scanned(path: str, algorithm: Algorithm, xattrs: XattrFilter) -> Directory:
    from .._repo.scan import scan_directory

    root = scan_directory(path, algorithm)
    transform_for_oci(root, xattrs)
    return root


def _layers(settings: Settings, name: str, xattrs: XattrFilter) -> Directory:
    from ..oci import catalogue
    from ..oci.erofs_images import image_tree

    with settings.open() as repo:
        return image_tree(repo, catalogue.open_image(repo, name), xattrs)


def _read(settings: Settings, path: bytes, inode: ExternalFile) -> bytes:
    from ..boot.reading import object_reader
    from ..repository import state_of

    with settings.open() as repo:
        return object_reader(state_of(repo))(path, inode)


def _bootable(settings: Settings, source: str, algorithm: Algorithm | None) -> Source:
    from ..boot.transform import transform_for_boot

    make, read, chosen, version = boot_source(settings, source, algorithm)
    root = make(XattrFilter.ALLOWLIST_ONLY)
    transform_for_boot(root, read)
    return Source(root, version, chosen)


def _is_path(source: str) -> bool:
    if source.startswith(("/", "./", "../")):
        return True  # whether it is there or not: no image has such a name
    return "/" in source and not source.startswith((*_OF_TAGS, "refs/")) and os.path.exists(source)


def _is_directory(source: str) -> bool:
    return _is_path(source) and os.path.isdir(source)


def _from_path(path: str, algorithm: Algorithm | None) -> Source:
    if os.path.isdir(path):
        from .._repo.scan import scan_directory

        algorithm = algorithm or Algorithm.SHA512
        return Source(scan_directory(path, algorithm), _DEFAULT_VERSION, algorithm)
    content = read_image(path)
    with inputs_named(path):
        if content.startswith(_DUMP_START):
            from ..tree.dumpfile import parse_dump

            tree = parse_dump(content)
            return Source(tree, _DEFAULT_VERSION, algorithm_of(tree) or algorithm)
        found = image_info(content)
        return Source(image_to_tree(content), found.version, found.algorithm or algorithm, content)

"""Commands on what the layers of an OCI image make: ``oci dump``, ``oci compute-id``, ``oci mount``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from ..tree.transform import XattrFilter
from .context import Settings
from .mounts import MountArguments, MountCommand, mount_options
from .oci_pull import PlatformType
from .output import print_bytes
from .trees import bootable_option, image_format, version_option, xattrs_option

if TYPE_CHECKING:
    from ..digest import Algorithm, ObjectId
    from ..oci.catalogue import OciImage
    from ..oci.platforms import Platform
    from ..repository import Repository
    from ..tree import Directory

__all__ = ["compute_id", "dump", "mount"]

_TRANSPORTS: Final = ("oci:", "oci-archive:", "docker-archive:", "dir:")
"""Of images that are files of this machine."""


@click.command
@click.argument("name")
@bootable_option
@xattrs_option
@click.pass_obj
def dump(settings: Settings, name: str, bootable: bool, xattrs: str) -> None:
    """Print the tree of the image NAME, a tag or @sha256:… of a manifest, as a dump file."""
    from ..tree.dumpwriter import write_dump

    with settings.open() as repo:
        print_bytes(write_dump(_tree(repo, catalogue_image(repo, name), bootable, xattrs)))


@click.command
@click.argument("name")
@bootable_option
@xattrs_option
@version_option
@click.option(
    "--as-composefs-rs",
    is_flag=True,
    help="Read the layers as composefs-rs 0.9.0 does, where it reads them otherwise: the id is that of its image.",
)
@click.option("--platform", type=PlatformType(), help="OS/ARCH[/VARIANT] to take of an image directory.")
@click.pass_obj
def compute_id(
    settings: Settings,
    name: str,
    *,
    bootable: bool,
    xattrs: str,
    version: int | None,
    as_composefs_rs: bool,
    platform: Platform | None,
) -> None:
    """Print the id of the EROFS image that the layers of the image NAME make, without storing it.

    NAME can also be an image in a directory or archive, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or
    dir:PATH; that works without a repository, too.
    """
    if as_composefs_rs and bootable:
        raise click.UsageError("--as-composefs-rs and --bootable cannot be combined")
    make = (
        partial(_tree_as_composefs_rs, xattrs=xattrs)
        if as_composefs_rs
        else partial(_tree, bootable=bootable, xattrs=xattrs)
    )
    if name.startswith(_TRANSPORTS) and not _is_tag(settings, name):
        click.echo(_id_of_layout(settings, name, make, version, platform).hex())
        return
    with settings.open() as repo:
        tree = make(repo, catalogue_image(repo, name))
        layout = repo.metadata.formats.default if version is None else version
        click.echo(_id_of(tree, repo.algorithm, layout).hex())


def _is_tag(settings: Settings, name: str) -> bool:
    """Whether the repository, if there is one, has an image of that name."""
    from ..errors import RepositoryNotFoundError, StreamNotFoundError

    if settings.no_repo:
        return False
    try:
        with settings.open() as repo:
            catalogue_image(repo, name)
    except RepositoryNotFoundError:
        if settings.chosen:
            raise
        return False
    except StreamNotFoundError:
        return False
    return True


def _id_of_layout(
    settings: Settings,
    reference: str,
    make: Callable[[Repository, OciImage], Directory],
    version: int | None,
    platform: Platform | None,
) -> ObjectId:
    from anyio import to_thread

    from ..boot.layouts import imported_image

    algorithm, layout = image_format(settings, version)

    async def compute() -> ObjectId:
        async with imported_image(reference, algorithm, platform=platform) as (repo, image):
            tree = await to_thread.run_sync(make, repo, image)
            return await to_thread.run_sync(_id_of, tree, algorithm, layout)

    return settings.run(compute)


def _id_of(tree: Directory, algorithm: Algorithm, version: int) -> ObjectId:
    from .. import fsverity
    from ..erofs.writer import build_image

    return fsverity.digest(build_image(tree, algorithm, version), algorithm)


@click.command(cls=MountCommand)
@click.argument("name")
@click.option("--bootable", is_flag=True, help="Mount the image that a machine boots.")
@mount_options
@click.pass_obj
def mount(settings: Settings, name: str, bootable: bool, options: MountArguments) -> None:
    """Mount the EROFS image of the image NAME, a tag or @sha256:… of a manifest."""
    from ..errors import ImageNotFoundError
    from ..oci import catalogue

    with settings.open() as repo:
        image, version = catalogue.open_image(repo, name), repo.metadata.formats.default
        found = image.boot_image(version) if bootable else image.image(version)
        if found is None and bootable:
            raise ImageNotFoundError(f"the bootable EROFS image of {name}; 'oci pull --bootable' makes it")
        if found is None:
            raise ImageNotFoundError(f"the EROFS image of {name}; 'oci upgrade' makes missing ones")
        options.mount(repo, found.hex())


def catalogue_image(repo: Repository, name: str) -> OciImage:
    """The image *name* of the repository."""
    from ..oci import catalogue

    return catalogue.open_image(repo, name)


def _tree_as_composefs_rs(repo: Repository, image: OciImage, xattrs: str) -> Directory:
    from ..oci.as_composefs_rs import tree_as_composefs_rs

    return tree_as_composefs_rs(repo, image, XattrFilter(xattrs))


def _tree(repo: Repository, image: OciImage, bootable: bool, xattrs: str) -> Directory:
    if bootable:
        from ..boot.trees import image_boot_tree

        return image_boot_tree(repo, image, xattrs=XattrFilter(xattrs))
    from ..oci.erofs_images import image_tree

    return image_tree(repo, image, XattrFilter(xattrs))

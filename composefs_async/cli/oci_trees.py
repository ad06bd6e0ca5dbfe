"""Commands on what the layers of an OCI image make: ``oci dump``, ``oci compute-id``, ``oci mount``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..tree.transform import XattrFilter
from .context import Settings
from .mounts import MountArguments, mount_options
from .output import print_bytes
from .trees import bootable_option, version_option, xattrs_option

if TYPE_CHECKING:
    from ..repository import Repository
    from ..tree import Directory

__all__ = ["compute_id", "dump", "mount"]


@click.command
@click.argument("name")
@bootable_option
@xattrs_option
@click.pass_obj
def dump(settings: Settings, name: str, bootable: bool, xattrs: str) -> None:
    """Print the tree of the image NAME, a tag or @sha256:… of a manifest, as a dump file."""
    from ..tree.dumpwriter import write_dump

    with settings.open() as repo:
        print_bytes(write_dump(_tree(repo, name, bootable, xattrs)))


@click.command
@click.argument("name")
@bootable_option
@xattrs_option
@version_option
@click.pass_obj
def compute_id(settings: Settings, name: str, bootable: bool, xattrs: str, version: int | None) -> None:
    """Print the id of the EROFS image that the layers of the image NAME make, without storing it."""
    from .. import fsverity
    from ..erofs.writer import build_image

    with settings.open() as repo:
        layout = repo.metadata.formats.default if version is None else version
        image = build_image(_tree(repo, name, bootable, xattrs), repo.algorithm, layout)
        click.echo(fsverity.digest(image, repo.algorithm).hex())


@click.command
@click.argument("name")
@click.argument("mountpoint", type=click.Path(exists=True, file_okay=False))
@click.option("--bootable", is_flag=True, help="Mount the image that a machine boots.")
@mount_options
@click.pass_obj
def mount(settings: Settings, name: str, mountpoint: str, bootable: bool, options: MountArguments) -> None:
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
        options.mount_at(repo, found.hex(), mountpoint)


def _tree(repo: Repository, name: str, bootable: bool, xattrs: str) -> Directory:
    from ..oci import catalogue
    from ..oci.erofs_images import image_tree

    image = catalogue.open_image(repo, name)
    if bootable:
        from ..boot.trees import image_boot_tree

        return image_boot_tree(repo, image, xattrs=XattrFilter(xattrs))
    return image_tree(repo, image, XattrFilter(xattrs))

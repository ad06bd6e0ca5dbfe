"""Commands on what the layers of an OCI image make: ``oci dump``, ``oci compute-id``, ``oci mount``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..tree.transform import XattrFilter
from .context import Settings
from .mounts import MountArguments, mount_options
from .output import print_bytes
from .trees import version_option, xattrs_option

if TYPE_CHECKING:
    from ..repository import Repository
    from ..tree import Directory

__all__ = ["compute_id", "dump", "mount"]


@click.command
@click.argument("name")
@xattrs_option
@click.pass_obj
def dump(settings: Settings, name: str, xattrs: str) -> None:
    """Print the tree of the image NAME, a tag or @sha256:… of a manifest, as a dump file."""
    from ..tree.dumpwriter import write_dump

    with settings.open() as repo:
        print_bytes(write_dump(_tree(repo, name, xattrs)))


@click.command
@click.argument("name")
@xattrs_option
@version_option
@click.pass_obj
def compute_id(settings: Settings, name: str, xattrs: str, version: int | None) -> None:
    """Print the id of the EROFS image that the layers of the image NAME make, without storing it."""
    from .. import fsverity
    from ..erofs.writer import build_image

    with settings.open() as repo:
        layout = repo.metadata.formats.default if version is None else version
        image = build_image(_tree(repo, name, xattrs), repo.algorithm, layout)
        click.echo(fsverity.digest(image, repo.algorithm).hex())


@click.command
@click.argument("name")
@click.argument("mountpoint", type=click.Path(exists=True, file_okay=False))
@mount_options
@click.pass_obj
def mount(settings: Settings, name: str, mountpoint: str, options: MountArguments) -> None:
    """Mount the EROFS image of the image NAME, a tag or @sha256:… of a manifest."""
    from ..errors import ImageNotFoundError
    from ..oci import catalogue

    with settings.open() as repo:
        found = catalogue.open_image(repo, name).image(repo.metadata.formats.default)
        if found is None:
            raise ImageNotFoundError(f"the EROFS image of {name}; 'oci upgrade' makes missing ones")
        options.mount_at(repo, found.hex(), mountpoint)


def _tree(repo: Repository, name: str, xattrs: str) -> Directory:
    from ..oci import catalogue
    from ..oci.images import image_tree

    return image_tree(repo, catalogue.open_image(repo, name), XattrFilter(xattrs))

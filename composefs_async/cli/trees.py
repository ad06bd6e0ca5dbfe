"""Commands on directories: ``create-image``, ``compute-id``, ``create-dumpfile``, ``compute-karg``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from ..digest import Algorithm
from ..errors import RepositoryNotFoundError
from ..tree.transform import XattrFilter, clamp_times, transform_for_oci
from .context import Settings
from .output import print_bytes

if TYPE_CHECKING:
    from ..tree import Directory

__all__ = [
    "bootable_option",
    "clamp_option",
    "compute_id",
    "compute_karg",
    "create_dumpfile",
    "create_image",
    "image_format",
    "version_option",
    "xattrs_option",
]

_DEFAULT_VERSION: Final = 1
_FORMS: Final = ("composefs.digest", "composefs", "both")


class _Xattrs(click.Choice[str]):
    """The value of a filter; ``all`` is what composefs-rs calls ``none``, after what is filtered."""

    def __init__(self) -> None:
        super().__init__([*(kind.value for kind in XattrFilter), "all"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = super().convert(value, param, ctx)
        return XattrFilter.NONE.value if found == "all" else found


def xattrs_option(function: Any) -> Any:
    """The option ``--xattrs`` of a command."""
    return click.option(
        "--xattrs",
        type=_Xattrs(),
        default=XattrFilter.ALLOWLIST_ONLY.value,
        show_default=True,
        help="Which attributes stay: security.capability only, user.* too, or all (cfsctl: none).",
    )(function)


def version_option(function: Any) -> Any:
    """The option ``--erofs-version`` of a command."""
    return click.option(
        "--erofs-version",
        "version",
        type=click.IntRange(0, 2),
        help="The layout of the image; the default is that of the repository, or 1.",
    )(function)


def bootable_option(function: Any) -> Any:
    """The option ``--bootable`` of a command."""
    return click.option(
        "--bootable",
        is_flag=True,
        help="The tree as a machine boots it: labels of its SELinux policy, /boot and /sysroot emptied.",
    )(function)


def clamp_option(function: Any) -> Any:
    """The option ``--clamp-mtime`` of a command."""
    return click.option(
        "--clamp-mtime",
        "epoch",
        type=click.IntRange(min=0),
        metavar="EPOCH",
        help="Nothing is newer than so many seconds after 1970 (SOURCE_DATE_EPOCH).",
    )(function)


def _as_is_option(function: Any) -> Any:
    return click.option(
        "--no-propagate-usr-to-root",
        "as_is",
        is_flag=True,
        help="Take the directory as it is: keep the root's metadata, the content of /run, and all attributes.",
    )(function)


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@click.argument("name", required=False)
@bootable_option
@clamp_option
@_as_is_option
@xattrs_option
@click.pass_obj
def create_image(settings: Settings, /, path: str, name: str | None, **how: Any) -> None:
    """Store the files of the directory PATH and an image of it, called NAME; print the id of the image.

    The image is that of an operating system: its root gets the metadata of /usr, and /run is emptied.
    """
    from ..erofs.writer import build_image

    with settings.open() as repo:
        if name is not None:
            repo.has_image(f"refs/{name}")  # What can be no name is refused before the work.
        tree = _prepared(repo.scan_directory(path), path, **how)
        default, *others = repo.metadata.formats
        image_id = repo.write_image(build_image(tree, repo.algorithm, default), name)
        for version in others:
            repo.write_image(build_image(tree, repo.algorithm, version))
    click.echo(image_id.text)


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@bootable_option
@clamp_option
@_as_is_option
@xattrs_option
@version_option
@click.pass_obj
def compute_id(settings: Settings, /, path: str, version: int | None, **how: Any) -> None:
    """Print the id that create-image would give the directory PATH, without storing anything.

    It works without a repository, which otherwise says by which algorithm and in which layout.
    """
    from .. import fsverity
    from ..erofs.writer import build_image

    algorithm, version = image_format(settings, version)
    tree = _prepared(_scanned(path, algorithm), path, **how)
    click.echo(fsverity.digest(build_image(tree, algorithm, version), algorithm).hex())


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@bootable_option
@clamp_option
@_as_is_option
@xattrs_option
@click.pass_obj
def create_dumpfile(settings: Settings, /, path: str, **how: Any) -> None:
    """Print the tree that create-image would make an image of, as a dump file."""
    from ..tree.dumpwriter import write_dump

    algorithm, _ = image_format(settings, None)
    print_bytes(write_dump(_prepared(_scanned(path, algorithm), path, **how)))


def image_format(settings: Settings, version: int | None) -> tuple[Algorithm, int]:
    """Algorithm and layout for an image that is not stored: of the repository if there is one."""
    version = settings.version if version is None else version
    if not settings.no_repo and (settings.algorithm is None or settings.chosen):
        try:
            with settings.open() as repo:
                return repo.algorithm, repo.metadata.formats.default if version is None else version
        except RepositoryNotFoundError:
            if settings.chosen:
                raise
    return settings.algorithm or Algorithm.SHA512, _DEFAULT_VERSION if version is None else version


def _scanned(path: str, algorithm: Algorithm) -> Directory:
    from .._repo.scan import scan_directory

    return scan_directory(path, algorithm)


def _prepared(
    tree: Directory, path: str, *, bootable: bool, as_is: bool, xattrs: str, epoch: int | None = None
) -> Directory:
    if epoch is not None:
        clamp_times(tree, epoch)
    if not as_is:
        transform_for_oci(tree, XattrFilter(xattrs))
    if bootable:
        from ..boot.reading import directory_reader
        from ..boot.transform import transform_for_boot

        transform_for_boot(tree, directory_reader(path))
    return tree


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@clamp_option
@_as_is_option
@click.option("--form", type=click.Choice(_FORMS), help="Of the argument, if not the one that fits the layout.")
@click.option("--insecure", is_flag=True, help="Do not require fs-verity.")
@version_option
@click.pass_obj
def compute_karg(
    settings: Settings,
    path: str,
    *,
    epoch: int | None,
    as_is: bool,
    form: Any,
    insecure: bool,
    version: int | None,
) -> None:
    """Print the kernel argument for the bootable image of the directory PATH, without storing anything."""
    from .. import fsverity
    from ..boot.kargs import format_karg, require_form
    from ..boot.trees import refuse_root
    from ..erofs.writer import build_image

    refuse_root(path)
    algorithm, version = image_format(settings, version)
    require_form(version, form)
    tree = _prepared(
        _scanned(path, algorithm),
        path,
        bootable=True,
        as_is=as_is,
        xattrs=XattrFilter.ALLOWLIST_ONLY.value,
        epoch=epoch,
    )
    image = fsverity.digest(build_image(tree, algorithm, version), algorithm)
    click.echo(format_karg(image, version, insecure=insecure or settings.insecure, form=form))

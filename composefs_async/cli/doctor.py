"""The command ``doctor``: what is there, and what that means for a repository."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from .context import Settings, as_json, print_json
from .output import printable
from .progress import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._repo.links import LinkedDirectory
    from .._sys.probe import Abilities
    from .._sys.rootless_probe import RootlessAbilities

__all__ = ["doctor"]

_LINK = {
    True: "it is followed by whoever reads; gc refuses to work where names are behind a link",
    False: "it is not followed",
}
_WORDS = {True: "yes", False: "no", None: "?"}
_PACKAGES = ("composefs-async", "anyio", "uvloop", "trio", "zlib-ng", "backports.zstd", "click", "rich")


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False, readable=False), required=False)
@click.option(
    "--storage",
    metavar="[GRAPHROOT]",
    is_flag=False,
    flag_value="",
    help="Instead, check every layer of a containers-storage store (of the configuration if none is named).",
)
@as_json
@click.pass_obj
def doctor(settings: Settings, path: str | None, storage: str | None, json_output: bool) -> None:
    """Tell what the directory PATH (or the repository's place, or here), its file system and the kernel can do."""
    if storage is None:
        _examine(path or _existing(settings.path() if settings.chosen else os.curdir), json_output)
    elif path is not None:
        raise click.UsageError("--storage checks a store, and takes no PATH beside it")
    else:
        _check_storage(storage, json_output)


def _examine(place: str, json_output: bool) -> None:
    """Print what a directory, its file system and this machine can do."""
    from .. import _native
    from .._repo.links import linked_directories
    from .._sys.probe import probe
    from .._sys.rootless_probe import probe_rootless

    found, rootless, links = probe(place), probe_rootless(), linked_directories(place)
    versions = {"python": platform.python_version(), "kernel": os.uname().release} | _versions()
    if json_output:
        print_json(
            {
                "filesystem": asdict(found),
                "rootless": asdict(rootless),
                "native": {"backend": _native.BACKEND, "implementations": dict(_native.FEATURES)},
                "versions": versions,
                "cpus": os.cpu_count(),
                "links": [asdict(each) for each in links],
            }
        )
        return
    _print_place(place, found, links)
    click.echo("mounts without root:")
    for good, name, meaning in _rootless_lines(rootless):
        click.echo(f"  {_WORDS[good]:4}{name:18}{meaning}")
    _print_digests()
    click.echo("versions:")
    for name, number in versions.items():
        click.echo(f"  {name:18}{number}")
    click.echo(f"  {'executable':18}{sys.executable}")


def _print_place(place: str, found: Abilities, links: Iterable[LinkedDirectory]) -> None:
    kind = f" ({found.kind})" if found.kind else ""
    click.echo(f"{printable(os.path.abspath(place))}{kind}:")
    for good, name, meaning in _lines(found):
        click.echo(f"  {_WORDS[good]:4}{name:18}{meaning}")
    click.echo(f"  {size_text(found.free_bytes)} free, {found.free_inodes} free inodes")
    for each in links:
        what = f"{each.path} is a link to {each.target}, made by user {each.owner}"
        click.echo(f"  link {printable(what)}: {_LINK[each.followed]}")


def _print_digests() -> None:
    from .. import _native

    click.echo("digests:")
    click.echo(f"  {_native.BACKEND} code on {os.cpu_count()} processor(s)")
    if (missing := _native.missing()) is not None:
        click.echo(f"  {missing}")
    for algorithm, implementations in _native.FEATURES.items():
        click.echo(f"  {algorithm}: {', '.join(implementations)}")


def _check_storage(root: str, json_output: bool) -> None:
    """Print what is wrong with a store; exits as for wrong content if anything is, and as fsck if it cannot tell."""
    from ..errors import DigestMismatchError
    from ..oci.sources.storage.checking import check_storage
    from .exit_codes import COULD_NOT_CHECK, exit_code

    found = check_storage(os.path.abspath(root) if root else None)
    damaged = [each for each in found.layers if each.problem is not None]
    unchecked = [each for each in found.layers if each.unchecked is not None]
    hurt = [each for each in found.images if not each.good]
    if json_output:
        counts = {"damaged": len(damaged), "unchecked": len(unchecked), "images_damaged": len(hurt)}
        layers, images = ([asdict(each) for each in some] for some in (found.layers, found.images))
        print_json({"layers": layers, "images": images, **counts})
    else:
        for each in damaged:
            click.echo(printable(f"layer {each.id}: {each.problem}"))
            for name in each.files:
                click.echo(f"  damaged: {printable(name)}")
        for each in unchecked:
            click.echo(printable(f"layer {each.id}: not checked: {each.unchecked}"))
        for image in found.images:
            if image.unchecked is not None:
                click.echo(printable(f"image {image.id[:12]}: not checked: {image.unchecked}"))
        for image in hurt:
            layers_text = ", ".join(f"layer {each[:12]} is damaged" for each in image.damaged_layers)
            problem = "; ".join(filter(None, (image.problem, layers_text)))
            click.echo(printable(f"image {image.id[:12]} ({', '.join(image.names) or 'without a name'}): {problem}"))
        containers = sum(each.diff_id is None for each in found.layers)
        click.echo(
            f"{len(found.layers)} layers, {len(damaged)} damaged, {len(unchecked)} could not be checked, "
            f"{containers} of containers skipped; {len(found.images)} images, {len(hurt)} damaged"
        )
    if damaged or hurt:
        raise click.exceptions.Exit(exit_code(DigestMismatchError("store", "", "")))
    if unchecked:
        raise click.exceptions.Exit(COULD_NOT_CHECK)


def _existing(path: str) -> str:
    """*path*, or the nearest directory above it that exists."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or os.curdir


def _lines(found: Abilities) -> list[tuple[bool | None, str, str]]:
    """Whether it is there, what it is called, and what that means."""
    facts: dict[str, tuple[bool | None, str, str]] = {
        "writable": (found.writable, "a repository can be made here", _why_not_writable(found)),
        "O_TMPFILE": (found.tmpfile, "objects are written without a name", "objects are written under temporary names"),
        "fs-verity": (
            found.verity,
            "repositories can be secure: the kernel guards every object",
            "only insecure repositories (init --insecure); ext4 with its feature verity, btrfs and f2fs have it",
        ),
        "reflink": (found.reflink, "files can share their content with objects", "content has to be copied"),
        "EROFS": (found.erofs, "images can be mounted", "this kernel cannot mount images"),
        "overlayfs": (found.overlay, "mounted images show the files behind them", "mounted images would be empty"),
        "overlay verity": (
            found.overlay_verity,
            "mounts can require fs-verity of every file",
            "mounts cannot require fs-verity; that needs Linux 6.6",
        ),
    }
    if not found.proc:
        facts["/proc"] = (False, "", "/proc is not mounted: no image can be mounted, nor fs-verity be enabled")
    unknown = "cannot be tried where nothing can be written"
    return [(good, name, {True: yes, False: no, None: unknown}[good]) for name, (good, yes, no) in facts.items()]


def _rootless_lines(found: RootlessAbilities) -> list[tuple[bool, str, str]]:
    facts: dict[str, tuple[bool, str, str]] = {
        "user namespaces": (
            found.user_namespaces,
            "'mount --rootless' can have one",
            "a sysctl or the container forbids them: user.max_user_namespaces, kernel.unprivileged_userns_clone",
        ),
        "more owners": (
            found.ids,
            "files keep their owners in rootless mounts",
            "all files belong to root there; newuidmap and /etc/subuid would give more",
        ),
        "tmpfs attributes": (
            found.tmpfs_xattrs,
            "the metadata of images can stand in memory",
            "no 'mount --rootless'; it needs Linux 6.6 with CONFIG_TMPFS_XATTR",
        ),
        "userxattr data": (
            found.userxattr_data,
            "overlayfs finds content in objects",
            "no 'mount --rootless'; it needs Linux 6.16",
        ),
        "/dev/fuse": (found.fuse, "'mount --fuse' can work", "no 'mount --fuse'"),
    }
    return [(good, name, yes if good else no) for name, (good, yes, no) in facts.items()]


def _why_not_writable(found: Abilities) -> str:
    return "it is mounted read-only" if found.read_only else "no file can be made here"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    from .._zstd import zstd

    found["libzstd"] = zstd.zstd_version
    return found

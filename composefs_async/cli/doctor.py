"""The command ``doctor``: what is there, and what that means for a repository."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from .context import Settings, as_json, print_json
from .progress import size_text

if TYPE_CHECKING:
    from .._sys.probe import Abilities

__all__ = ["doctor"]

_PACKAGES = ("composefs-async", "anyio", "uvloop", "trio", "zlib-ng", "backports.zstd", "click", "rich")


@click.command
@click.argument("path", type=click.Path(exists=True, file_okay=False), required=False)
@as_json
@click.pass_obj
def doctor(settings: Settings, path: str | None, json_output: bool) -> None:
    """Tell what the directory PATH (or the repository's place, or here), its file system and the kernel can do."""
    from .. import _native
    from .._sys.probe import probe

    place = path or _existing(settings.path() if settings.repo else os.curdir)
    found = probe(place)
    native: dict[str, Any] = {"backend": _native.BACKEND, "implementations": dict(_native.FEATURES)}
    versions = {"python": platform.python_version(), "kernel": os.uname().release} | _versions()
    if json_output:
        print_json({"filesystem": asdict(found), "native": native, "versions": versions, "cpus": os.cpu_count()})
        return
    click.echo(f"{os.path.abspath(place)}:")
    for good, name, meaning in _lines(found):
        click.echo(f"  {'yes' if good else 'no ':4}{name:18}{meaning}")
    click.echo(f"  {size_text(found.free_bytes)} free, {found.free_inodes} free inodes")
    click.echo("digests:")
    click.echo(f"  {native['backend']} code on {os.cpu_count()} processor(s)")
    for algorithm, implementations in _native.FEATURES.items():
        click.echo(f"  {algorithm}: {', '.join(implementations)}")
    click.echo("versions:")
    for name, number in versions.items():
        click.echo(f"  {name:18}{number}")
    click.echo(f"  {'executable':18}{sys.executable}")


def _existing(path: str) -> str:
    """*path*, or the nearest directory above it that exists."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or os.curdir


def _lines(found: Abilities) -> list[tuple[bool, str, str]]:
    secure = "repositories can be secure" if found.verity else "only insecure repositories (--insecure)"
    return [
        (
            not found.read_only,
            "writable",
            "the file system is mounted read-write" if not found.read_only else "mounted read-only",
        ),
        (
            found.tmpfile,
            "O_TMPFILE",
            "objects are written without a name" if found.tmpfile else "under temporary names",
        ),
        (found.verity, "fs-verity", secure),
        (found.reflink, "reflink", "files can share content with objects" if found.reflink else "content is copied"),
        (found.erofs, "EROFS", "images can be mounted" if found.erofs else "images cannot be mounted here"),
        (found.overlay, "overlayfs", "with files behind them" if found.overlay else "without files behind them"),
        (
            found.overlay_verity,
            "overlay verity",
            "mounts can require fs-verity" if found.overlay_verity else "needs Linux 6.6",
        ),
    ]


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

"""Commands on mounts: ``mount``, ``umount``; and the options that ``oci mount`` shares."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .context import Settings

if TYPE_CHECKING:
    from ..repository import Repository

__all__ = ["MountArguments", "mount", "mount_options", "umount"]


@dataclass(frozen=True, slots=True)
class MountArguments:
    """What the options of `mount_options` say."""

    upper: str | None
    work: str | None
    read_write: bool
    idmap: str | None

    def mount_at(self, repo: Repository, name: str, mountpoint: str) -> None:
        """Mount the image *name* of *repo*."""
        upper, work, read_write = self.upper, self.work, self.read_write
        idmap = os.open(self.idmap, os.O_RDONLY | os.O_CLOEXEC) if self.idmap else None
        try:
            repo.mount_at(name, mountpoint, upper=upper, work=work, read_write=read_write, idmap=idmap)
        finally:
            if idmap is not None:
                os.close(idmap)


def mount_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that mount, given to *function* as one `MountArguments` called *options*."""

    @click.option("--upperdir", type=click.Path(exists=True, file_okay=False), help="Where changes are kept.")
    @click.option("--workdir", type=click.Path(exists=True, file_okay=False), help="Empty, beside --upperdir.")
    @click.option("--read-write", is_flag=True, help="Allow changes; needs --upperdir and --workdir.")
    @click.option("--idmap", type=click.Path(exists=True), help="A user namespace whose map of owners applies.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, upperdir: str | None, workdir: str | None, read_write: bool, idmap: str | None, **others: Any
    ) -> Any:
        if (upperdir is None) != (workdir is None):
            raise click.UsageError("--upperdir and --workdir are given both or not at all")
        if read_write and upperdir is None:
            raise click.UsageError("--read-write needs --upperdir and --workdir")
        return function(*args, options=MountArguments(upperdir, workdir, read_write, idmap), **others)

    return wrapper


@click.command
@click.argument("name")
@click.argument("mountpoint", type=click.Path(exists=True, file_okay=False))
@mount_options
@click.pass_obj
def mount(settings: Settings, name: str, mountpoint: str, options: MountArguments) -> None:
    """Mount the image NAME, an id or a reference, at the directory MOUNTPOINT.  Needs root."""
    with settings.open() as repo:
        options.mount_at(repo, name, mountpoint)


@click.command
@click.argument("mountpoint", type=click.Path())
@click.option("--lazy", is_flag=True, help="Out of sight at once; gone when nobody uses it any more.")
def umount(mountpoint: str, lazy: bool) -> None:
    """Remove the mount at MOUNTPOINT."""
    from ..repository import Repository

    Repository.unmount(mountpoint, lazy=lazy)

"""Commands on mounts: ``mount``, ``umount``; and the options that ``oci mount`` shares."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from ..results import MountOptions
from .context import Settings
from .output import say

if TYPE_CHECKING:
    from ..repository import Repository

__all__ = ["MountArguments", "MountCommand", "mount", "mount_options", "umount"]

_FUSE_MODES: Final = ("auto", "yes", "no")
_NOT_FOUND: Final = 127
"""As shells report a command that is not there."""
_NOT_RUN: Final = 126


@dataclass(frozen=True, slots=True)
class MountArguments:
    """What the options of `mount_options`, and what stands behind the image's name, say."""

    upper: str | None
    work: str | None
    read_write: bool
    idmap: str | None
    rootless: bool
    fuse: str
    foreground: bool
    rest: tuple[str, ...]
    """The mountpoint; of a rootless mount the command."""

    def mount(self, repo: Repository, name: str) -> None:
        """Mount the image *name* of *repo*; a rootless mount becomes the command, so that this does not return."""
        if self.rootless:
            self._become_command(repo, name)
        fuse = self.fuse
        if fuse == "auto":
            fuse = "no" if os.geteuid() == 0 else "yes"
        if fuse == "yes":
            self._become_fuse(repo, name)
        idmap = os.open(self.idmap, os.O_RDONLY | os.O_CLOEXEC) if self.idmap else None
        try:
            repo.mount_at(name, self.rest[0], MountOptions(self.upper, self.work, self.read_write, idmap))
        finally:
            if idmap is not None:
                os.close(idmap)

    def _become_command(self, repo: Repository, name: str) -> NoReturn:
        from .._repo.rootless_child import become

        found = repo.enter_rootless(name, options=MountOptions(self.upper, self.work, self.read_write))
        repo.close()
        if left_out := str(found.left_out):
            say(f"composefs-async: in this mount {left_out}")
        try:
            become(list(self.rest), found.path)
        except OSError as error:
            code = _NOT_FOUND if isinstance(error, FileNotFoundError | NotADirectoryError) else _NOT_RUN
            raise _CommandError(f"{self.rest[0]}: {error.strerror}", code) from None

    def _become_fuse(self, repo: Repository, name: str) -> NoReturn:
        command = self._fuse_command(repo, name)
        repo.close()
        os.execv(command[0], command)

    def _fuse_command(self, repo: Repository, name: str) -> list[str]:
        """Of the first program that is there; both take an absolute path of the repository."""
        top, mountpoint, image = os.path.abspath(repo.path), self.rest[0], _image_id(repo, name)
        program = shutil.which("cfsctl")
        if program is not None:
            command = [program, "--repo", top, "mount", "--fuse", "yes"]
            for option, value in (("--upperdir", self.upper), ("--workdir", self.work)):
                command += [option, value] if value else []
            command += ["--read-write"] * self.read_write + ["--foreground"] * self.foreground
            return [*command, image, mountpoint]
        program = shutil.which("mount.composefs")
        if program is None:
            raise click.ClickException("--fuse needs the program cfsctl or mount.composefs, and neither is there")
        options = [f"basedir={top}/objects"] + (["verity"] if repo.secure else [])
        options += [f"upperdir={self.upper}", f"workdir={self.work}"] if self.upper else []
        return [program, "-o", ",".join(options), f"{top}/images/{image}", mountpoint]


class _CommandError(click.ClickException):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        setattr(self, "exit_code", code)  # noqa: B010 - click has it as a class variable


def _image_id(repo: Repository, name: str) -> str:
    """The id of the image *name*, in hexadecimal."""
    from ..errors import ImageNotFoundError

    found = repo.has_image(name)
    if found is None:
        raise ImageNotFoundError(name)
    return found.hex()


class MountCommand(click.Command):
    """A command whose option ``--fuse`` can stand without its value, before other arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse *args*, in which ``--fuse`` without a mode means ``--fuse=yes``."""
        end = args.index("--") if "--" in args else len(args)
        for at in range(end):
            if args[at] == "--fuse" and args[at + 1 : at + 2] not in ([mode] for mode in _FUSE_MODES):
                args = [*args[:at], "--fuse=yes", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def mount_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that mount, given to *function* as one `MountArguments` called *options*."""

    @click.argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="MOUNTPOINT | -- COMMAND...")
    @click.option("--upperdir", type=click.Path(exists=True, file_okay=False), help="Where changes are kept.")
    @click.option("--workdir", type=click.Path(exists=True, file_okay=False), help="Empty, beside --upperdir.")
    @click.option("--read-write", is_flag=True, help="Allow changes; needs --upperdir and --workdir.")
    @click.option("--idmap", type=click.Path(exists=True), help="A user namespace whose map of owners applies.")
    @click.option(
        "--rootless",
        is_flag=True,
        help="Needs no root: run COMMAND in a namespace of its own, in the mount, whose path is in COMPOSEFS_MOUNT.",
    )
    @click.option(
        "--fuse",
        type=click.Choice(_FUSE_MODES),
        default="no",
        help="Let cfsctl mount by FUSE, or mount.composefs: yes, no, or auto for anybody but root.",
    )
    @click.option("--foreground", is_flag=True, help="With --fuse: let the program stay in the foreground.")
    @functools.wraps(function)
    def wrapper(*args: Any, rest: tuple[str, ...], **others: Any) -> Any:
        upper, work = others.pop("upperdir"), others.pop("workdir")
        names = ("read_write", "idmap", "rootless", "fuse", "foreground")
        found = MountArguments(upper, work, **{name: others.pop(name) for name in names}, rest=rest)
        _check(found)
        return function(*args, options=found, **others)

    return wrapper


def _check(found: MountArguments) -> None:
    if (found.upper is None) != (found.work is None):
        raise click.UsageError("--upperdir and --workdir are given both or not at all")
    if found.read_write and found.upper is None:
        raise click.UsageError("--read-write needs --upperdir and --workdir")
    if found.foreground and found.fuse == "no":
        raise click.UsageError("--foreground needs --fuse")
    if found.rootless:
        if found.idmap or found.fuse != "no":
            raise click.UsageError("--rootless excludes --idmap and --fuse")
        if not found.rest:
            raise click.UsageError("--rootless needs a command: -- COMMAND...")
        return
    if len(found.rest) != 1:
        raise click.UsageError("Missing argument 'MOUNTPOINT'" if not found.rest else "more than one MOUNTPOINT")
    if not os.path.isdir(found.rest[0]):
        what = "is a file" if os.path.exists(found.rest[0]) else "does not exist"
        raise click.UsageError(f"Invalid value for 'MOUNTPOINT': Directory {found.rest[0]!r} {what}")


@click.command(cls=MountCommand)
@click.argument("name")
@mount_options
@click.pass_obj
def mount(settings: Settings, name: str, options: MountArguments) -> None:
    """Mount the image NAME, an id or a reference, at the directory MOUNTPOINT.  Needs root, but for --rootless.

    A rootless mount needs Linux 6.16 and user namespaces; 'doctor' tells whether they are there.
    """
    with settings.open() as repo:
        options.mount(repo, name)


@click.command
@click.argument("mountpoint", type=click.Path())
@click.option("--lazy", is_flag=True, help="Out of sight at once; gone when nobody uses it any more.")
def umount(mountpoint: str, lazy: bool) -> None:
    """Remove the mount at MOUNTPOINT."""
    from ..repository import Repository

    Repository.unmount(mountpoint, lazy=lazy)

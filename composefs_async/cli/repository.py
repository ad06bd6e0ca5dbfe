"""Commands on a repository as a whole: ``init``, ``cat``, ``cp``."""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..digest import Algorithm
from ..errors import RepositoryNotFoundError, VerityNotSupportedError
from .account import tell
from .context import Settings, as_json, print_json
from .output import print_bytes, printable

if TYPE_CHECKING:
    from .._maintenance.reset import NamesToForget
    from ..repository import Repository

__all__ = ["cat", "cp", "init"]


class AlgorithmType(click.ParamType[Algorithm]):
    name = "algorithm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Algorithm:
        if isinstance(value, Algorithm):
            return value
        try:
            return Algorithm.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command
@click.argument("path", type=click.Path(readable=False), required=False)
@click.option(
    "--algorithm",
    type=AlgorithmType(),
    help="How objects are named: fsverity-sha512-12, the default, or fsverity-sha256-12.",
)
@click.option(
    "--erofs-version",
    type=click.IntRange(0, 2),
    default=1,
    show_default=True,
    metavar="VERSION",
    help="The layout of its images.",
)
@click.option("--insecure", is_flag=True, help="Do without fs-verity, on file systems that have none.")
@click.option(
    "--ensure", is_flag=True, help="Take an existing repository of the same algorithm as it is; upgrade an old one."
)
@click.option(
    "--reset-metadata", is_flag=True, help="Forget all streams, images and references there are, and keep the objects."
)
@click.option("-n", "--dry-run", is_flag=True, help="With --reset-metadata: print what would be forgotten.")
@click.option("--yes", is_flag=True, help="With --reset-metadata: forget names, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for others; 10 with --reset-metadata.",
)
@as_json
@click.pass_obj
def init(
    settings: Settings,
    *,
    path: str | None,
    algorithm: Algorithm | None,
    erofs_version: int,
    insecure: bool,
    ensure: bool,
    reset_metadata: bool,
    dry_run: bool,
    yes: bool,
    timeout: float | None,
    json_output: bool,
) -> None:
    """Create a repository at PATH, or where --repo, --user or --system say."""
    if algorithm and settings.algorithm not in (None, algorithm):
        raise click.UsageError("--algorithm and --hash contradict each other")
    if path is not None and settings.chosen and settings.named is None:
        raise click.UsageError("PATH excludes --repo, --user and --system")
    if path == "":
        raise click.UsageError("PATH is empty")
    if ensure and reset_metadata:
        raise click.UsageError("--ensure and --reset-metadata exclude each other")
    if (dry_run or yes) and not reset_metadata:
        raise click.UsageError(f"{'--dry-run' if dry_run else '--yes'} goes with --reset-metadata")
    algorithm = algorithm or settings.algorithm or Algorithm.SHA512
    place = path or settings.path()
    forgotten = _forgotten(place) if reset_metadata else None
    if dry_run and forgotten is None:
        raise RepositoryNotFoundError(place, "no such directory")
    if forgotten is not None and dry_run:
        _print_plan(place, forgotten, json_output)
        return
    if forgotten is not None and (forgotten.tags or forgotten.references) and not yes:
        raise click.UsageError(
            f"this would forget {_forgotten_text(forgotten)} of {place}; --yes forgets them, --dry-run lists them"
        )
    make = partial(_make, place, algorithm, erofs_version, insecure or settings.insecure, timeout)
    try:
        repo, created, upgraded = make(ensure=ensure, reset=forgotten is not None)
    except VerityNotSupportedError as error:
        error.add_note(f"to make one: composefs-async init --insecure {shlex.quote(place)}")
        raise
    with repo:
        if json_output:
            facts = {"path": place, "created": created, "algorithm": repo.algorithm.text, "verity": repo.secure}
            more = {"forgotten": asdict(forgotten)} if forgotten else {}
            print_json({**facts, **({"upgraded": True} if upgraded else {}), **more})
        elif created:
            tell(f"Initialized composefs repository at {place}")
            tell(f"  algorithm: {repo.algorithm.text}")
            tell(f"  verity:    {'required' if repo.secure else 'not required (insecure)'}")
            if forgotten is not None:
                tell(f"  forgotten: {_forgotten_text(forgotten)}; their objects stay until gc")
        elif upgraded:
            tell(f"Upgraded legacy repository at {place}")
        else:
            kept = " (existing configuration preserved)" if ensure else ""
            tell(f"Repository already initialized at {place}{kept}")


def _make(
    place: str,
    algorithm: Algorithm,
    version: int,
    insecure: bool,
    timeout: float | None,
    *,
    ensure: bool,
    reset: bool,
) -> tuple[Repository, bool, bool]:
    """The repository, and whether it was made, or upgraded."""
    from ..repository import Repository

    os.makedirs(os.path.dirname(place.rstrip("/")) or ".", exist_ok=True)
    how: dict[str, Any] = {"algorithm": algorithm, "erofs_version": version, "insecure": insecure}
    upgraded = ensure and _upgrade(place, algorithm, timeout)
    if reset:
        how |= {} if timeout is None else {"timeout": timeout}
        return Repository.reset_metadata(place, **how), True, False
    repo = Repository.init(place, **how, ensure=ensure, timeout=timeout)
    return repo, repo.is_new, upgraded


def _forgotten(place: str) -> NamesToForget | None:
    """What resetting the repository would remove; None where nothing is."""
    from .._maintenance.reset import names_to_forget

    return names_to_forget(place) if os.path.isdir(place) else None


def _forgotten_text(names: NamesToForget) -> str:
    counts = {"tag": len(names.tags), "reference": len(names.references), "stream": names.streams}
    counts["image"] = names.images
    found = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items() if count]
    return ", ".join(found) or "nothing"


def _print_plan(place: str, names: NamesToForget, json_output: bool) -> None:
    if json_output:
        print_json({"path": place, "dry_run": True, "forgotten": asdict(names)})
        return
    click.echo(f"Would reset {printable(place)} and forget {_forgotten_text(names)}")
    for tag in names.tags:
        click.echo(f"  tag {printable(tag)}")
    for reference in names.references:
        click.echo(f"  reference {printable(reference)}")


def _upgrade(place: str, algorithm: Algorithm, timeout: float | None) -> bool:
    """Whether there was a repository without meta.json, which has one now."""
    from ..repository import Repository

    if not os.path.exists(os.path.join(place, "meta.json")):
        with contextlib.suppress(RepositoryNotFoundError):
            return Repository.upgrade(place, algorithm=algorithm, timeout=timeout).upgraded
    return False


@click.command
@click.argument("name", metavar="IMAGE|STREAM")
@click.argument("path", required=False)
@click.pass_obj
def cat(settings: Settings, name: str, path: str | None) -> None:
    """Print the file PATH of an image, or without PATH the content of a stream (or refs/…) as it came in.

    IMAGE is a tag, a manifest digest, or anything that 'ls' takes.  Symbolic links are followed inside the image.
    Everything that is printed has been compared with its digest.
    """
    if path is None:
        with settings.open() as repo:
            print_bytes(repo.merge_splitstream(name))
    else:
        print_bytes([_file_content(settings, name, path)])


@click.command
@click.argument("source", metavar="IMAGE:PATH")
@click.argument("destination", type=click.Path())
@click.pass_obj
def cp(settings: Settings, source: str, destination: str) -> None:
    """Copy the file PATH of IMAGE, named as for 'cat', to DESTINATION, a file or a directory.

    The file is written under a temporary name and then renamed; it gets the permissions of a new file.
    """
    from tempfile import NamedTemporaryFile

    image, colon, path = source.rpartition(":/")
    if not colon or not image or not path:
        raise click.UsageError(f"{source!r} is not IMAGE:PATH with an absolute path, such as app:/etc/os-release")
    content = _file_content(settings, image, path)
    if os.path.isdir(destination):
        destination = os.path.join(destination, os.path.basename(path))
    umask = os.umask(0)
    os.umask(umask)
    with NamedTemporaryFile(dir=os.path.dirname(destination) or ".", prefix=".cp-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~umask)
            os.rename(file.name, destination)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def _file_content(settings: Settings, image: str, path: str) -> bytes:
    from ..oci.reading import content_of, find_following
    from .sources import images_layers, take

    name = os.fsencode(path)
    with settings.open() as repo:
        tree = images_layers(repo, image)
        if tree is None:
            tree = take(settings, image).tree
        return content_of(repo, find_following(tree, name), name)

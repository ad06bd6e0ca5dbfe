"""Commands on a repository as a whole: ``init``, ``cat``."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click

from ..digest import Algorithm
from ..errors import RepositoryNotFoundError
from .context import Settings, as_json, print_json
from .output import print_bytes

__all__ = ["cat", "init"]


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
    timeout: float | None,
    json_output: bool,
) -> None:
    """Create a repository at PATH, or where --repo, --user or --system say."""
    from ..repository import Repository

    if algorithm and settings.algorithm not in (None, algorithm):
        raise click.UsageError("--algorithm and --hash contradict each other")
    if path is not None and settings.chosen:
        raise click.UsageError("PATH excludes --repo, --user and --system")
    if path == "":
        raise click.UsageError("PATH is empty")
    algorithm = algorithm or settings.algorithm or Algorithm.SHA512
    place = path or settings.path()
    os.makedirs(os.path.dirname(place.rstrip("/")) or ".", exist_ok=True)
    insecure = insecure or settings.insecure
    if ensure and reset_metadata:
        raise click.UsageError("--ensure and --reset-metadata exclude each other")
    upgraded = ensure and _upgrade(place, algorithm, timeout)
    if reset_metadata and os.path.isdir(place):
        wait = {} if timeout is None else {"timeout": timeout}
        repo = Repository.reset_metadata(
            place, algorithm=algorithm, erofs_version=erofs_version, insecure=insecure, **wait
        )
        created = True
    else:
        repo = Repository.init(
            place, algorithm=algorithm, erofs_version=erofs_version, insecure=insecure, ensure=ensure, timeout=timeout
        )
        created = repo.is_new
    with repo:
        if json_output:
            facts = {"path": place, "created": created, "algorithm": repo.algorithm.text, "verity": repo.secure}
            print_json({**facts, **({"upgraded": True} if upgraded else {})})
        elif created:
            click.echo(f"Initialized composefs repository at {place}")
            click.echo(f"  algorithm: {repo.algorithm.text}")
            click.echo(f"  verity:    {'required' if repo.secure else 'not required (insecure)'}")
        elif upgraded:
            click.echo(f"Upgraded legacy repository at {place}")
        else:
            kept = " (existing configuration preserved)" if ensure else ""
            click.echo(f"Repository already initialized at {place}{kept}")


def _upgrade(place: str, algorithm: Algorithm, timeout: float | None) -> bool:
    """Whether there was a repository without meta.json, which has one now."""
    from ..repository import Repository

    if not os.path.exists(os.path.join(place, "meta.json")):
        with contextlib.suppress(RepositoryNotFoundError):
            return Repository.upgrade(place, algorithm=algorithm, timeout=timeout).upgraded
    return False


@click.command
@click.argument("name")
@click.pass_obj
def cat(settings: Settings, name: str) -> None:
    """Print the content of the stream NAME (or refs/…) as it came in."""
    with settings.open() as repo:
        print_bytes(repo.merge_splitstream(name))

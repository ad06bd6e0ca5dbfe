"""The command ``fsck``, and the options that ``oci fsck`` shares with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from .check_report import checking, exit_code_of, print_hints, print_report, result_to_json
from .context import Settings, as_json, print_json
from .progress import progress_option, showing

__all__ = ["check_options", "fsck", "refuse_contradictions"]

_RATE = re.compile(r"([0-9]+)\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE | re.ASCII)


class Rate(click.ParamType[int]):
    """Bytes a second: ``50M``; letters are powers of 1024."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _RATE.fullmatch(str(value))
        if not match or not (rate := int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")):
            self.fail(f"{value!r} is no number of bytes a second, such as 50M", param, ctx)
        return rate


def check_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all checks share to a command."""
    for option in (
        click.pass_obj,
        as_json,
        progress_option,
        click.option("--limit", type=Rate(), metavar="RATE", help="Read at most so many bytes a second: 50M."),
        click.option("--continue", "resume", is_flag=True, help="Go on where a check ended early."),
        click.option("--metadata-only", is_flag=True, help="Read no objects but streams and images."),
    ):
        function = option(function)
    return function


def refuse_contradictions(metadata_only: bool, resume: bool) -> None:
    """Fail as a usage error if the options exclude each other."""
    if metadata_only and resume:
        raise click.UsageError("--metadata-only and --continue exclude each other")


@click.command
@click.argument("sources", nargs=-1, metavar="[FROM]...")
@click.option("--repair", is_flag=True, help="Mend what can be, with content FROM elsewhere.")
@click.option("-n", "--dry-run", is_flag=True, help="Only print the plan of --repair.")
@check_options
def fsck(
    settings: Settings,
    *,
    sources: tuple[str, ...],
    repair: bool,
    dry_run: bool,
    metadata_only: bool,
    resume: bool,
    limit: int | None,
    progress: str,
    json_output: bool,
) -> int:
    """Check everything in the repository, and change nothing unless told to --repair it.

    All objects are compared with their names, streams are unpacked and compared with theirs where these are digests,
    images are parsed, names and references followed.  The exit code is 0 if nothing is damaged, 1 if something is, and
    2 if that could not be found out (something could not be read, say), also with --json; 11 if a
    permission is missing.  A check that was interrupted can be continued.

    With --repair, names, protection and images that can be made again are, and what is missing or corrupt is taken
    FROM other repositories, directories of files, and image directories (oci:DIR[:TAG]), in this order.  Everything is
    verified before it is in place; what is replaced or removed is put aside and never deleted.  The exit code tells
    whether anything is damaged afterwards.
    """
    refuse_contradictions(metadata_only, resume)
    if repair:
        from .repair import repair as mend

        if metadata_only or resume or limit:
            raise click.UsageError("--repair checks everything: no other check can be asked for")
        return mend(settings, sources, dry_run, progress, json_output)
    if sources or dry_run:
        raise click.UsageError("FROM and --dry-run go with --repair")
    with checking(resumable=not metadata_only), settings.open() as repo, showing(progress) as show:
        result = repo.fsck(metadata_only=metadata_only, resume=resume, limit=limit, progress=show)
    if json_output:
        print_json(result_to_json(result))
    else:
        print_report(result, metadata_only=metadata_only)
        print_hints(result)
    return exit_code_of(result)

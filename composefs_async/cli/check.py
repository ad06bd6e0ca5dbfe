"""The command ``fsck``, and what ``oci fsck`` shares with it.

Owns the report and the exit codes of checks, which are not those of other commands: 0 for nothing found, 1 for
findings, `COULD_NOT_CHECK` for any error that kept it from finding out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import ComposefsError
from .context import Settings, as_json, print_json, printable
from .exit_codes import COULD_NOT_CHECK, describe
from .progress import progress_option, showing

if TYPE_CHECKING:
    from ..findings import Finding
    from ..reports import FsckResult

__all__ = [
    "check_options",
    "checking",
    "fsck",
    "print_findings",
    "print_report",
    "refuse_contradictions",
    "result_to_json",
]

_RATE = re.compile(r"([0-9]+)\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE | re.ASCII)
_COUNTERS = (
    "objects_checked",
    "objects_corrupted",
    "streams_checked",
    "streams_corrupted",
    "images_checked",
    "images_corrupted",
    "broken_links",
    "missing_objects",
)


class Rate(click.ParamType[int]):
    """Bytes a second: ``50M``; letters are powers of 1024."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _RATE.fullmatch(str(value))
        if not match or not (rate := int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")):
            self.fail(f"{value!r} is no number of bytes a second, such as 50M", param, ctx)
        return rate


class CouldNotCheck(click.ClickException):
    exit_code = COULD_NOT_CHECK


@contextmanager
def checking() -> Iterator[None]:
    """Whatever is raised in the block kept a check from finding out."""
    try:
        yield
    except (ComposefsError, OSError) as error:
        raise CouldNotCheck(describe(error)) from error


def check_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--metadata-only", is_flag=True, help="Read no objects but streams and images."),
        click.option("--continue", "resume", is_flag=True, help="Go on where a check ended early."),
        click.option("--limit", type=Rate(), metavar="RATE", help="Read at most so many bytes a second: 50M."),
        progress_option,
        as_json,
        click.pass_obj,
    ):
        function = option(function)
    return function


def refuse_contradictions(metadata_only: bool, resume: bool) -> None:
    if metadata_only and resume:
        raise click.UsageError("--metadata-only and --continue exclude each other")


@click.command
@click.argument("sources", nargs=-1, metavar="[FROM]...")
@click.option("--repair", is_flag=True, help="Mend what can be, with content FROM elsewhere.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what --repair would do.")
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
    2 if that could not be found out, also with --json.  A check that was interrupted can be continued.

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
    with checking(), settings.open() as repo, showing(progress) as show:
        result = repo.fsck(metadata_only=metadata_only, resume=resume, limit=limit, progress=show)
    if json_output:
        print_json(result_to_json(result))
    else:
        print_report(result)
    return 0 if result.ok else 1


# -- the report --------------------------------------------------------------------------------


def print_report(result: FsckResult) -> None:
    """In the lines of composefs-rs; what it does not know of is told after the errors."""
    wrong = any(each.path == "meta.json" for each in result.errors)
    click.echo(f"meta.json: {'error' if wrong else 'ok' if result.has_metadata else 'absent'}")
    for what in ("objects", "streams", "images"):
        total, corrupt = getattr(result, f"{what}_checked"), getattr(result, f"{what}_corrupted")
        click.echo(f"{what}: {total - corrupt}/{total} ok")
    if result.broken_links:
        click.echo(f"broken symlinks: {result.broken_links}")
    if result.missing_objects:
        click.echo(f"missing objects: {result.missing_objects}")
    click.echo("status: ok" if result.ok else f"status: {len(result.errors)} error(s)")
    print_findings(result.errors)
    notices = [finding for finding in result.findings if finding.is_notice]
    if notices:
        click.echo(f"notices: {len(notices)}")
        print_findings(notices)


def print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        click.echo(f"  - {printable(finding.text)}")
        if finding.cause:
            click.echo(f"      {printable(finding.cause)}")


def result_to_json(result: FsckResult) -> dict[str, Any]:
    """The keys of composefs-rs in its order, and ``findings`` with all there is to say of each."""
    return {
        "ok": result.ok,
        "has_metadata": result.has_metadata,
        **{counter: getattr(result, counter) for counter in _COUNTERS},
        "errors": [finding.text for finding in result.errors],
        "findings": [finding.to_json() for finding in result.findings],
    }

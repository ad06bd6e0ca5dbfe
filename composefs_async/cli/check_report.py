"""How checks end: their report, as text and JSON, and their exit codes.

These are not those of other commands: 0 for nothing found, 1 for findings, `COULD_NOT_CHECK` for any error that kept
the check from finding out, which is also that something could not be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import ComposefsError
from ..findings import KINDS
from .account import note
from .exit_codes import COULD_NOT_CHECK, PERMISSION, describe, exit_code
from .output import printable

if TYPE_CHECKING:
    from ..findings import Finding
    from ..results import FsckResult

__all__ = ["checking", "exit_code_of", "print_findings", "print_hints", "print_report", "result_to_json"]

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


def exit_code_of(result: FsckResult) -> int:
    """`COULD_NOT_CHECK` if something could not be read, whatever else was found; otherwise 1 for damage, 0 for none."""
    return COULD_NOT_CHECK if result.unread else 0 if result.ok else 1


class CouldNotCheck(click.ClickException):
    exit_code = COULD_NOT_CHECK


class _NotAllowed(CouldNotCheck):
    exit_code = PERMISSION


@contextmanager
def checking(*, resumable: bool = False) -> Iterator[None]:
    """Whatever is raised in the block kept a check from finding out.

    Args:
        resumable: an interrupted check has left its position.
    """
    try:
        yield
    except KeyboardInterrupt:
        if resumable:
            note("'--continue' goes on where this check has ended")
        raise
    except (ComposefsError, OSError) as error:
        failure = _NotAllowed if exit_code(error) == PERMISSION else CouldNotCheck
        raise failure(describe(error)) from error


def print_report(result: FsckResult, *, metadata_only: bool = False) -> None:
    """Print a result in the lines of composefs-rs; what it does not know of is told after the errors.

    Args:
        metadata_only: no object but streams and images has been read.
    """
    wrong = any(each.path == "meta.json" for each in result.errors)
    click.echo(f"meta.json: {'error' if wrong else 'ok' if result.has_metadata else 'absent'}")
    for what in ("objects", "streams", "images"):
        total, corrupt = getattr(result, f"{what}_checked"), getattr(result, f"{what}_corrupted")
        unread = metadata_only and what == "objects"
        click.echo(f"{what}: not read" if unread else f"{what}: {total - corrupt}/{total} ok")
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
    """Print the text of each finding on a line of its own."""
    for finding in findings:
        click.echo(f"  - {printable(finding.text)}")
        if finding.cause:
            click.echo(f"      {printable(finding.cause)}")


def print_hints(result: FsckResult, findings: Iterable[Finding] = ()) -> None:
    """On standard error, what can be done: cfsctl says nothing of the kind.

    Args:
        findings: further ones, which a repair does not know.
    """
    if result.errors:
        note("'composefs-async fsck --repair [FROM]...' mends what can be, with content FROM elsewhere")
    notices = [finding for finding in result.findings if finding.is_notice]
    for kind, remedy in dict.fromkeys((finding.kind, finding.remedy) for finding in (*findings, *notices)):
        if KINDS[kind].remedy or not result.errors:
            note(f"{kind}: {remedy}")


def result_to_json(result: FsckResult) -> dict[str, Any]:
    """The keys of composefs-rs in its order, and ``findings`` with all there is to say of each."""
    return {
        "ok": result.ok,
        "has_metadata": result.has_metadata,
        **{counter: getattr(result, counter) for counter in _COUNTERS},
        "errors": [finding.text for finding in result.errors],
        "findings": [finding.to_json() for finding in result.findings],
    }

"""The command ``oci fsck``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .check_report import checking, exit_code_of, print_findings, print_hints, print_report, result_to_json
from .context import Settings, print_json
from .exit_codes import COULD_NOT_CHECK
from .fsck import check_options, refuse_contradictions
from .progress import showing

if TYPE_CHECKING:
    from ..oci.image_fsck import OciFsckResult

__all__ = ["fsck"]


class _NoSuchTag(click.ClickException):
    exit_code = 3


@click.command
@click.argument("name", required=False)
@check_options
def fsck(
    settings: Settings,
    name: str | None,
    metadata_only: bool,
    resume: bool,
    limit: int | None,
    progress: str,
    json_output: bool,
) -> int:
    """Check the repository and the images in it, or the one with the tag NAME.

    Besides what 'fsck' does, manifests and configs are compared with their digests, layers with their diff_ids, and
    what they need must have its name.  The exit codes are those of 'fsck', and 3 if there is no such tag.
    """
    from ..oci import image_fsck

    refuse_contradictions(metadata_only, resume)
    with checking(resumable=not metadata_only), settings.open() as repo, showing(progress) as show:
        if name is not None and name not in image_fsck.checked_tags(repo):
            raise _NoSuchTag(f"tag not found: {name}")
        result = image_fsck.fsck(repo, name, metadata_only=metadata_only, resume=resume, limit=limit, progress=show)
    if json_output:
        print_json(_to_json(result))
    else:
        print_report(result.repo, metadata_only=metadata_only)
        _print_images(result)
        print_hints(result.repo, result.findings)
    unread = any(each.unread for each in result.findings)
    return max(exit_code_of(result.repo), COULD_NOT_CHECK if unread else 0 if result.ok else 1)


def _print_images(result: OciFsckResult) -> None:
    click.echo(f"oci images: {result.images_checked - result.images_corrupted}/{result.images_checked} ok")
    if result.findings:
        click.echo(f"oci errors: {len(result.findings)}")
        print_findings(result.findings)


def _to_json(result: OciFsckResult) -> dict[str, Any]:
    return {
        "ok": result.ok,
        "images_checked": result.images_checked,
        "images_corrupted": result.images_corrupted,
        "errors": [finding.text for finding in result.findings],
        "repo": result_to_json(result.repo),
        "findings": [finding.to_json() for finding in result.findings],
    }

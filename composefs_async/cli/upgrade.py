"""The command ``upgrade``: a meta.json for a repository from before there was one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .context import Settings, as_json, print_json
from .output import printable

if TYPE_CHECKING:
    from ..results import UpgradeResult

__all__ = ["upgrade"]

_FORMS = {
    "before 2026-01": "in a form from before 2026-01, which cannot be read",
    "damaged": "damaged, which cannot be read",
}


@click.command
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be written.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="How long to wait for others.")
@as_json
@click.pass_obj
def upgrade(settings: Settings, dry_run: bool, timeout: float | None, json_output: bool) -> None:
    """Write the meta.json that fits a repository from before there was one.

    Nothing else is touched.  The algorithm is that of the names of all objects; fs-verity is required if it protects
    every object (refuse anything else with --require-verity); the layouts of EROFS images are those that the OCI images
    have.  'oci upgrade' makes what single images lack.
    """
    from ..repository import Repository

    path = settings.path()
    result = Repository.upgrade(
        path,
        algorithm=settings.algorithm,
        require_verity=settings.require_verity,
        dry_run=dry_run,
        timeout=timeout,
    )
    if json_output:
        print_json(_document(path, result, dry_run))
        return
    if not result.upgraded:
        first = "Repository is up to date at"
    else:
        first = "Would upgrade legacy repository at" if dry_run else "Upgraded legacy repository at"
    click.echo(f"{first} {printable(path)}")
    for name, text in _facts(result):
        click.echo(f"  {name + ':':10} {text}")
    if dry_run and result.upgraded:
        click.echo(f"meta.json:\n{result.meta_json.decode()}", nl=False)


def _document(path: str, result: UpgradeResult, dry_run: bool) -> dict[str, object]:
    return {
        "path": path,
        "upgraded": result.upgraded,
        "dry_run": dry_run,
        "algorithm": result.algorithm.text,
        "verity": result.secure,
        "erofs_versions": list(result.erofs_versions),
        "streams": result.streams,
        "hidden_images": result.hidden_images,
        "meta_json": result.meta_json.decode() or None,
    }


def _facts(result: UpgradeResult) -> list[tuple[str, str]]:
    facts = [
        ("algorithm", result.algorithm.text),
        ("verity", "required" if result.secure else "not required (insecure)"),
        ("images", "layout " + " and ".join(map(str, result.erofs_versions))),
    ]
    facts += [
        ("streams", f"{count} {_FORMS.get(form, f'in the form of {form}')}") for form, count in result.streams.items()
    ]
    if result.hidden_images:
        facts.append(("hidden", f"{result.hidden_images} EROFS images of another layout; 'oci upgrade' makes new ones"))
    return facts

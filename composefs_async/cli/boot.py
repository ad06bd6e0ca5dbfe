"""Commands on what machines boot: ``boot check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .context import Settings, as_json, print_json
from .erofs_images import boot_explanation_json
from .output import printable
from .sources import boot_source

if TYPE_CHECKING:
    from ..boot.check import Against, CheckResult

__all__ = ["check"]


@click.command
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--against", metavar="TREE", help="A directory, or oci:NAME, whose bootable image it should be.")
@as_json
@click.pass_obj
def check(settings: Settings, sources: tuple[str, ...], against: str | None, json_output: bool) -> int:
    """Check whether each of SOURCES, a unified kernel image or NAME.conf, boots an image of the repository.

    Exit code 1 if one does not: its image is missing, incomplete, unprotected or not kept, or not that of TREE.
    """
    from ..boot.check import check_boot

    tree = _against(settings, against) if against else None
    with settings.open() as repo:
        found = [check_boot(repo, source, tree) for source in sources]
    if json_output:
        print_json({"ok": all(each.ok for each in found), "checks": [_json(each) for each in found]})
    else:
        for each in found:
            _print(each)
    return 0 if all(each.ok for each in found) else 1


def _against(settings: Settings, source: str) -> Against:
    from ..boot.check import Against

    with settings.open() as repo:
        algorithm = repo.algorithm
    make, read, _, _ = boot_source(settings, source, algorithm)
    return Against(source, make, read)


def _print(found: CheckResult) -> None:
    what = f"boots {found.mounted.id.hex()}" if found.mounted else "boots no image of the repository"
    click.echo(f"{printable(found.source)}: {'ok, ' if found.ok else ''}{what}")
    for problem in found.problems:
        click.echo(f"  problem: {printable(problem)}")
    for note in found.notes:
        click.echo(f"  note: {printable(note)}")


def _json(found: CheckResult) -> dict[str, Any]:
    return {
        "source": found.source,
        "ok": found.ok,
        "kargs": [str(karg) for karg in found.kargs],
        "image": found.mounted.id.hex() if found.mounted else None,
        "problems": list(found.problems),
        "notes": list(found.notes),
        "explanation": boot_explanation_json(found.explanation) if found.explanation else None,
    }

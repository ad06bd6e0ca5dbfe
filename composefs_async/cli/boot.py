"""Commands on what machines boot: ``boot check``, ``boot labels``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from .context import Settings, as_json, print_json
from .erofs_images import boot_explanation_json
from .output import printable
from .sources import boot_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..boot.check import Against, CheckResult
    from ..boot.policy import Policy
    from ..tree.inodes import Directory

__all__ = ["check", "labels"]


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


@click.command
@click.argument("tree")
@click.option(
    "--restorecon", is_flag=True, help="Only files to which restorecon would give another label; exit code 1."
)
@as_json
@click.pass_obj
def labels(settings: Settings, tree: str, restorecon: bool, json_output: bool) -> int:
    """Print the SELinux label of every file of TREE, a directory or oci:NAME, by the policy that is in it.

    They are those of its bootable image, but /boot and /sysroot are not emptied.  A tree without a policy has none.
    """
    from ..boot.policy import Policy
    from ..tree.transform import XattrFilter

    make, read, _, _ = boot_source(settings, tree)
    root = make(XattrFilter.ALLOWLIST_ONLY)
    policy = Policy.from_tree(root, read)
    found: list[dict[str, Any]] = []
    if policy is not None:
        found = [*(_differing(root, policy) if restorecon else _labels(root, policy))]
    if json_output:
        print_json({"policy": policy is not None, "files": found})
    else:
        for each in found:
            more = f"  (restorecon: {each['restorecon']}, {each['restorecon_specification']})" if restorecon else ""
            click.echo(printable(f"{each['label'] or '<<none>>'} {each['path']}{more}"))
    return 1 if restorecon and found else 0


def _labels(root: Directory, policy: Policy) -> Iterator[dict[str, Any]]:
    from ..boot.labels import kind_of_inode
    from ..tree.walk import walk

    for path, inode in walk(root):
        yield {"path": os.fsdecode(path), "label": _text(policy.label(path, kind_of_inode(inode)))}


def _differing(root: Directory, policy: Policy) -> Iterator[dict[str, Any]]:
    from ..boot.disagreements import find_disagreements

    for each in sorted(find_disagreements(root, policy), key=lambda found: found.path):
        yield {
            "path": os.fsdecode(each.path),
            "label": _text(each.label),
            "restorecon": _text(each.restorecon_label),
            "specification": each.specification and str(each.specification),
            "restorecon_specification": each.restorecon and str(each.restorecon),
        }


def _text(label: bytes | None) -> str | None:
    return None if label is None else os.fsdecode(label)

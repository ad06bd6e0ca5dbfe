"""``fsck --repair``: what was done, which images it made whole, and where that is which was put aside."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .check_report import checking, print_findings, result_to_json
from .context import Settings, print_json
from .exit_codes import COULD_NOT_CHECK
from .output import printable
from .progress import showing

if TYPE_CHECKING:
    from ..repository import Repository
    from ..results import RepairResult

__all__ = ["repair"]


def repair(settings: Settings, sources: tuple[str, ...], dry_run: bool, progress: str, json_output: bool) -> int:
    """Repair from *sources* and print the account; 0 if nothing is wrong then, 1 if something is, 2 if unknown."""
    with checking(), settings.open() as repo, showing(progress) as show:
        result = settings.run(partial(_repair, repo, sources, dry_run=dry_run, progress=show))
        path = repo.path
    if json_output:
        print_json(_to_json(result))
    else:
        _print(result, path)
    return COULD_NOT_CHECK if any(each.unread for each in result.unrepaired) else 0 if result.ok else 1


async def _repair(repo: Repository, sources: tuple[str, ...], **options: Any) -> RepairResult:
    """Repair; sources that are URLs of stores are opened for its time."""
    from ..exchange.opening import is_store_url, open_store
    from ..oci.image_repair import repair as mend

    async with AsyncExitStack() as stack:
        opened: list[Any] = []
        for source in sources:
            if not is_store_url(source):
                opened.append(source)
                continue
            from ..exchange.repairing import store_objects

            store = await stack.enter_async_context(open_store(source))
            opened.append(await store_objects(store, repo))
        return await mend(repo, opened, **options)


def _to_json(result: RepairResult) -> dict[str, Any]:
    return {
        "ok": result.ok,
        "dry_run": result.dry_run,
        "actions": [asdict(each) for each in result.actions],
        "unrepaired": [asdict(each) for each in result.unrepaired],
        "affected_refs": list(result.affected_refs),
        "recovered_refs": list(result.recovered_refs),
        "problems": list(result.problems),
        "quarantine": result.quarantine or None,
        "before": result_to_json(result.before),
        "after": result_to_json(result.after),
    }


def _print(result: RepairResult, path: str) -> None:
    click.echo(f"found: {len(result.before.errors)} error(s)")
    print_findings(result.before.errors)
    if result.actions:
        click.echo("would do:" if result.dry_run else "done:")
    for action in result.actions:
        source = f" from {action.source}" if action.source else ""
        click.echo(f"  - {printable(f'{action.path}: {action.action}{source}')}")
    for problem in result.problems:
        click.echo(f"no help: {printable(problem)}")
    would_be = "would be whole again" if result.dry_run else "is whole again"
    for name in result.affected_refs:
        click.echo(f"{printable(_shown(name))}: {would_be if name in result.recovered_refs else 'is still damaged'}")
    if result.quarantine:
        place = f"{path}/{result.quarantine}"
        click.echo(f"put aside: {printable(place)}; 'gc --quarantine-older 30d' deletes it later")
    click.echo("status: ok" if result.ok else f"status: {len(result.unrepaired)} error(s) left")
    for remedy in dict.fromkeys(each.remedy for each in result.unrepaired):
        for each in result.unrepaired:
            if each.remedy == remedy:
                click.echo(f"  - {printable(each.reason)}")
        click.echo(f"      {remedy}")


def _shown(reference: str) -> str:
    """A reference as people know it."""
    from ..naming import TAGS, decode_tag

    tag = reference.removeprefix(f"streams/refs/{TAGS}/")
    if tag != reference and "/" not in tag:
        return f"tag {decode_tag(tag)}"
    kind, _, name = reference.partition("/refs/")
    return f"reference {kind}/{name}"

"""Commands that clean up, and those that keep it from happening: ``gc``, ``leases``, ``transaction``."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .account import note, tell
from .context import Settings, as_json, print_json
from .output import printable, say
from .progress import progress_option, showing

if TYPE_CHECKING:
    from ..results import GcResult, Lease

__all__ = ["gc", "leases", "transaction"]


_TIMEOUT = 600.0
"""Seconds that a collection waits for others where nobody sees it: in cron, each night one more would wait."""
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)", re.ASCII)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Age(click.ParamType[float]):
    """A number of seconds, or of other units with their letter: ``90m``, ``12h``, ``30d``."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return *value* in seconds, else fail as a usage error."""
        found = _AGE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not an age such as 30d, 12h, 90m or 60s", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


@click.command
@click.option(
    "-r",
    "--root",
    "roots",
    multiple=True,
    metavar="NAME",
    help="Keep this stream or image (a name in streams/ or images/), too; may be repeated.",
)
@click.option("--ignore-mounts", is_flag=True, help="Do not keep images because they are mounted.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for others.  [default: 600 without a terminal, for ever on one]",
)
@click.option(
    "--quarantine-older",
    type=Age(),
    metavar="AGE",
    help="Also delete what 'fsck --repair' put aside longer ago, such as 30d, 12h or 90m.",
)
@click.option("--no-wait", is_flag=True, help="Fail at once if somebody else uses the repository.")
@progress_option
@as_json
@click.pass_obj
def gc(
    settings: Settings,
    roots: tuple[str, ...],
    dry_run: bool,
    timeout: float | None,
    no_wait: bool,
    progress: str,
    json_output: bool,
    *,
    ignore_mounts: bool,
    quarantine_older: float | None,
) -> None:
    """Remove objects that nothing with a name needs, and names that lead nowhere.

    Images that are mounted stay, as far as this mount namespace shows them: what containers and services with
    namespaces of their own have mounted is out of sight, and needs a reference.

    Blobs that 'oci pull --keep-blobs' kept go when no image needs them.

    What an interrupted pull has stored stays for a day, so that the next can go on: see 'leases'.
    """
    if no_wait and timeout is not None:
        raise click.UsageError("--timeout and --no-wait exclude each other")
    from ..oci.kept_blobs import prune

    wait = 0 if no_wait else timeout
    if wait is None and not (sys.stdin is not None and sys.stdin.isatty()):
        wait = _TIMEOUT
    with settings.open() as repo, showing(progress, counts=True) as show:
        blobs = prune(repo, roots, dry_run=dry_run, timeout=wait)
        result = repo.gc(
            roots,
            dry_run=dry_run,
            ignore_mounts=ignore_mounts,
            timeout=wait,
            quarantine_older=quarantine_older,
            progress=show,
        )
    if json_output:
        print_json({"dry_run": dry_run, **_as_json(result), "blobs_released": blobs})
        return
    if dry_run:
        tell("Dry run (no files deleted):")
    removed = "would be removed" if dry_run else "removed"
    tell(f"Objects: {result.objects_removed} {removed} ({result.objects_bytes} bytes)")
    if result.images_pruned or result.streams_pruned:
        tell(f"Pruned symlinks: {result.images_pruned} images, {result.streams_pruned} streams")
    if blobs and dry_run:
        note(f"would remove {blobs} blobs that 'oci pull --keep-blobs' kept, too; they are not counted above")
    elif blobs:
        note(f"removed {blobs} blobs that 'oci pull --keep-blobs' kept and no image needs")
    _print_notes(result, dry_run)


def _as_json(result: GcResult) -> dict[str, Any]:
    return {**asdict(result), "notes": [note.to_json() for note in result.notes]}


def _print_notes(result: GcResult, dry_run: bool) -> None:
    """On standard error, what cfsctl does not know of."""
    for path in result.leftovers:
        note(f"{'would remove' if dry_run else 'removed'} {path}, left by an interrupted operation")
    for path in result.quarantines:
        note(f"{'would remove' if dry_run else 'removed'} {path}, which a repair put aside")
    for name in result.unknown_roots:
        note(f"--root {name}: no stream or image has this name, so nothing was kept for it")
    for image in result.mounted:
        note(f"image {image} is mounted, and stays although no reference leads to it")
    if result.objects_leased:
        note(f"objects of interrupted imports that stay: {result.objects_leased}; see 'composefs-async leases'")
    if result.objects_missing:
        note(f"objects that something with a name needs and that are missing: {result.objects_missing}; see fsck")
    for each in result.notes:
        note(each.text.removeprefix("fsck: "))


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def leases(ctx: click.Context, json_output: bool) -> None:
    """List what keeps the content of interrupted imports."""
    if ctx.invoked_subcommand is not None:
        return
    settings: Settings = ctx.obj
    with settings.open() as repo:
        found = repo.leases()
    if json_output:
        print_json({"leases": [_lease_json(lease) for lease in found]})
        return
    for lease in found:
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lease.expires))
        name = lease.manifest_digest or "(named)"
        click.echo(printable(f"{name}  until {until}  {len(lease.layers)} layers  {lease.reference}"))


def _lease_json(lease: Lease) -> dict[str, Any]:
    layers = {diff_id: stream_id.hex() for diff_id, stream_id in lease.layers.items()}
    return {
        "manifest_digest": lease.manifest_digest,
        "reference": lease.reference,
        "started": lease.started / 1e9,
        "expires": lease.expires,
        "layers": layers,
    }


@leases.command
@click.argument("leases", nargs=-1, required=True, metavar="DIGEST_OR_NAME...")
@click.pass_obj
def drop(settings: Settings, leases: tuple[str, ...]) -> None:
    """End the leases of these manifests, or of these names, so that gc removes what they keep."""
    from ..errors import NotFoundError

    with settings.open() as repo:
        missing = [lease for lease in leases if not repo.drop_lease(lease)]
    if missing:
        raise NotFoundError(f"lease of {missing[0]}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.pass_obj
def transaction(settings: Settings, command: tuple[str, ...]) -> int:
    """Keep gc of all processes away until interrupted, or while COMMAND runs; its exit code counts."""
    import signal
    import subprocess

    with settings.open():
        if not command:
            say("gc waits until this is interrupted")
            while True:
                signal.pause()
        code = subprocess.run(command, check=False).returncode
    return code if code >= 0 else 128 - code

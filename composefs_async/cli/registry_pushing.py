"""The command ``oci push``: an image of the repository into a registry."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .account import tell
from .context import Settings, as_json, print_json
from .output import printable, table
from .progress import progress_option, showing, size_text
from .registry_options import RegistryCommand, access_of, access_options, run_within, transfer_of, transfer_options
from .registry_reading import RemoteReference

if TYPE_CHECKING:
    from ..oci.push import PushResult

__all__ = ["push", "push_image", "write_digest"]


@click.command(cls=RegistryCommand)
@click.argument("name")
@click.argument("destination", type=RemoteReference())
@click.option("--from", "origin", metavar="IMAGE", help="A registry that has the layers as they were shipped.")
@click.option(
    "--repack",
    type=click.Choice(["gzip", "zstd", "none"]),
    help="Pack layers anew that cannot be had as they were shipped; digests change.",
)
@click.option("--level", type=click.IntRange(0, 22), help="Of that compression.")
@click.option("--force", is_flag=True, help="With --repack, replace another image of that name.")
@click.option("--additional-tag", "tags", multiple=True, metavar="TAG", help="Another tag; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only tell where each layer would come from.")
@click.option("--digestfile", type=click.Path(), help="Write the digest of the manifest to this file.")
@access_options()
@transfer_options
@progress_option
@as_json
@click.pass_obj
def push(
    settings: Settings,
    /,
    *,
    name: str,
    destination: str,
    origin: str | None,
    repack: Any,
    level: int | None,
    force: bool,
    tags: tuple[str, ...],
    dry_run: bool,
    digestfile: str | None,
    progress: str,
    json_output: bool,
    **options: Any,
) -> None:
    """Push the image NAME of the repository to docker://HOST/NAME[:TAG], bit for bit."""
    push_image(
        settings,
        name,
        destination,
        options,
        progress=progress,
        digestfile=digestfile,
        json_output=json_output,
        origin=origin,
        repack=repack,
        level=level,
        force=force,
        tags=tags,
        dry_run=dry_run,
    )


def push_image(
    settings: Settings,
    name: str,
    destination: str,
    options: dict[str, Any],
    *,
    progress: str,
    digestfile: str | None,
    json_output: bool,
    dry_run: bool,
    **how: Any,
) -> None:
    """Push and print what came of it; *how* is for `composefs_async.oci.push.push`."""
    from ..oci.push import push as send

    with settings.open() as repo, showing(progress) as show:
        work = partial(
            send,
            repo,
            name,
            destination,
            access=access_of(options, settings=settings),
            transfer=transfer_of(options),
            dry_run=dry_run,
            progress=show,
            **how,
        )
        result = run_within(settings, options["timeout"], work)
    write_digest(digestfile, result.manifest_digest)
    if json_output:
        print_json(
            {
                "reference": result.reference,
                "manifest": result.manifest_digest,
                "original": result.original_digest,
                "dry_run": dry_run,
                "layers": [{"digest": each.digest, "size": each.size, "how": each.how} for each in result.layers],
            }
        )
        return
    _print_push(result, dry_run)


def _print_push(result: PushResult, dry_run: bool) -> None:
    if dry_run:
        rows = [(each.digest[:19], size_text(each.size), each.how) for each in result.layers]
        click.echo(table([("LAYER", "SIZE", "HOW"), *rows]))
        click.echo("Dry run (nothing was sent)")
        return
    tell(f"manifest {result.manifest_digest}")
    if result.original_digest != result.manifest_digest:
        tell(f"instead of {result.original_digest}")
    tell(f"pushed   {printable(result.reference)}")


def write_digest(path: str | None, digest: str) -> None:
    """Write a digest to the file that ``--digestfile`` names, if it names one."""
    if path is not None:
        with open(path, "w", encoding="ascii") as file:
            file.write(digest)

"""Commands that bring images into registries, and from one to another: ``oci push``, ``oci copy``."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .account import tell
from .context import Settings, as_json, print_json
from .oci_pull import PlatformType
from .output import printable
from .progress import progress_option, showing, size_text
from .registry_options import RegistryCommand, access_of, access_options, run_within, transfer_of, transfer_options
from .registry_reading import RemoteReference
from .tables import table

if TYPE_CHECKING:
    from ..oci.exporting.export import CopyResult
    from ..oci.push import PushResult
    from ..progress import ProgressCallback
    from ..registry.copying import Copied, Destination, Source

__all__ = ["copy", "push"]


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
    _push(
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


def _push(
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
    from ..oci.push import push as push_image

    with settings.open() as repo, showing(progress) as show:
        work = partial(
            push_image,
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
    _write_digest(digestfile, result.manifest_digest)
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


def _write_digest(path: str | None, digest: str) -> None:
    if path is not None:
        with open(path, "w", encoding="ascii") as file:
            file.write(digest)


class Endpoint(click.ParamType[str]):
    """A reference to a registry, which is checked, or any other text."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        return RemoteReference().convert(text, param, ctx) if text.startswith("docker:") else text


@click.command(cls=RegistryCommand)
@click.argument("sources", type=Endpoint(), nargs=-1, metavar="SOURCE...")
@click.argument("destination", type=Endpoint())
@click.option(
    "--from",
    "origin",
    type=click.Path(exists=True, file_okay=False),
    metavar="REPOSITORY",
    help="Copy one SOURCE, a tag or @sha256:…, from this repository into ours; there is no DESTINATION.",
)
@click.option("--name", help="With --from: what the image is called here, if not SOURCE.")
@click.option("--zerocopy", is_flag=True, help="With --from: refuse to copy content that cannot be shared (reflink).")
@click.option(
    "--layers",
    default="auto",
    show_default=True,
    metavar="FORM",
    help="Of what comes from a repository: original, plain, gzip[:LEVEL] or zstd[:LEVEL].",
)
@click.option("--platform", type=PlatformType(), help="Take this one's manifest alone out of an index.")
@click.option("--all", "-a", "everything", is_flag=True, help="Copy all that an index names, which is done anyway.")
@click.option("--referrers", is_flag=True, help="Copy signatures and whatever else refers to the image, too.")
@click.option("--preserve-digests", is_flag=True, help="Never change a digest, which is done anyway.")
@click.option("--dry-run", is_flag=True, help="Only tell what there is to copy.")
@click.option("--digestfile", type=click.Path(), help="Write the digest of what was copied to this file.")
@access_options("src", "the source")
@access_options("dest", "the destination")
@access_options()
@transfer_options
@progress_option
@as_json
@click.pass_obj
def copy(
    settings: Settings,
    /,
    *,
    sources: tuple[str, ...],
    destination: str,
    origin: str | None,
    name: str | None,
    zerocopy: bool,
    layers: str,
    platform: Any,
    everything: bool,
    referrers: bool,
    preserve_digests: bool,
    dry_run: bool,
    digestfile: str | None,
    progress: str,
    json_output: bool,
    **options: Any,
) -> None:
    """Copy the image SOURCE to DESTINATION.

    Between docker://HOST/NAME[:TAG][@DIGEST] and oci:DIR[:TAG], all that it names is copied and digests do not change.
    Options without --src- or --dest- are for both.

    Otherwise SOURCE is a tag of the repository, @DIGEST, or any image that 'oci pull' takes, and DESTINATION is one of

    \b
      oci:DIR[:TAG]                     is added to the directory
      oci-archive:FILE[:TAG]            FILE may be -, standard output
      docker-archive:FILE[:NAME:TAG]    for docker load; several images may go there
      dir:PATH
      docker-daemon:NAME:TAG
      docker://HOST/NAME[:TAG]          as 'oci push' does it, for an image of the repository

    Layers leave as they were shipped, if they were kept so, and else packed with zstd; the manifest is another one
    then.  Archives are the same to the byte whenever they are made.

    With --from, SOURCE is an image of another repository, which comes into this one with its EROFS images.
    """
    if origin is not None:
        from .repository_copying import copy_from

        if sources:
            raise click.UsageError("--from excludes DESTINATION")
        copy_from(settings, origin, destination, name, zerocopy=zerocopy, progress=progress, json_output=json_output)
        return
    if name is not None or zerocopy:
        raise click.UsageError("--name and --zerocopy need --from")
    if not sources:
        raise click.UsageError("Missing argument 'DESTINATION'")
    if destination.startswith("docker:") and not _between_registries(sources, destination):
        if platform is not None or referrers or layers not in ("auto", "original"):
            raise click.UsageError("an image of the repository goes to a registry as it is; see 'oci push'")
        target = _merged(options, "dest")
        tag = _image_of_ours(sources)
        _push(
            settings,
            tag,
            destination,
            target,
            progress=progress,
            digestfile=digestfile,
            json_output=json_output,
            dry_run=dry_run,
        )
        return
    if not _between_registries(sources, destination):
        from .oci_copy import export

        if not dry_run and not referrers:
            copied = export(settings, sources, destination, layers=layers, platform=platform, progress=progress)
            _write_digest(digestfile, copied[0].manifest_digest)
            _print_export(copied, json_output, destination)
            return
        raise click.UsageError("--dry-run and --referrers are for registries and image directories")
    if len(sources) > 1 or layers != "auto":
        raise click.UsageError("registries and image directories are copied one by one, as they are")
    (source,) = sources
    if everything and platform is not None:
        raise click.UsageError("--all and --platform exclude each other")
    with showing(progress) as show:
        result = run_within(
            settings,
            options["timeout"],
            partial(
                _copy,
                settings,
                source,
                destination,
                options,
                platform=platform,
                referrers=referrers,
                show=show,
                dry_run=dry_run,
            ),
        )
    _write_digest(digestfile, result.digest)
    if json_output:
        print_json(
            {
                "digest": result.digest,
                "documents": result.documents,
                "blobs": result.blobs,
                "size": result.size,
                "dry_run": dry_run,
            }
        )
        return
    counts = {how: list(result.blobs.values()).count(how) for how in dict.fromkeys(result.blobs.values())}
    click.echo(f"digest    {result.digest}")
    click.echo(f"documents {len(result.documents)}")
    click.echo(f"blobs     {', '.join(f'{number} {how}' for how, number in counts.items()) or 'none'}")
    click.echo(f"{'to send ' if dry_run else 'sent    '}  {size_text(result.size)}")


async def _copy(
    settings: Settings,
    source: str,
    destination: str,
    options: dict[str, Any],
    *,
    platform: Any,
    referrers: bool,
    dry_run: bool,
    show: ProgressCallback,
) -> Copied:
    from ..registry.copying import copy_image

    async with AsyncExitStack() as stack:
        origin = await _source(settings, source, options, stack, show)
        target = await _destination(settings, destination, source, options, stack, show)
        return await copy_image(origin, None if dry_run else target, platform=platform, referrers=referrers)


def _image_of_ours(sources: tuple[str, ...]) -> str:
    """The one image of the repository that is to be pushed."""
    from ..oci.sources.opening import is_reference
    from .image_references import sniffed

    if len(sources) > 1 or is_reference(sniffed(sources[0])):
        raise click.UsageError("one image of the repository, of a registry or of oci:DIR goes to a registry at a time")
    return sources[0]


def _between_registries(sources: tuple[str, ...], destination: str) -> bool:
    return all(each.startswith(("docker:", "oci:")) for each in (*sources, destination))


def _print_export(results: list[CopyResult], json_output: bool, destination: str) -> None:
    if json_output:
        print_json([asdict(result) for result in results])
        return
    to_terminal = destination.partition(":")[2].partition(":")[0] != "-"
    for result in results:
        changed = "" if result.manifest_digest == result.original_digest else f"  (was {result.original_digest})"
        tell(f"{result.manifest_digest}{changed}", err=not to_terminal)


def _merged(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The options of one side, and those of both where it has none."""
    marker = f"{prefix}_"
    own = {name.removeprefix(marker): value for name, value in options.items() if name.startswith(marker)}
    given = {name: value for name, value in own.items() if value or (name == "tls_verify" and value is False)}
    return {**options, **given}


async def _source(
    settings: Settings, source: str, options: dict[str, Any], stack: AsyncExitStack, show: ProgressCallback
) -> Source:
    from ..oci.sources.layout import locate
    from ..registry.ends import LayoutSource, RegistrySource
    from ..registry.reference import parse_reference
    from ..registry.session import Session

    if source.startswith("oci:"):
        place = locate(source)
        return LayoutSource(place.directory, place.tag, place.digest)
    access = access_of(_merged(options, "src"), settings=settings)
    session = await Session.open(access, transfer_of(options), show)
    stack.push_async_callback(session.aclose)
    return RegistrySource(session, parse_reference(source))


async def _destination(
    settings: Settings,
    destination: str,
    source: str,
    options: dict[str, Any],
    stack: AsyncExitStack,
    show: ProgressCallback,
) -> Destination:
    from ..oci.sources.layout import locate
    from ..registry.ends import LayoutDestination, RegistryDestination
    from ..registry.reference import parse_reference
    from ..registry.session import Session

    if destination.startswith("oci:"):
        place = locate(destination)
        return LayoutDestination(place.directory, place.tag)
    access = access_of(_merged(options, "dest"), settings=settings)
    session = await Session.open(access, transfer_of(options), show)
    stack.push_async_callback(session.aclose)
    origin = parse_reference(source) if source.startswith("docker:") else None
    return RegistryDestination(session, parse_reference(destination), origin)

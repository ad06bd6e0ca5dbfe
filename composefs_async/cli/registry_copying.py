"""The command ``oci copy``: between registries and image directories, and out of the repository."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import ImageNotFoundError
from .account import tell
from .context import Settings, as_json, print_json
from .oci_pull import PlatformType
from .output import printable
from .progress import progress_option, showing, size_text
from .registry_options import RegistryCommand, access_of, access_options, run_within, transfer_of, transfer_options
from .registry_pushing import push_image, write_digest
from .registry_reading import RemoteReference, with_client

if TYPE_CHECKING:
    from ..oci.exporting.export import CopyResult
    from ..progress import ProgressCallback
    from ..registry.client import RegistryClient
    from ..registry.copying import Copied, Destination, Source

__all__ = ["copy"]


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
@click.option("--all-tags", is_flag=True, help="Copy every tag of SOURCE, docker://HOST/NAME, under the same name.")
@click.option(
    "--tag-pattern", metavar="GLOB", help="With --all-tags, or instead: copy the tags that fit, such as 'v1.*'."
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
    all_tags: bool,
    tag_pattern: str | None,
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
    Options without --src- or --dest- are for both.  With --all-tags or --tag-pattern neither has a tag.

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
    pattern = tag_pattern or ("*" if all_tags else None)
    wanted = _Wanted(layers, platform, everything, referrers, dry_run, digestfile, progress, json_output, pattern)
    if pattern is not None:
        _copy_tags(settings, sources, destination, options, wanted)
    elif _between_registries(sources, destination):
        _copy_between(settings, sources, destination, options, wanted)
    elif destination.startswith("docker:"):
        _copy_to_registry(settings, sources, destination, options, wanted)
    else:
        _copy_out(settings, sources, destination, wanted)


class _Wanted(NamedTuple):
    """The options that all ways to copy look at, each to follow or to refuse."""

    layers: str
    platform: Any
    everything: bool
    referrers: bool
    dry_run: bool
    digestfile: str | None
    progress: str
    json_output: bool
    pattern: str | None = None
    """Of the tags to copy, if it is not one image."""


def _copy_to_registry(
    settings: Settings, sources: tuple[str, ...], destination: str, options: dict[str, Any], wanted: _Wanted
) -> None:
    """Push an image of the repository."""
    if wanted.platform is not None or wanted.referrers or wanted.layers not in ("auto", "original"):
        raise click.UsageError("an image of the repository goes to a registry as it is; see 'oci push'")
    push_image(
        settings,
        _image_of_ours(sources),
        destination,
        _merged(options, "dest"),
        progress=wanted.progress,
        digestfile=wanted.digestfile,
        json_output=wanted.json_output,
        dry_run=wanted.dry_run,
    )


def _copy_out(settings: Settings, sources: tuple[str, ...], destination: str, wanted: _Wanted) -> None:
    """Write images as an archive or a directory, or into a daemon."""
    from .oci_copy import export

    if wanted.dry_run or wanted.referrers:
        raise click.UsageError("--dry-run and --referrers are for registries and image directories")
    copied = export(
        settings, sources, destination, layers=wanted.layers, platform=wanted.platform, progress=wanted.progress
    )
    write_digest(wanted.digestfile, copied[0].manifest_digest)
    _print_export(copied, wanted.json_output, destination)


def _copy_tags(
    settings: Settings, sources: tuple[str, ...], destination: str, options: dict[str, Any], wanted: _Wanted
) -> None:
    """Copy the tags of a repository in a registry that fit, one after the other and under their names."""
    from ..registry.reference import parse_reference

    if len(sources) > 1 or not sources[0].startswith("docker:") or not destination.startswith(("docker:", "oci:")):
        raise click.UsageError("tags are copied from docker://HOST/NAME to docker://HOST/NAME or oci:DIR")
    if wanted.digestfile is not None or wanted.layers != "auto" or (wanted.everything and wanted.platform is not None):
        raise click.UsageError("--all-tags and --tag-pattern exclude --digestfile, --layers, and --all with --platform")
    source = parse_reference(sources[0], default_tag=None)
    if source.tag or source.digest or _has_tag(destination):
        raise click.UsageError("with --all-tags and --tag-pattern, SOURCE and DESTINATION have no tag")
    found = with_client(settings, _merged(options, "src"), lambda client: _fitting(client, str(source), wanted.pattern))
    if not found:
        raise ImageNotFoundError(str(source), reason=f"it has no tag that fits {wanted.pattern!r}")
    copied: dict[str, dict[str, Any]] = {}
    for tag in found:
        with showing(wanted.progress) as show:
            names = f"{source}:{tag}", f"{destination}:{tag}"
            work = partial(_copy, settings, *names, options, wanted=wanted, show=show)
            copied[tag] = _to_json(run_within(settings, options["timeout"], work), wanted)
        if not wanted.json_output:
            (click.echo if wanted.dry_run else tell)(printable(f"{copied[tag]['digest']}  {tag}"))
    if wanted.json_output:
        print_json({"tags": copied})


def _has_tag(destination: str) -> bool:
    from ..oci.sources.layout import locate
    from ..registry.reference import parse_reference

    if destination.startswith("oci:"):
        place = locate(destination)
        return place.tag is not None or place.digest is not None
    target = parse_reference(destination, default_tag=None)
    return target.tag is not None or target.digest is not None


async def _fitting(client: RegistryClient, source: str, pattern: str | None) -> list[str]:
    """The tags of a repository that fit *pattern*, sorted."""
    return sorted([tag async for tag in client.tags(source) if fnmatchcase(tag, pattern or "*")])


def _to_json(result: Copied, wanted: _Wanted) -> dict[str, Any]:
    return {
        "digest": result.digest,
        "documents": result.documents,
        "blobs": result.blobs,
        "size": result.size,
        "dry_run": wanted.dry_run,
    }


def _copy_between(
    settings: Settings, sources: tuple[str, ...], destination: str, options: dict[str, Any], wanted: _Wanted
) -> None:
    """Copy all that a name stands for between registries and image directories, digests unchanged."""
    if len(sources) > 1 or wanted.layers != "auto":
        raise click.UsageError("registries and image directories are copied one by one, as they are")
    if wanted.everything and wanted.platform is not None:
        raise click.UsageError("--all and --platform exclude each other")
    with showing(wanted.progress) as show:
        work = partial(_copy, settings, sources[0], destination, options, wanted=wanted, show=show)
        result = run_within(settings, options["timeout"], work)
    write_digest(wanted.digestfile, result.digest)
    if wanted.json_output:
        print_json(_to_json(result, wanted))
        return
    counts = {how: list(result.blobs.values()).count(how) for how in dict.fromkeys(result.blobs.values())}
    say = click.echo if wanted.dry_run else tell
    say(f"digest    {result.digest}")
    say(f"documents {len(result.documents)}")
    say(f"blobs     {', '.join(f'{number} {how}' for how, number in counts.items()) or 'none'}")
    say(f"{'to send ' if wanted.dry_run else 'sent    '}  {size_text(result.size)}")


async def _copy(
    settings: Settings,
    source: str,
    destination: str,
    options: dict[str, Any],
    *,
    wanted: _Wanted,
    show: ProgressCallback,
) -> Copied:
    from ..registry.copying import copy_image

    async with AsyncExitStack() as stack:
        origin = await _source(settings, source, options, stack, show)
        target = await _destination(settings, destination, source, options, stack, show)
        found = None if wanted.dry_run else target
        return await copy_image(origin, found, platform=wanted.platform, referrers=wanted.referrers)


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

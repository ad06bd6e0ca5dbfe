"""The command ``oci pull``."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .account import tell
from .context import ObjectIdType, Settings, as_json, print_json
from .image_references import STANDARD_INPUT, ImageReference
from .output import printable
from .progress import progress_option, showing, size_text
from .registry_options import (
    RegistryCommand,
    access_of,
    access_options,
    run_within,
    transfer_of,
    transfer_options,
)

if TYPE_CHECKING:
    from ..digest import ObjectId
    from ..oci.importing.pull_result import PullResult
    from ..oci.limits import Limits
    from ..repository import Repository
    from ..results import ImportStats

__all__ = ["limit_options", "limits_of", "pull", "stats_text"]


class PlatformType(click.ParamType[Any]):
    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        from ..oci.platforms import parse_platform

        try:
            return parse_platform(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def limit_options(function: Any) -> Any:
    """The options that raise the bounds on what is imported."""
    for option in (
        click.option(
            "--max-ratio",
            type=click.FloatRange(min=1),
            metavar="TIMES",
            help="Refuse layers that unpack to more than 1000, or so many, times their size.",
        ),
        click.option(
            "--max-layer-size",
            type=click.IntRange(min=1),
            metavar="BYTES",
            help="Refuse unpacked layers of more than 1 TiB, or so many bytes.",
        ),
        click.option(
            "--max-file-size",
            type=click.IntRange(min=1),
            metavar="BYTES",
            help="Refuse files in layers of more than 1 TiB, or so many bytes.",
        ),
        click.option(
            "--max-members",
            type=click.IntRange(min=1),
            metavar="COUNT",
            help="Refuse images whose layers have more than 4194304, or so many, members together.",
        ),
        click.option(
            "--max-window",
            type=click.IntRange(min=1 << 10),
            metavar="BYTES",
            help="Memory for the window of a zstd frame (default 536870912, at most 2147483648).",
        ),
    ):
        function = option(function)
    return function


def limits_of(
    max_ratio: float | None,
    max_layer_size: int | None,
    max_file_size: int | None,
    max_window: int | None,
    max_members: int | None,
) -> Limits:
    """The default limits but for those that were given."""
    from ..oci.limits import Limits

    given = {"max_ratio": max_ratio, "max_layer_size": max_layer_size, "max_file_size": max_file_size}
    given |= {"max_window": max_window, "max_members": max_members}
    return Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def stats_text(stats: ImportStats) -> str:
    """As cfsctl prints it, and what only we know."""
    replaced = f" + {stats.objects_replaced} corrupt ones replaced" if stats.objects_replaced else ""
    shared = f", {size_text(stats.bytes_reflinked)} of it shared" if stats.objects_reflinked else ""
    return (
        f"{stats.objects_stored} new + {stats.objects_present} already present objects{replaced}; "
        f"{size_text(stats.bytes_stored)} stored{shared}, {size_text(stats.bytes_inline)} inlined"
    )


@click.command(cls=RegistryCommand)
@click.argument("image", type=ImageReference())
@click.argument("name", required=False)
@click.option("--platform", type=PlatformType(), help="OS/ARCH[/VARIANT] to take, if it is not this machine's.")
@click.option(
    "--image/--no-image",
    "make_images",
    default=True,
    show_default=True,
    help="Build the EROFS image that can be mounted; without it the layers are kept as they are.",
)
@click.option("--verify", is_flag=True, help="Read and verify layers that are there already, and build images anew.")
@click.option("--bootable", is_flag=True, help="Make the image that a machine boots, too.")
@click.option(
    "--expected-digest",
    type=ObjectIdType(),
    help="With --bootable: try everything that programs do differently until the image has this digest.",
)
@limit_options
@click.option(
    "--spool-dir", type=click.Path(), help="Where layers from registries arrive; inside the repository if not."
)
@click.option("--no-spool", is_flag=True, help="Let them arrive in memory, so that the next pull cannot go on.")
@click.option("--chunk-size", type=click.IntRange(64 << 10, 1 << 30), help="Bytes of a layer to ask for at once.")
@click.option("--keep-blobs", is_flag=True, help="Keep layers also as they were shipped, to be pushed bit for bit.")
@click.option(
    "--link",
    type=click.Choice(["auto", "require", "none"]),
    default="auto",
    show_default=True,
    help="Share content with the files of containers-storage or Docker by reflinks.",
)
@click.option("--no-partial", is_flag=True, help="Fetch zstd:chunked layers whole, whatever of them is here already.")
@click.option("--bootc-auth", is_flag=True, help="Look for credentials where bootc keeps them, too.")
@access_options()
@transfer_options
@progress_option
@as_json
@click.pass_obj
def pull(
    settings: Settings,
    /,
    *,
    image: str,
    name: str | None,
    platform: Any,
    make_images: bool,
    verify: bool,
    bootable: bool,
    expected_digest: ObjectId | None,
    progress: str,
    json_output: bool,
    max_ratio: float | None,
    max_layer_size: int | None,
    max_file_size: int | None,
    max_window: int | None,
    max_members: int | None,
    **registry: Any,
) -> None:
    """Import IMAGE and tag it as NAME, or as IMAGE.

    \b
    IMAGE is one of
      oci:DIR[:TAG|:@INDEX|@DIGEST]            an OCI image directory
      oci-archive:FILE[:TAG|:@INDEX|@DIGEST]   one in a tar
      docker-archive:FILE[:NAME|:@INDEX]       what docker save or podman save writes
      dir:PATH                                 a directory of skopeo's
      docker-daemon:NAME:TAG                   of a running Docker or podman (DOCKER_HOST)
      containers-storage:NAME                  of podman, buildah or skopeo; [DRIVER@ROOT]NAME elsewhere
      docker-overlay2:NAME                     of Docker, from its files; [ROOT]NAME elsewhere
      docker://HOST/NAME[:TAG][@DIGEST]        of a registry
      tarball:FILE[:FILE...]                   plain tars, each a layer, lowest first
      PATH[:NAME], or - for standard input     any of the first four, by what is in it

    Archives may be packed with gzip or zstd, and FILE may be a pipe: nothing is written to a temporary file.
    """
    from .. import oci

    if expected_digest is not None and not bootable:
        raise click.UsageError("--expected-digest needs --bootable")
    limits = limits_of(max_ratio, max_layer_size, max_file_size, max_window, max_members)
    if image.partition(":")[2].partition(":")[0] == STANDARD_INPUT:
        if name is None:
            raise click.UsageError("an image from standard input needs a NAME")
        if sys.stdin is not None and sys.stdin.isatty():
            raise click.UsageError("there is no archive on standard input, but a terminal")
    with settings.open() as repo, showing(progress) as show:
        options = {"tag": name, "platform": platform, "make_images": make_images, "verify": verify}
        work = partial(oci.pull, repo, image, **options, progress=show, limits=limits)
        access = access_of(registry, settings=settings)
        work = partial(work, access=access, transfer=transfer_of(registry))
        before = _tagged(repo, name or image)
        result = run_within(settings, registry["timeout"], work)
        seals = _check_seals(repo, result, before) if make_images else []
        boot, choices, manifest_id = None, "", result.manifest_id
        if bootable:
            boot, choices, manifest_id = _boot_image(repo, result, expected_digest)
    outcome = _Outcome(result, manifest_id, seals, boot, choices)
    if json_output:
        print_json(_to_json(outcome))
    else:
        _tell(outcome)


class _Outcome(NamedTuple):
    """What a pull has given, and what was done with it."""

    result: PullResult
    manifest_id: ObjectId
    """Id of the manifest's stream at the end: that of another one, if a bootable image was added."""
    seals: list[str]
    boot: ObjectId | None
    choices: str
    """How the bootable image that was expected was found."""


def _to_json(outcome: _Outcome) -> dict[str, Any]:
    """All of it, with more keys only where there is something to say."""
    result = outcome.result
    found: dict[str, Any] = {
        "manifest": result.manifest_digest,
        "config": result.config_digest,
        "verity": outcome.manifest_id.hex(),
        "tagged": result.tag,
        "image": result.image_id.hex() if result.image_id else None,
        "layers": [{"diff_id": layer.diff_id, "verity": layer.stream_id.hex()} for layer in result.layers],
        "stats": {key: getattr(result.stats, key) for key in result.stats.__dataclass_fields__},
    }
    if result.manifest_made:
        found["manifest_made"] = True
    if outcome.boot:
        found["boot_image"] = outcome.boot.hex()
    if outcome.seals:
        found["seals"] = outcome.seals
    if result.source:
        found |= {"source": result.source, "fetched": result.bytes_fetched, "resumed": result.bytes_resumed}
        found["partial"] = result.layers_partial
    return found


def _tell(outcome: _Outcome) -> None:
    result = outcome.result
    made = "  (made here: the source has none)" if result.manifest_made else ""
    tell(f"manifest {result.manifest_digest}{made}")
    tell(f"config   {result.config_digest}")
    tell(f"verity   {outcome.manifest_id.hex()}")
    tell(f"tagged   {printable(result.tag)}")
    tell(f"objects  {stats_text(result.stats)}")
    if result.source:
        resumed = f", {size_text(result.bytes_resumed)} resumed" if result.bytes_resumed else ""
        tell(f"source   {printable(result.source)}; {size_text(result.bytes_fetched)} fetched{resumed}")
    if result.layers_partial:
        count = f"{result.layers_partial} of {len(result.layers)} layers"
        tell(f"partial  {count}, verified by diff_id; the digest as shipped was not checked")
    for seal in outcome.seals:
        tell(f"seal     {printable(seal)} holds")
    if outcome.boot is not None:
        tell(f"Boot image: {outcome.boot.hex()}{outcome.choices}")


def _tagged(repo: Repository, tag: str) -> str | None:
    """The manifest that *tag* stands for."""
    from ..errors import ComposefsError
    from ..oci.catalogue import open_image

    try:
        return open_image(repo, tag).manifest.digest
    except (ComposefsError, OSError):
        return None


def _check_seals(repo: Repository, result: PullResult, before: str | None) -> list[str]:
    """The annotations that hold; for one that does not, the tag leads where it led before, and that is an error."""
    from ..boot.sealing import require_seals
    from ..errors import ComposefsError
    from ..oci import catalogue

    try:
        return [check.name for check in require_seals(repo, f"@{result.manifest_digest}")]
    except ComposefsError:
        if before is None:
            catalogue.untag(repo, result.tag)
        else:
            catalogue.tag(repo, before, result.tag)
        raise


def _boot_image(
    repo: Repository, result: PullResult, expected: ObjectId | None
) -> tuple[ObjectId | None, str, ObjectId]:
    """The bootable image, made if it is not there, how it was found if it was *expected*, and the manifest's stream."""
    from ..boot.images import ensure_boot_image, find_boot_image
    from ..oci.catalogue import open_image

    name, choices = f"@{result.manifest_digest}", ""
    if expected is None:
        image = ensure_boot_image(repo, name)
        expected = image.boot_image(repo.metadata.formats.default)
    else:
        choices = f" ({find_boot_image(repo, name, expected).variant})"
        image = open_image(repo, name)
    return expected, choices, image.manifest_id or result.manifest_id

"""Commands on images: ``oci images``, ``oci inspect``, ``oci layers``, ``oci tag``, ``oci untag``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .account import tell
from .context import Settings, as_json, print_json
from .output import print_bytes, printable, say, table
from .progress import size_text

if TYPE_CHECKING:
    from ..oci.catalogue import ImageSummary, OciImage

__all__ = ["images", "index_contents", "inspect", "layers", "tag", "untag"]


@click.command
@click.option("--no-trunc", is_flag=True, help="Print whole digests.")
@click.option("-l", "--long", is_flag=True, help="Print when images were made, and the size of their packed layers.")
@as_json
@click.pass_obj
def images(settings: Settings, json_output: bool, no_trunc: bool, *, long: bool) -> None:
    """List the images, by tag; one that cannot be read is in the list, and why on standard error."""
    from ..oci import catalogue

    with settings.open() as repo:
        found = catalogue.images(repo)
    if json_output:
        print_json({"images": [_to_json(image, long) for image in found]})
    elif not found:
        click.echo("No images found")
    else:
        _table(found, no_trunc, long)


def _to_json(image: ImageSummary, long: bool) -> dict[str, Any]:
    """One image with the keys of cfsctl, and more only where there is something to say, or it was asked for."""
    item = asdict(image)
    left_out = {key for key in ("error", "without_manifest") if not item[key]} | (set() if long else {"size"})
    return {key: item[key] for key in item if key not in left_out}


def _table(found: list[ImageSummary], whole: bool, long: bool) -> None:
    titles = ("NAME", "DIGEST", "ARCH", "LAYERS", "REFS", *(("CREATED", "SIZE") if long else ()))
    click.echo(table([titles, *(_row(image, whole, long) for image in found)]))
    for image in found:
        note = image.error or (image.without_manifest and "it has no manifest; 'oci upgrade' makes one")
        if note:
            say(f"composefs-async: {printable(f'{image.name}: {note}')}")


def _row(image: ImageSummary, whole: bool, long: bool) -> tuple[str, ...]:
    digest = image.manifest_digest.partition(":")[2]
    digest = digest if whole else digest[:12]
    architecture = "broken" if image.error else image.architecture or "artifact"
    layers = "" if image.error else str(image.layer_count)
    more = ((image.created or "")[:10], "" if image.error else size_text(image.size)) if long else ()
    return image.name, digest, architecture, layers, str(image.referrer_count), *more


@click.command
@click.argument("name")
@click.option("--manifest", "what", flag_value="manifest", help="Print the manifest as it is.")
@click.option("--config", "what", flag_value="config", help="Print the config as it is.")
@click.option("--json", "what", flag_value="all", help="Print both, and more, as JSON.")
@click.option("--summary", "what", flag_value="summary", help="Print what people want to know.")
@click.pass_obj
def inspect(settings: Settings, name: str, what: str | None) -> None:
    """Print what the image NAME is: a summary on a terminal, otherwise JSON."""
    from ..oci import catalogue

    with settings.open() as repo:
        image = catalogue.open_image(repo, name)
        version = repo.metadata.formats.default
        referrers = catalogue.referrers(repo, image.manifest.digest)
    if what == "manifest":
        print_bytes([image.manifest.raw, b"\n"])
    elif what == "config":
        print_bytes([image.config_raw, b"\n"])
    elif what == "summary" or (what is None and sys.stdout.isatty()):
        _summarize(image, referrers)
    else:
        erofs, boot = image.image(version), image.boot_image(version)
        print_json(
            {
                "manifest": image.manifest.raw.decode(errors="replace"),
                "config": image.config_raw.decode(errors="replace"),
                "referrers": [{"digest": digest} for digest in referrers],
                "composefs_erofs": erofs.hex() if erofs else None,
                "composefs_boot_erofs": boot.hex() if boot else None,
            }
        )


def _summarize(image: OciImage, referrers: Sequence[str]) -> None:
    config, manifest = image.config, image.manifest
    rows = [("manifest", manifest.digest), ("config", manifest.config.digest), ("type", manifest.media_type)]
    if config is not None:
        rows += [("platform", str(config.platform or "")), ("created", config.created or "")]
        rows += [("label", f"{key}={value}") for key, value in sorted(config.labels.items())]
    elif manifest.artifact_type:
        rows.append(("artifact", manifest.artifact_type))
    rows.append(("layers", f"{len(image.layer_names)}, {size_text(sum(each.size for each in manifest.layers))} packed"))
    packed = zip(image.layer_names, manifest.layers, strict=False)
    rows += [("", f"{layer}  {size_text(descriptor.size)}") for layer, descriptor in packed]
    rows += [("erofs", f"{found.hex()}  {key}") for key, found in sorted(image.images.items())]
    rows += [("referrer", digest) for digest in referrers]
    for key, value in rows:
        if value:
            click.echo(printable(f"{key:9} {value}"))


@click.command
@click.argument("name")
@as_json
@click.pass_obj
def layers(settings: Settings, name: str, json_output: bool) -> None:
    """List the layers of the image NAME, lowest first: what each adds alone (exclusive) and has in common (shared)."""
    from ..oci.layer_sizes import layer_usage

    with settings.open() as repo:
        found = layer_usage(repo, name)
    if json_output:
        print_json({"layers": [asdict(each) for each in found]})
        return
    rows = [
        (str(number), each.name, size_text(each.packed_size), size_text(each.exclusive.size),
         size_text(each.shared.size), " ".join(each.created_by.split())[:60])
        for number, each in enumerate(found, 1)
    ]  # fmt: skip
    click.echo(table([("#", "LAYER", "PACKED", "EXCLUSIVE", "SHARED", "CREATED BY"), *rows]))


@click.command
@click.argument("name")
@click.pass_obj
def index_contents(settings: Settings, name: str) -> None:
    """Let pulls of zstd:chunked layers find the files of the image NAME, however its own layers were packed.

    Such a pull fetches only the files that the repository lacks.  Layers that are zstd:chunked are found without this.
    Reads all files of the image.
    """
    from ..oci.contents import index_contents

    with settings.open() as repo:
        count = index_contents(repo, name)
    tell(f"{count} files of {printable(name)} can be found by their content")


@click.command
@click.argument("image")
@click.argument("name")
@click.pass_obj
def tag(settings: Settings, image: str, name: str) -> None:
    """Give IMAGE, a tag, a manifest digest or its first six or more digits, the tag NAME, too."""
    from ..oci import catalogue

    with settings.open() as repo:
        manifest_digest = catalogue.resolve(repo, image)
        catalogue.tag(repo, manifest_digest, name)
    tell(f"Tagged {manifest_digest} as {printable(name)}")


@click.command
@click.argument("name")
@click.pass_obj
def untag(settings: Settings, name: str) -> None:
    """Remove the tag NAME; the image stays until garbage is collected."""
    from ..oci import catalogue

    with settings.open() as repo:
        catalogue.untag(repo, name)
    tell(f"Removed tag {printable(name)}")

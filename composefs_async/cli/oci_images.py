"""Commands on images: ``oci images``, ``oci inspect``, ``oci tag``, ``oci untag``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .account import tell
from .context import Settings, as_json, print_json
from .output import print_bytes, printable, say
from .tables import table

if TYPE_CHECKING:
    from ..oci.catalogue import ImageSummary

__all__ = ["images", "inspect", "tag", "untag"]


@click.command
@click.option("--no-trunc", is_flag=True, help="Print whole digests.")
@as_json
@click.pass_obj
def images(settings: Settings, json_output: bool, no_trunc: bool) -> None:
    """List the images, by tag; one that cannot be read is in the list, and why on standard error."""
    from ..oci import catalogue

    with settings.open() as repo:
        found = catalogue.images(repo)
    if json_output:
        listed = [asdict(image) for image in found]
        # The keys of cfsctl, and more only where there is something to say.
        more = ("error", "without_manifest")
        print_json({"images": [{key: item[key] for key in item if key not in more or item[key]} for item in listed]})
    elif not found:
        click.echo("No images found")
    else:
        _table(found, no_trunc)


def _table(found: list[ImageSummary], whole: bool) -> None:
    click.echo(table([("NAME", "DIGEST", "ARCH", "LAYERS", "REFS"), *(_row(image, whole) for image in found)]))
    for image in found:
        note = image.error or (image.without_manifest and "it has no manifest; 'oci upgrade' makes one")
        if note:
            say(f"composefs-async: {printable(f'{image.name}: {note}')}")


def _row(image: ImageSummary, whole: bool) -> tuple[str, ...]:
    digest = image.manifest_digest.partition(":")[2]
    digest = digest if whole else digest[:12]
    architecture = "broken" if image.error else image.architecture or "artifact"
    layers = "" if image.error else str(image.layer_count)
    return image.name, digest, architecture, layers, str(image.referrer_count)


@click.command
@click.argument("name")
@click.option("--manifest", "what", flag_value="manifest", help="Print the manifest as it is.")
@click.option("--config", "what", flag_value="config", help="Print the config as it is.")
@click.option("--json", "what", flag_value="all", help="Print JSON; so does no option.")
@click.pass_obj
def inspect(settings: Settings, name: str, what: str | None) -> None:
    """Print manifest and config of the image with the tag NAME, or with the manifest digest @sha256:…"""
    from ..oci import catalogue

    with settings.open() as repo:
        image = catalogue.open_image(repo, name)
        version = repo.metadata.formats.default
        referrers = catalogue.referrers(repo, image.manifest.digest)
    if what == "manifest":
        print_bytes([image.manifest.raw, b"\n"])
    elif what == "config":
        print_bytes([image.config_raw, b"\n"])
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

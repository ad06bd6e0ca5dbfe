"""Commands on images: ``oci images``, ``oci inspect``, ``oci tag``, ``oci untag``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .context import ContentDigest, Settings, as_json, print_json

if TYPE_CHECKING:
    from ..oci.catalogue import ImageSummary

__all__ = ["images", "inspect", "tag", "untag"]


@click.command
@as_json
@click.pass_obj
def images(settings: Settings, json_output: bool) -> None:
    """List the images, by tag."""
    from ..oci import catalogue

    with settings.open() as repo:
        found = catalogue.images(repo)
    if json_output:
        listed = [asdict(image) for image in found]
        print_json({"images": [{key: item[key] for key in item if key != "error" or item[key]} for item in listed]})
    elif not found:
        click.echo("No images found")
    else:
        _table(found)


def _table(found: list[ImageSummary]) -> None:
    rows = [("NAME", "DIGEST", "ARCH", "LAYERS", "REFS")]
    for image in found:
        digest = image.manifest_digest.partition(":")[2][:12]
        architecture = image.architecture or "artifact"
        if image.error:
            architecture = "broken"
        rows.append((image.name, digest, architecture, str(image.layer_count), str(image.referrer_count)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for image in found:
        if image.error:
            click.echo(f"{image.name}: {image.error}", err=True)


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
        click.echo(image.manifest.raw)
    elif what == "config":
        click.echo(image.config_raw)
    else:
        erofs, boot = image.image(version), image.boot_image(version)
        print_json(
            {
                "manifest": image.manifest.raw.decode(errors="surrogateescape"),
                "config": image.config_raw.decode(errors="surrogateescape"),
                "referrers": [{"digest": digest} for digest in referrers],
                "composefs_erofs": erofs.hex() if erofs else None,
                "composefs_boot_erofs": boot.hex() if boot else None,
            }
        )


@click.command
@click.argument("manifest_digest", type=ContentDigest())
@click.argument("name")
@click.pass_obj
def tag(settings: Settings, manifest_digest: str, name: str) -> None:
    """Name the image whose manifest has the digest MANIFEST_DIGEST."""
    from ..oci import catalogue

    with settings.open() as repo:
        catalogue.tag(repo, manifest_digest, name)
    click.echo(f"Tagged {manifest_digest} as {name}")


@click.command
@click.argument("name")
@click.pass_obj
def untag(settings: Settings, name: str) -> None:
    """Remove the tag NAME; the image stays until garbage is collected."""
    from ..oci import catalogue

    with settings.open() as repo:
        catalogue.untag(repo, name)
    click.echo(f"Removed tag {name}")

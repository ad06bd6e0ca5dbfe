"""Commands that let a machine boot an image: ``oci seal``, ``oci prepare-boot``, ``oci unprepare-boot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .context import ObjectIdType, Settings, as_json, print_json
from .oci_pull import PlatformType
from .output import printable
from .progress import size_text

if TYPE_CHECKING:
    from ..boot.prepare import PreparedBoot
    from ..digest import ObjectId

__all__ = ["prepare_boot", "seal", "unprepare_boot"]

_bootdir = click.option(
    "--bootdir",
    type=click.Path(exists=True, file_okay=False),
    default="/boot",
    show_default=True,
    help="Where the boot partition is mounted.",
)
_dry_run = click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be done.")


@click.command
@click.argument("name")
@click.argument("verity", required=False, type=ObjectIdType())
@_bootdir
@click.option("--entry-id", help="The entry's name, if not that of the image or the kernel's release.")
@click.option("--cmdline", multiple=True, metavar="ARGUMENT", help="A further kernel argument; several may be given.")
@click.option(
    "--layout",
    type=click.Choice(["bls", "bootc"]),
    default="bls",
    show_default=True,
    help="Names of files, and state, as cfsctl has them, or as bootc.",
)
@click.option("--all-entries", is_flag=True, help="Every boot entry of the image, not only the first.")
@click.option(
    "--sysroot",
    type=click.Path(exists=True, file_okay=False),
    help="The directory for state/deploy, if not that which the repository is in.",
)
@click.option("--container-reference", help="With --layout bootc: what the image is called, if not NAME.")
@click.option("--force", is_flag=True, help="Take a kernel image whose demand for fs-verity is not the repository's.")
@_dry_run
@as_json
@click.pass_obj
def prepare_boot(
    settings: Settings, /, name: str, verity: ObjectId | None, bootdir: str, json_output: bool, **options: Any
) -> None:
    """Let a machine boot the image NAME, a tag or @sha256:… of a manifest; again, it changes nothing.

    The bootable image is made and kept from gc; kernel and entry go to the boot partition, state beside the
    repository.  With VERITY the manifest's stream must have this id.
    """
    from ..boot import prepare
    from ..errors import DigestMismatchError
    from ..oci import catalogue

    with settings.open() as repo:
        if verity is not None:
            found = catalogue.open_image(repo, name).manifest_id
            if found != verity:
                raise DigestMismatchError(f"manifest of {name}", verity.hex(), found.hex() if found else "nothing")
        done = prepare.prepare_boot(repo, name, bootdir, **options)
    if json_output:
        print_json(_prepared(done))
        return
    for warning in done.warnings:
        click.echo(f"composefs-async: {printable(warning)}", err=True)
    verb = "Would write" if done.dry_run else "Wrote"
    for path, size in done.files:
        known = "" if path in done.written else " (there already)"
        click.echo(f"{verb if not known else 'Kept'} {printable(path)}, {size_text(size)}{known}")
    click.echo(f"Boot image: {done.image.hex()}")
    click.echo(f"Argument:   {done.karg}")
    click.echo(f"Kept by:    images/{done.reference}")
    click.echo(f"State:      {printable(done.state)}")


def _prepared(done: PreparedBoot) -> dict[str, Any]:
    return {
        "image": done.image.hex(),
        "karg": done.karg,
        "reference": f"images/{done.reference}",
        "files": [{"path": path, "size": size, "written": path in done.written} for path, size in done.files],
        "state": done.state,
        "boot_digest": done.boot_digest,
        "warnings": list(done.warnings),
        "dry_run": done.dry_run,
    }


@click.command
@click.argument("name")
@_bootdir
@_dry_run
@as_json
@click.pass_obj
def unprepare_boot(settings: Settings, name: str, bootdir: str, dry_run: bool, json_output: bool) -> None:
    """Take back what prepare-boot did for NAME, a tag, @sha256:… or the id of a bootable image, but for its state."""
    from ..boot import prepare

    with settings.open() as repo:
        done = prepare.unprepare_boot(repo, name, bootdir, dry_run=dry_run)
    if json_output:
        print_json(
            {
                "image": done.image.hex(),
                "removed": list(done.removed),
                "reference": done.reference,
                "dry_run": done.dry_run,
            }
        )
        return
    verb = "Would remove" if done.dry_run else "Removed"
    for path in done.removed:
        click.echo(f"{verb} {printable(path)}")
    if done.reference:
        click.echo(f"{verb} images/boot/{done.image.hex()}")


@click.command
@click.argument("directory")
@click.argument("tag", required=False)
@click.option("--inline", "form", flag_value="inline", default="inline", help="Into the manifest; its digest changes.")
@click.option("--artifact", "form", flag_value="artifact", help="Into an artifact that refers to the image.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="Sign with this private key, PEM.")
@click.option("--cert", type=click.Path(exists=True, dir_okay=False), help="The certificate of the key, PEM.")
@click.option("--platform", type=PlatformType(), help="OS/ARCH[/VARIANT] to take, if it is not this machine's.")
@as_json
@click.pass_obj
def seal(
    settings: Settings,
    directory: str,
    tag: str | None,
    *,
    form: Any,
    key: str | None,
    cert: str | None,
    platform: Any,
    json_output: bool,
) -> None:
    """Write the digests of the EROFS images of TAG into the image directory DIRECTORY; 'oci pull' checks them.

    They are by sha512, or by what --hash says before the command.
    """
    from ..boot.sealing import Sealed, Signer, seal_layout
    from ..digest import Algorithm

    if (key is None) != (cert is None):
        raise click.UsageError("--key and --cert are given both or not at all")
    try:
        signer = Signer(key, cert) if key is not None and cert is not None else None
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    algorithm = settings.algorithm or Algorithm.SHA512

    async def work() -> Sealed:
        place = directory.removeprefix("oci:")
        return await seal_layout(place, tag, algorithm, form=form, signer=signer, platform=platform)

    found = settings.run(work)
    if json_output:
        print_json(
            {"manifest": found.manifest_digest, "artifact": found.artifact_digest, "annotations": found.annotations}
        )
        return
    click.echo(f"manifest {found.manifest_digest}")
    if found.artifact_digest is not None:
        click.echo(f"artifact {found.artifact_digest}")
    for name, value in found.annotations.items():
        if not name.endswith(".sig"):
            click.echo(f"{name} {value}")

"""``oci copy`` out of the repository, or from any source through a repository that vanishes afterwards."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .context import Settings
from .image_references import sniffed
from .progress import showing

if TYPE_CHECKING:
    from ..oci.exporting.export import CopyResult
    from ..progress import ProgressCallback

__all__ = ["export"]


def export(
    settings: Settings, sources: tuple[str, ...], destination: str, *, layers: str, platform: Any, progress: str
) -> list[CopyResult]:
    """Write images to where *destination* says."""
    from ..errors import InvalidNameError
    from ..oci.exporting.export import DESTINATIONS, check_destination, export_images
    from ..oci.sources.opening import is_reference

    if destination == "-":
        destination = "oci-archive:-"
    try:
        check_destination(destination)
    except InvalidNameError as error:
        raise click.UsageError(f"{error.reason} ({', '.join(DESTINATIONS)})") from None
    if destination.partition(":")[2].startswith("-") and sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; redirect it")
    references = [sniffed(source) for source in sources]
    with showing(progress) as show:
        if not any(map(is_reference, references)):
            with settings.open() as repo:
                return settings.run(partial(export_images, repo, references, destination, layers=layers))
        if not all(map(is_reference, references)):
            raise click.UsageError("images of the repository and others go to two copies")
        return settings.run(partial(_through, references, destination, layers, platform, show))


async def _through(
    references: list[str], destination: str, layers: str, platform: Any, show: ProgressCallback
) -> list[CopyResult]:
    from .. import oci
    from .._aio.hops import hop
    from ..oci.exporting.export import export_images
    from ..registry.access import Transfer
    from ..repository import Repository

    place = await hop(partial(tempfile.TemporaryDirectory, prefix="composefs-async-"))
    try:
        repo = await Repository.init_async(f"{place.name}/repo", insecure=True)
        async with repo:
            digests = []
            for number, reference in enumerate(references):
                transfer = Transfer(keep_blobs=layers in ("auto", "original"))
                tag, options = f"source{number}", {"platform": platform, "make_images": False, "transfer": transfer}
                digests.append((await oci.pull(repo, reference, tag=tag, **options, progress=show)).manifest_digest)
            return await export_images(repo, [f"@{digest}" for digest in digests], destination, layers=layers)
    finally:
        await hop(place.cleanup)

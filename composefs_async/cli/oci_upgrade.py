"""The command ``oci upgrade``: what single images lack."""

from __future__ import annotations

from collections import Counter

import click

from .account import tell
from .context import Settings, as_json, print_json
from .output import printable, say

__all__ = ["upgrade"]

_SOME_FAILED = 1


@click.command
@as_json
@click.pass_obj
def upgrade(settings: Settings, json_output: bool) -> int:
    """Make what images lack: EROFS images of this repository's layout, and manifests.

    Images of January 2026 have no manifest.  They get one that lists their layers as uncompressed tars, once these have
    been verified, and a tag in place of their reference.  The manifest by which they were once pulled comes back only
    by pulling them again.
    """
    from ..oci.image_upgrade import UpgradeOutcome, upgrade_images

    with settings.open() as repo:
        found = upgrade_images(repo)
    counts = Counter(image.outcome for image in found)
    if json_output:
        listed = [
            {
                "name": image.name,
                "manifest_digest": image.manifest_digest,
                "outcome": image.outcome.value,
                "error": image.error,
            }
            for image in found
        ]
        print_json({"images": listed, **{outcome.value: counts[outcome] for outcome in UpgradeOutcome}})
    else:
        for image in found:
            tell(f"{image.outcome.value:9} {printable(image.name)}")
            if image.error:
                say(f"composefs-async: {printable(f'{image.name}: {image.error}')}")
    return _SOME_FAILED if counts[UpgradeOutcome.FAILED] else 0

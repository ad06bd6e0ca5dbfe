"""All images of a repository in the current form: each with a manifest, a tag and the EROFS images it should have.

Owns going over the images; what is done to one is `images.ensure_images`'s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from ..errors import ComposefsError, ReadOnlyRepositoryError
from ..naming import image_ref
from ..repository import Repository, state_of
from . import legacy
from .catalogue import images, open_image
from .erofs_images import ensure_images

__all__ = ["UpgradeOutcome", "UpgradedImage", "upgrade_images", "upgrade_images_async"]


class UpgradeOutcome(enum.Enum):
    """What has become of an image."""

    CURRENT = "current"
    """It lacked nothing."""
    UPGRADED = "upgraded"
    """It lacked EROFS images or, from January 2026, its manifest; they are there now."""
    SKIPPED = "skipped"
    """It is an artifact, which has no file tree."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class UpgradedImage:
    """One image, and what has become of it."""

    name: str
    manifest_digest: str
    outcome: UpgradeOutcome
    error: str | None = None
    """Why it failed."""


@operation
def upgrade_images(repo: Repository) -> list[UpgradedImage]:
    """Make what images lack, from their layers; sorted by name.  Durable; one that fails does not stop the others.

    Blocks for about 5 µs an entry of each image that lacks some, and for reading the layers of those of January 2026.

    Raises:
        ReadOnlyRepositoryError
    """
    return [_upgrade(repo, image.name) for image in images(repo)]


@async_operation
async def upgrade_images_async(repo: Repository) -> list[UpgradedImage]:
    """Upgrade the images of the repository in a worker thread; async twin of `upgrade_images`."""
    return await hop(upgrade_images, repo)


def _upgrade(repo: Repository, name: str) -> UpgradedImage:
    digest = ""
    try:
        image = open_image(repo, name)
        digest = image.manifest.digest
        if image.config is None:
            return UpgradedImage(name, digest, UpgradeOutcome.SKIPPED)
        wanted = {image_ref(version) for version in repo.metadata.formats}
        lacking = image.manifest_id is None or not wanted <= image.images.keys()
        if lacking:
            ensure_images(repo, name)
        # An upgrade that was interrupted may have left the reference that the tag stands in for.
        left = legacy.remove_superseded(state_of(repo), name, image.manifest.config.digest)
    except ReadOnlyRepositoryError:
        raise
    except (ComposefsError, OSError) as error:
        return UpgradedImage(name, digest, UpgradeOutcome.FAILED, str(error))
    return UpgradedImage(name, digest, UpgradeOutcome.UPGRADED if lacking or left else UpgradeOutcome.CURRENT)

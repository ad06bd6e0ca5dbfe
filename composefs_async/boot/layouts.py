"""Trees of images in image directories, without a repository that stays.

Owns that detour: an image is imported into a repository that is gone afterwards.  It is made in the directory for
temporary files (TMPDIR), where the image needs as much space as its layers unpacked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from anyio import CancelScope

from .._aio.hops import hop
from ..digest import Algorithm
from ..oci.catalogue import OciImage, open_image_async
from ..oci.importing.pull import pull
from ..oci.platforms import Platform
from ..repository import Repository

__all__ = ["imported_image"]

_TAG = "image"


@asynccontextmanager
async def imported_image(
    reference: str, algorithm: Algorithm = Algorithm.SHA512, *, platform: Platform | None = None
) -> AsyncIterator[tuple[Repository, OciImage]]:
    """A temporary repository with the image *reference* (``oci:DIR[:TAG]``); the block's end removes it.

    Raises:
        The errors of `oci.pull`.
    """
    place = await hop(partial(tempfile.mkdtemp, prefix="composefs-async-"))
    try:
        repo = await Repository.init_async(f"{place}/repo", algorithm=algorithm, insecure=True)
        async with repo:
            await pull(repo, reference, tag=_TAG, platform=platform, make_images=False)
            yield repo, await open_image_async(repo, _TAG)
    finally:
        with CancelScope(shield=True):
            await hop(shutil.rmtree, place, ignore_errors=True)

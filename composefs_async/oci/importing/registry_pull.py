"""A pull from a registry: what it has in addition to others.

Owns what the repository lends to the registry's source, a place for what arrives and documents that are at hand, and
what it remembers afterwards.  Imported only when a reference is one to a registry.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..._aio.hops import hop
from ..._maintenance import spools
from ..._repo.state import RepoState
from ...progress import Message, ProgressCallback
from ...registry.access import Access, Transfer
from ...repository import Repository, state_of
from ..contents import RepositoryContents
from ..limits import Limits
from ..origins import at_hand, remember
from ..platforms import Platform
from ..sources.base import ResolvedImage
from ..sources.registry import open_registry
from .layers import ImportRun
from .pull import pull_resolved
from .pull_result import PullResult

__all__ = ["pull_from_registry", "spool_directory"]

_SPACE = 4
"""Times the packed size: as it arrives, and unpacked."""


def spool_directory(state: RepoState) -> Path:
    """Where layers arrive: on the file system of the repository, outside of what other programs look at."""
    return Path(state.path) / spools.DIRECTORY


def _lack_of_space(state: RepoState, packed: int) -> str:
    """What to tell if the disk may not suffice for what arrives and what is made of it; nobody knows before."""
    status = os.fstatvfs(state.fd)
    free = status.f_bavail * status.f_frsize
    if free >= _SPACE * packed:
        return ""
    return f"{state.path}: {free >> 20} MiB are free; the layers have {packed >> 20} MiB as shipped"


async def pull_from_registry(
    repo: Repository,
    reference: str,
    *,
    tag: str,
    platform: Platform | None,
    make_images: bool,
    verify: bool,
    progress: ProgressCallback | None,
    limits: Limits | None,
    access: Access | None,
    transfer: Transfer | None,
) -> PullResult:
    """`pull` for a reference to a registry."""
    state = state_of(repo)

    async def known(digest: str, wanted: Platform | None) -> ResolvedImage | None:
        return await hop(at_hand, repo, state, digest, wanted)

    async with (
        ImportRun.begin(repo, progress, limits, verify=verify) as run,
        open_registry(
            reference,
            access=access,
            transfer=transfer,
            progress=progress,
            limits=run.limits,
            spool_directory=spool_directory(state),
            known=known,
            contents=RepositoryContents(state),
        ) as source,
    ):
        image = await source.resolve(platform=platform)
        if image.reference.startswith("@"):
            image = replace(image, reference=reference)
        elif text := await hop(_lack_of_space, state, sum(layer.descriptor.size for layer in image.layers)):
            run.report(Message(text))
        result = await pull_resolved(
            run, source, image, tag, make_images, keep_blobs=transfer is not None and transfer.keep_blobs
        )
        await hop(remember, state, reference, source.top_digest, result.manifest_digest, platform)
        return replace(
            result,
            source=source.host,
            bytes_fetched=source.fetched,
            bytes_resumed=source.resumed,
            layers_partial=sum(not layer.packed_verified for layer in result.layers),
        )

"""Publish an image or a layer of a repository in a store.

Owns the order: what is there is found, what is missing is packed and sent, and then `commit` gives it a name.  A crash
leaves blobs without a name, which garbage collection removes; a name always means a complete artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._aio.hops import hop, using
from .._aio.operations import async_operation
from ..errors import (
    StreamNotFoundError,
)
from ..naming import BOOT_IMAGE_REF, BOOT_IMAGE_V1_REF, IMAGE_REF, IMAGE_V1_REF
from ..oci.catalogue import open_image
from ..progress import ProgressCallback
from ..repository import Repository, state_of
from .closure import Closure, image_closure, layer_closure, root_of
from .documents import MANIFEST_TYPE, ref_key
from .packing import LEVEL, PACK_SIZE
from .publication import Publication, PublishResult
from .store import Store

__all__ = ["PublishResult", "describe_image", "publish", "publish_layer"]

_ANNOTATION = "composefs.merged.{}erofs.{}.{}"
_IMAGES = {
    IMAGE_V1_REF: ("", "v1"),
    IMAGE_REF: ("", "v2"),
    BOOT_IMAGE_V1_REF: ("bootable.", "v1"),
    BOOT_IMAGE_REF: ("bootable.", "v2"),
}


@async_operation
async def publish(
    repo: Repository,
    image: str,
    store: Store,
    *,
    name: str | None = None,
    bases: Sequence[str] = (),
    level: int = LEVEL,
    pack_size: int = PACK_SIZE,
    repack: bool = False,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> PublishResult:
    """Publish *image* (a tag or ``@DIGEST``, or an EROFS image by id or reference) as *name*.

    Only what the store has not got is sent.  A publication that was interrupted goes on where it was.

    Args:
        name: in the store; *image* if not given.
        bases: names in the store whose content is likely to be shared, beside *name* itself.
        level: of zstd.
        pack_size: bytes of a pack, from which on another one is begun.
        repack: send everything again, in fresh packs.
        force: replace *name* even if another writer changes it meanwhile.
        progress: hears of packs and of the name, on the event loop.

    Raises:
        ImageNotFoundError, ObjectNotFoundError, IntegrityError, FormatError: the image is not there, or not complete.
        AlgorithmMismatchError: the store is of another algorithm.
        RefConflictError: another writer has changed *name* meanwhile.
        StoreError
    """
    name = image if name is None else name
    ref_key(name)
    state = state_of(repo)
    async with using(state):
        closure, subject, annotations = await hop(_closure_of, repo, image)
        run = Publication(state, store, closure, name, level=level, pack_size=pack_size, progress=progress)
        return await run.run(bases, subject, annotations, repack=repack, force=force)


@async_operation
async def publish_layer(
    repo: Repository,
    diff_id: str,
    store: Store,
    *,
    name: str,
    level: int = LEVEL,
    progress: ProgressCallback | None = None,
) -> PublishResult:
    """Publish one layer as *name*, unless that name exists.

    Raises:
        StreamNotFoundError, ObjectNotFoundError, IntegrityError, AlgorithmMismatchError, StoreError
        RefConflictError: another writer has made the name meanwhile.
    """
    ref_key(name)
    state = state_of(repo)
    async with using(state):
        closure = await hop(layer_closure, repo, diff_id)
        run = Publication(state, store, closure, name, level=level, progress=progress)
        return await run.run((), None, {})


def _closure_of(repo: Repository, image: str) -> tuple[Closure, Mapping[str, Any] | None, dict[str, str]]:
    closure = image_closure(repo, image)
    return closure, *describe_image(repo, image)


def describe_image(repo: Repository, image: str) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
    """The descriptor of the OCI manifest, and annotations with the ids of EROFS images.  Blocks."""
    try:
        found = open_image(repo, image)
    except StreamNotFoundError:
        return None, {_annotation("", "v1", repo): root_of(repo, image)[0]}
    manifest = found.manifest
    subject = {"mediaType": manifest.media_type or MANIFEST_TYPE, "digest": manifest.digest, "size": len(manifest.raw)}
    annotations = {
        _annotation(*_IMAGES[reference], repo): found_id.hex()
        for reference, found_id in found.images.items()
        if reference in _IMAGES
    }
    return subject, annotations


def _annotation(boot: str, version: str, repo: Repository) -> str:
    return _ANNOTATION.format(boot, version, repo.algorithm.text)

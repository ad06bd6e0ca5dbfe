"""Images from one repository into another.

Owns which objects and streams an image needs, and bringing them over.  Does not own reading layers (`stored_layers`),
nor publishing (`erofs_images`).

Where both name objects by one algorithm, objects are copied, sharing their content where the file system can, and every
one is verified on the way.  Otherwise layers are imported anew.  Nothing has a name before all of it is there; an
interrupted copy leaves objects without names, and goes on from them the next time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from .._aio.hops import hop
from .._aio.operations import async_operation
from .._maintenance.repair.quarantine import digest_descriptors
from .._repo import objects, streams
from .._repo.state import RepoState
from .._sys import files
from ..digest import ObjectId
from ..errors import DigestMismatchError, OciError
from ..progress import ImageTagged, ImportDone, ImportStarted, ProgressCallback
from ..repository import Repository, state_of
from ..results import ImportStats
from .catalogue import OciImage, open_image, untag_async
from .erofs_images import Documents, publish_image
from .importing.add import add_image
from .importing.layers import import_layer
from .stored_layers import layer_content_async

__all__ = ["CopiedImage", "copy_image"]

_BATCH: Final = 64
"""Objects that are open at once."""


@dataclass(frozen=True, slots=True)
class CopiedImage:
    """An image that is in place."""

    manifest_digest: str
    manifest_id: ObjectId
    """Id of the manifest's stream."""
    config_digest: str
    config_id: ObjectId
    tag: str | None
    copied: int
    """Objects that were copied."""
    shared: int
    """Objects that share their content with those they come from, and take no space."""
    present: int
    """Objects that were there."""
    size: int
    """Bytes of what was copied or shared."""


@async_operation
async def copy_image(
    target: Repository,
    source: Repository,
    name: str,
    *,
    tag: str | None = None,
    zerocopy: bool = False,
    progress: ProgressCallback | None = None,
) -> CopiedImage:
    """Bring the image *name*, a tag or ``@DIGEST`` of *source*, into *target*.  Durable on return.

    Its EROFS images come along, bootable ones, too, if the algorithms are equal; otherwise those that *target* wants
    are made.

    Args:
        tag: what it is called there; without it, it has no name, and the next garbage collection removes it.
        zerocopy: refuse to copy content: every file shares it with the one that it comes from (reflink).

    Raises:
        StreamNotFoundError: there is no such image.
        DigestMismatchError, IntegrityError: an object of *source* is not what its name says.
        OciError: the algorithms differ, and the image is an artifact, or *zerocopy* is asked for.
        OSError: content cannot be shared, against *zerocopy*.
        ReadOnlyRepositoryError
    """
    image = await hop(open_image, source, name)
    report = progress or (lambda event: None)
    report(ImportStarted(name, image.manifest.digest, len(image.layers), 0))
    if target.algorithm is source.algorithm:
        work = partial(_copy, state_of(target), state_of(source), image, tag, zerocopy)
        result = await hop(_within, state_of(target), work)
    else:
        result = await _import(target, source, image, tag, zerocopy, progress)
    if tag is not None:
        report(ImageTagged(tag, image.manifest.digest))
    report(ImportDone(image.manifest.digest, ImportStats()))
    return result


# -- one algorithm -----------------------------------------------------------------------------


def _within(state: RepoState, work: Callable[[], CopiedImage]) -> CopiedImage:
    with state.shared():
        state.require_writable()
        return work()


def _copy(target: RepoState, source: RepoState, image: OciImage, tag: str | None, zerocopy: bool) -> CopiedImage:
    counts = {"copied": 0, "shared": 0, "present": 0, "size": 0}
    with source.shared():
        needed = _needed(source, image)
        while batch := list(islice(needed, _BATCH)):
            _bring(target, source, batch, zerocopy, counts)
        images = {ref: each for ref, each in image.images.items() if objects.has_object(target, each)}
    documents = Documents(
        image.manifest.digest,
        image.manifest.raw,
        image.manifest.config.digest,
        image.config_raw,
        tuple((name, image.layers[name]) for name in _names(image)),
    )
    config_id, manifest_id = publish_image(target, documents, images, tag)
    return CopiedImage(image.manifest.digest, manifest_id, image.manifest.config.digest, config_id, tag, **counts)


def _names(image: OciImage) -> tuple[str, ...]:
    return image.config.diff_ids if image.config else tuple(layer.digest for layer in image.manifest.layers)


def _needed(source: RepoState, image: OciImage) -> Iterator[ObjectId]:
    """Layers with what they refer to, then EROFS images with theirs, each object once."""
    from ..erofs.reader.superblock import IMAGE_LIMIT
    from ..erofs.references import image_object_ids

    seen: set[ObjectId] = set()

    def fresh(ids: list[ObjectId]) -> Iterator[ObjectId]:
        for object_id in ids:
            if object_id not in seen:
                seen.add(object_id)
                yield object_id

    for name, stream_id in image.layers.items():
        with streams.open_stream(source, f"layer {name}", stream_id) as reader:
            found = list(reader.object_refs)
        yield from fresh([*found, stream_id])
    for image_id in image.images.values():
        if objects.has_object(source, image_id):
            content = objects.read_object(source, image_id, max_size=IMAGE_LIMIT)
            yield from fresh([*image_object_ids(content, source.algorithm), image_id])


def _bring(target: RepoState, source: RepoState, ids: list[ObjectId], zerocopy: bool, counts: dict[str, int]) -> None:
    made: list[tuple[ObjectId, files.Tmpfile, bool]] = []
    try:
        for object_id in ids:
            fd = objects.open_object(source, object_id)
            try:
                if objects.is_intact(target, object_id, os.fstat(fd).st_size):
                    counts["present"] += 1
                    continue
                tmpfile = objects.create_object_tmpfile(target)
                made.append((object_id, tmpfile, shared := files.clone_content(fd, tmpfile.fd)))
                if not shared and zerocopy:
                    reason = "content cannot be shared: both repositories need one file system with reflinks"
                    raise OSError(errno.EOPNOTSUPP, reason, target.path)
                if not shared:
                    files.copy_content(fd, tmpfile.fd)
            finally:
                os.close(fd)
        # Not the digest of the source, which may change meanwhile.
        digests = digest_descriptors([tmpfile.fd for _, tmpfile, _ in made], target.algorithm)
        for (object_id, tmpfile, shared), found in zip(made, digests, strict=True):
            if found != object_id:
                read = "what cannot be read" if found is None else found.hex()
                raise DigestMismatchError(f"object {object_id.hex()} of {source.path}", object_id.hex(), read)
            size = os.fstat(tmpfile.fd).st_size
            objects.publish_object_tmpfile(target, tmpfile, size, object_id)
            counts["shared" if shared else "copied"] += 1
            counts["size"] += size
    finally:
        for _, tmpfile, _ in made:
            tmpfile.discard()


# -- two algorithms ----------------------------------------------------------------------------


async def _import(
    target: Repository,
    source: Repository,
    image: OciImage,
    tag: str | None,
    zerocopy: bool,
    progress: ProgressCallback | None,
) -> CopiedImage:
    if zerocopy or image.config is None:
        what = "zerocopy needs repositories of one algorithm" if zerocopy else "an artifact needs one algorithm"
        raise OciError(f"image {image.manifest.digest}", f"{what}: {source.algorithm.value}, {target.algorithm.value}")
    async with target.lease(image.manifest.digest):
        stats = ImportStats()
        for diff_id in dict.fromkeys(image.config.diff_ids):
            result = await import_layer(target, diff_id, layer_content_async(source, diff_id), progress=progress)
            stats += result.stats
        name = f"copy of {image.manifest.digest}" if tag is None else tag
        made = await add_image(target, image.manifest.raw, image.config_raw, tag=name, progress=progress)
        if tag is None:
            await untag_async(target, name)
        return CopiedImage(
            made.manifest_digest,
            made.manifest_id,
            made.config_digest,
            made.config_id,
            tag,
            stats.objects_stored,
            0,
            stats.objects_present,
            stats.bytes_stored,
        )

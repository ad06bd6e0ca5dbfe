"""A whole image into the repository: layers in parallel, then its EROFS images, config and manifest, then all names.

Nothing has a name before everything has been verified and flushed, so an import that fails or is killed
leaves unreferenced objects, and a lease (`composefs_async._maintenance.leases`) that keeps them for the next try.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from anyio import CancelScope, create_task_group

from ..._aio.groups import single_error
from ..._aio.hops import hop, resources, write_hop
from ..._aio.operations import async_operation
from ..._maintenance import leases
from ..._maintenance.repair.stream_names import content_is
from ...digest import ObjectId
from ...errors import ComposefsError, DigestMismatchError, ErofsError, FormatError, IntegrityError, NotFoundError
from ...naming import check_tag, image_ref, layer_stream
from ...progress import (
    ImageMade,
    ImageTagged,
    ImportDone,
    ImportStarted,
    LayerStarted,
    ManifestStored,
    Message,
    ProgressCallback,
)
from ...repository import Repository
from ...results import ImportStats
from ...tree.inodes import Directory
from ..documents import ImageLayer
from ..erofs_images import Documents, MadeImage, find_images, lacks_images, make_missing, publish_image
from ..limits import Limits
from ..platforms import Platform
from ..sources.base import BlockingBlob, ImageSource, PartialBlob, ResolvedImage
from ..sources.opening import open_source, transport_of
from .clones import offered_clones
from .full_disk import full_disk_told
from .incremental_tree import GrowingTree
from .layers import ImportRun, LayerResult, find_layer, skipped, store_blob, store_layer
from .one_pass import OnePassSource
from .pull_result import PullResult
from .remains import keep_of_blob
from .unpack import Unpacker, byte_source

if TYPE_CHECKING:
    from ...registry.access import Access, Transfer

__all__ = ["pull", "pull_resolved"]

_NAME = 200  # characters of a reference in the name of a lease
_MAX_LAYERS = 8
"""Layers that are read at once; more cost memory, and a few fill all processors."""


@async_operation
async def pull(
    repo: Repository,
    source: str | ImageSource,
    *,
    tag: str | None = None,
    platform: Platform | None = None,
    make_images: bool = True,
    verify: bool = False,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
    access: Access | None = None,
    transfer: Transfer | None = None,
) -> PullResult:
    """Import an image from wherever it is, and tag it.  Durable on return.

    All digests are verified: of index, manifest and config before a layer is read, of each layer packed and
    unpacked before anything has a name.  Layers that are there are not read again.  When this raises or is
    cancelled, nothing has been published; a disk that fails in the middle of publishing leaves what a crash leaves:
    some names of layers, config and manifest, each complete, and no tag.

    Args:
        source: a reference, or any object of the form of `ImageSource`, which stays open.  References are
            ``oci:DIR[:TAG]``, ``oci:DIR:@INDEX`` (an entry of index.json, from 0) and ``oci:DIR@DIGEST``; the
            directory ends at the first colon that an image directory stands before; and
            ``docker://HOST/NAME[:TAG][@DIGEST]``, an image in a registry.
        tag: the image's name in the repository; the reference if not given.
        platform: to take from an image of several; this machine's if not given.
        make_images: build the EROFS images that the repository wants, unless they are there.  Without them the
            image cannot be mounted, but an image that EROFS cannot hold can be kept.
        verify: read layers that are there already and compare them with their digests, and build their images anew,
            instead of trusting their names: whoever can write to the repository could have made these.
        progress: hears of every step, on the event loop.  What it raises ends the import; the image is in
            place if that happens at `ManifestStored` or later.
        limits: on what the image may make us do; raise them only for a source that is trusted.
        access: how registries are reached; as podman would, if not given.
        transfer: how layers are fetched, whether they are kept as they were shipped, too, and what is shared.

    Raises:
        AuthenticationError, RegistryError: the registry refuses.
        ImagePolicyError: the policy of this machine does not allow the image.
        InvalidNameError: the reference is not spelled right, or the tag cannot be a name.
        ImageNotFoundError: the source has no such image, or none for the platform.
        OciError, TransportError, TarError, CompressionError
        DigestMismatchError: something is not what its digest says; with *verify* also a layer that was there.
        ErofsError: no EROFS image can hold the tree: it has a name of more than 255 bytes, for example.
        ReadOnlyRepositoryError
    """
    if tag is not None or isinstance(source, str):
        tag = check_tag(tag if tag is not None else str(source))
    if isinstance(source, str) and transport_of(source) == "docker":
        # Its import reads many files, and only those who pull from registries pay for it.
        room = await hop(importlib.import_module, ".registry_pull", __package__)
        pull_from_registry: Callable[..., Awaitable[PullResult]] = room.pull_from_registry
        return await pull_from_registry(
            repo,
            source,
            tag=str(tag),
            platform=platform,
            make_images=make_images,
            verify=verify,
            progress=progress,
            limits=limits,
            access=access,
            transfer=transfer,
        )
    if isinstance(source, str):
        await hop(_check_policy, source, access)
    opening = open_source(source, limits) if isinstance(source, str) else nullcontext(source)
    link = "auto" if transfer is None else transfer.link
    async with ImportRun.begin(repo, progress, limits, verify=verify, link=link) as run, opening as opened:
        if isinstance(opened, OnePassSource):
            return await _pull_once(run, opened, str(source), tag, platform, make_images)
        image = await opened.resolve(platform=platform)
        keep = transfer is not None and transfer.keep_blobs
        return await pull_resolved(run, opened, image, tag or check_tag(image.reference), make_images, keep_blobs=keep)


def _check_policy(reference: str, access: Access | None) -> None:
    from ...registry.access import Access as Default
    from ...registry.policy import check_local

    check_local(reference, access or Default())


async def pull_resolved(
    run: ImportRun,
    source: ImageSource,
    image: ResolvedImage,
    tag: str,
    make_images: bool,
    *,
    keep_blobs: bool = False,
) -> PullResult:
    """The part of `pull` that begins when the documents of the image are known."""
    return await _Pull(run, source, image, keep_blobs=keep_blobs).run(tag, make_images)


async def _pull_once(
    run: ImportRun, source: OnePassSource, name: str, tag: str | None, platform: Platform | None, make_images: bool
) -> PullResult:
    """Pull from what brings its layers before it is known what they belong to; a lease keeps them meanwhile."""
    lease = await hop(leases.begin_named, run.state, f"pull {name}"[:_NAME])
    run.state.leases.append(lease)
    try:
        received = await source.receive(run, platform)
        pull_of_it = _Pull(run, received, received.image, received.layers)
        result = await pull_of_it.run(tag or check_tag(received.image.reference), make_images)
    except (FormatError, IntegrityError, NotFoundError):  # another try would not get further
        await hop(lease.end)
        raise
    finally:
        run.state.leases.remove(lease)
    await hop(lease.end)
    return result


@dataclass(frozen=True, slots=True)
class _Brought:
    """What is in place and has no name yet: of one pull, and of others that want the same image meanwhile."""

    layers: list[LayerResult]
    images: dict[str, ObjectId]
    """By the name of their reference."""
    lease: leases.LeaseHolder

    @property
    def names(self) -> tuple[tuple[str, ObjectId], ...]:
        """The names of the layers, with the streams."""
        return tuple((layer.diff_id, layer.stream_id) for layer in self.layers)


def _end(lease: leases.LeaseHolder) -> OSError | None:
    """Give up a lease; returns why that failed."""
    try:
        lease.end()
    except OSError as error:
        return error
    return None


class _Pull:
    def __init__(
        self,
        run: ImportRun,
        source: ImageSource,
        image: ResolvedImage,
        stored: Mapping[str, LayerResult] | None = None,
        *,
        keep_blobs: bool = False,
    ) -> None:
        self._run, self._source, self._image, self._keep_blobs = run, source, image, keep_blobs
        self._stored = stored or {}
        self._state, self._report = run.state, run.report

    async def run(self, tag: str, make_images: bool) -> PullResult:
        manifest = self._image.manifest
        total = sum(layer.descriptor.size for layer in self._image.layers)
        self._report(ImportStarted(self._image.reference, manifest.digest, len(self._image.layers), total))
        work = partial(self._bring, make_images)
        kind = ("image" if make_images else "layers") + (", verified" if self._run.verify else "")
        brought, here = await self._run.once(kind, manifest.digest, work)
        layers = brought.layers if here else [skipped(self._run, *layer) for layer in brought.names]
        documents = Documents(
            manifest.digest,
            manifest.raw,
            manifest.config.digest,
            self._image.config_raw,
            brought.names,
        )
        async with full_disk_told(brought.lease, manifest.digest):
            config_id, manifest_id, failure = await hop(self._publish, documents, brought, tag)
        self._report(ManifestStored(manifest.digest))
        self._report(ImageTagged(tag, manifest.digest))
        self._report_lease(failure)
        stats = sum((layer.stats for layer in {layer.diff_id: layer for layer in layers}.values()), ImportStats())
        self._report(ImportDone(manifest.digest, stats))
        return PullResult(
            manifest.digest,
            manifest_id,
            manifest.config.digest,
            config_id,
            brought.images.get(image_ref(self._state.metadata.formats.default)),
            tag,
            stats,
            tuple(layers),
            manifest_made=self._image.manifest_made,
        )

    async def _bring(self, make_images: bool) -> _Brought:
        growing = await self._tree() if make_images and self._image.config is not None else None
        digest = self._image.manifest.digest
        self._lease = await hop(leases.begin, self._state, digest, self._image.reference)
        if not self._lease.resumable:
            self._report(Message("the boot id of this machine is hidden: an import that is interrupted begins anew"))
        try:
            with growing or nullcontext() as tree:
                async with full_disk_told(self._lease, digest):
                    layers = await self._layers(tree)
                    return _Brought(layers, await self._images(layers, tree), self._lease)
        except (FormatError, IntegrityError):  # another try would not get further
            self._report_lease(await hop(_end, self._lease))
            raise
        except BaseException:
            with CancelScope(shield=True), suppress(OSError, ComposefsError):
                await hop(self._lease.save)
            raise

    def _publish(self, documents: Documents, brought: _Brought, tag: str) -> tuple[ObjectId, ObjectId, OSError | None]:
        """The ids of config and manifest, and why the lease is still there."""
        config_id, manifest_id = publish_image(self._state, documents, brought.images, tag)
        return config_id, manifest_id, _end(brought.lease)

    def _report_lease(self, failure: OSError | None) -> None:
        """Tell of a lease that could not be removed: it ends by itself, and nothing is lost."""
        if failure is not None:
            reason = f"{failure.filename}: {failure.strerror}"
            self._report(Message(f"the lease of {self._image.manifest.digest} could not be removed: {reason}"))

    async def _tree(self) -> GrowingTree | None:
        """What the images will be made of, unless all are there."""
        found = await hop(find_images, self._state, self._image.manifest.config.digest)
        names = [layer.name for layer in self._image.layers]
        return (
            GrowingTree(self._state, names, self._run.limits.max_members)
            if self._run.verify or lacks_images(self._state, found)
            else None
        )

    # -- layers --------------------------------------------------------------------------------

    async def _layers(self, tree: GrowingTree | None) -> list[LayerResult]:
        """All layers, in the order of the config; the largest are begun first."""
        wanted = {layer.name: layer for layer in self._image.layers}
        queue = iter(sorted(wanted.values(), key=lambda layer: -layer.descriptor.size))
        found: dict[str, LayerResult] = {}

        async def work() -> None:
            for layer in queue:
                found[layer.name] = await self._layer(layer, tree)
                if tree is not None:
                    await tree.catch_up({name: result.stream_id for name, result in found.items()})

        processors = int(resources(self._state).write_semaphore.total_tokens)
        at_once: int = getattr(self._source, "layers_at_once", 1)
        workers = min(_MAX_LAYERS, max(processors, at_once), len(wanted))
        with single_error():
            async with create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(work)
        return [found[layer.name] for layer in self._image.layers]

    async def _layer(self, layer: ImageLayer, tree: GrowingTree | None) -> LayerResult:
        if layer.name in self._stored:
            return self._stored[layer.name]
        present = await find_layer(self._state, layer.name, tar=self._image.config is not None)
        if present is None:
            present = await hop(self._lease.find, layer.name)
        if present is not None:
            if self._run.verify and not await hop(content_is, self._state, present, layer_stream(layer.name)):
                raise DigestMismatchError(f"layer {layer.name} in the repository", layer.name, "something else")
            return skipped(self._run, layer.name, present)
        try:
            result = await self._store(layer, tree)
        except DigestMismatchError as error:
            if not error.host:
                raise
            self._report(Message(f"{error}; it is fetched once more"))
            result = await self._store(layer, tree)
        await hop(self._lease.finished, layer.name, result.stream_id)
        return result

    async def _store(self, layer: ImageLayer, tree: GrowingTree | None) -> LayerResult:
        descriptor = layer.descriptor
        self._report(LayerStarted(layer.name, descriptor.digest, descriptor.size))
        async with self._source.open_blob(descriptor) as blob:
            if self._image.config is None:
                raw = Unpacker(self._state, byte_source(blob), descriptor.digest, raw=True, limits=self._run.limits)
                return await store_blob(self._run, descriptor, raw)
            unpacked = isinstance(blob, PartialBlob) or (isinstance(blob, BlockingBlob) and blob.unpacked)
            unpacker = Unpacker(
                self._state,
                byte_source(blob),
                layer.name,
                media_type=descriptor.media_type,
                packed_digest=None if unpacked else descriptor.digest,
                limits=self._run.limits,
            )
            follower = tree.follow(layer.name) if tree is not None else None
            total = blob.size if isinstance(blob, PartialBlob) else descriptor.size
            clones = offered_clones(self._state, blob, self._run.link)
            try:
                result = await store_layer(self._run, layer.name, unpacker, total, follower, clones=clones)
            finally:
                if tree is not None and follower is not None:
                    tree.let_go(follower)
            if not result.present:
                state, limits = self._state, self._run.limits
                await hop(keep_of_blob, state, layer, blob, result.stream_id, limits, self._keep_blobs)
                result = replace(result, packed_verified=not unpacked)
            return result

    # -- images --------------------------------------------------------------------------------

    async def _make(self, found: dict[str, ObjectId], finish: Callable[[], Directory]) -> list[MadeImage]:
        try:
            return await write_hop(self._state, make_missing, self._state, found, finish)
        except ErofsError as error:
            where = f"{error.name}: " if error.name else ""
            reason = f"{where}{error.reason}; without images (make_images=False, --no-image) it can be kept"
            raise ErofsError(reason, error.offset, f"images of {self._image.manifest.digest}") from error

    async def _images(self, layers: Sequence[LayerResult], tree: GrowingTree | None) -> dict[str, ObjectId]:
        """EROFS images by the name of their reference; makes those that are missing if there is a *tree*."""
        if self._image.config is None:
            return {}
        found = await hop(find_images, self._state, self._image.manifest.config.digest)
        if tree is not None:
            finish = partial(tree.finish, [(layer.diff_id, layer.stream_id) for layer in layers])
            for made in await self._make({} if self._run.verify else found, finish):
                found[image_ref(made.version)] = made.id
                self._report(ImageMade(made.version, made.id.hex(), made.size))
            for diff_id, reason in tree.differences.items():
                self._run.differs(diff_id, reason)
        return found

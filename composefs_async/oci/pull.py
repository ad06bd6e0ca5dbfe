"""A whole image into the repository: layers in parallel, then config and manifest, then all names at once.

Nothing has a name before everything has been verified and flushed, so an import that fails or is killed
leaves unreferenced objects and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anyio import create_task_group

from .._aio.groups import single_error
from .._aio.hops import hop, resources
from .._repo import names, objects, streams
from .._repo.names import Link
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import ComposefsError
from ..progress import (
    ImageTagged,
    ImportDone,
    ImportStarted,
    LayerSkipped,
    LayerStarted,
    ManifestStored,
    ProgressCallback,
)
from ..repository import Repository
from ..results import ImportStats
from ..splitstream import OCI_CONFIG, OCI_MANIFEST, SplitstreamWriter
from .documents import ImageLayer
from .layers import ImportRun, LayerResult, find_layer, store_blob, store_layer
from .limits import Limits
from .names import (
    IMAGE_REFS,
    check_tag,
    config_ref,
    config_stream,
    layer_stream,
    manifest_stream,
    parse_layout_reference,
    tag_reference,
)
from .platforms import Platform
from .sources.base import ImageSource, ResolvedImage
from .sources.layout import OciLayoutSource
from .unpack import Unpacker, byte_source

__all__ = ["PullResult", "pull"]

_MAX_LAYERS = 8
"""Layers that are read at once; more cost memory, and a few fill all processors."""


@dataclass(frozen=True, slots=True)
class PullResult:
    """An image that is in place, named and durable."""

    manifest_digest: str
    manifest_id: ObjectId
    """Of the manifest's stream."""
    config_digest: str
    config_id: ObjectId
    tag: str
    stats: ImportStats
    """Of all layers together."""
    layers: tuple[LayerResult, ...]
    """In the order of the config."""


async def pull(
    repo: Repository,
    reference: str,
    *,
    tag: str | None = None,
    platform: Platform | None = None,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
) -> PullResult:
    """Import the image *reference*, ``oci:DIR[:TAG]`` or ``oci:DIR@DIGEST``, and tag it.  Durable on return.

    All digests are verified: of index, manifest and config before a layer is read, of each layer packed and
    unpacked before anything has a name.  Layers that are there are not read again.  When this raises or is
    cancelled, nothing has been published.

    Args:
        tag: the image's name in the repository; *reference* if not given.
        platform: to take from an image of several; this machine's if not given.
        progress: hears of every step, on the event loop.  What it raises ends the import; the image is in
            place if that happens at `ManifestStored` or later.

    Raises:
        OciError, TransportError, DigestMismatchError, TarError, CompressionError, InvalidNameError
        ReadOnlyRepositoryError
    """
    tag = check_tag(reference if tag is None else tag)
    place = parse_layout_reference(reference)
    async with ImportRun.begin(repo, progress, limits) as run:
        source = OciLayoutSource(place.directory, document_limit=run.limits.document_size)
        image = await source.resolve(tag=place.tag, digest=place.digest, platform=platform)
        return await _Pull(run, source, image).run(tag)


class _Pull:
    def __init__(self, run: ImportRun, source: ImageSource, image: ResolvedImage) -> None:
        self._run, self._source, self._image = run, source, image
        self._state, self._report = run.state, run.report

    async def run(self, tag: str) -> PullResult:
        manifest = self._image.manifest
        total = sum(layer.descriptor.size for layer in self._image.layers)
        self._report(ImportStarted(self._image.reference, manifest.digest, len(self._image.layers), total))
        layers = await self._layers()
        config_id, manifest_id = await hop(self._publish, layers, tag)
        self._report(ManifestStored(manifest.digest))
        self._report(ImageTagged(tag, manifest.digest))
        stats = sum((layer.stats for layer in {layer.diff_id: layer for layer in layers}.values()), ImportStats())
        self._report(ImportDone(manifest.digest, stats))
        return PullResult(manifest.digest, manifest_id, manifest.config.digest, config_id, tag, stats, tuple(layers))

    # -- layers --------------------------------------------------------------------------------

    async def _layers(self) -> list[LayerResult]:
        """All layers, in the order of the config; the largest are begun first."""
        wanted = {layer.name: layer for layer in self._image.layers}
        queue = iter(sorted(wanted.values(), key=lambda layer: -layer.descriptor.size))
        found: dict[str, LayerResult] = {}

        async def work() -> None:
            for layer in queue:
                found[layer.name] = await self._layer(layer)

        workers = min(_MAX_LAYERS, int(resources(self._state).write_semaphore.total_tokens), len(wanted))
        with single_error():
            async with create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(work)
        return [found[layer.name] for layer in self._image.layers]

    async def _layer(self, layer: ImageLayer) -> LayerResult:
        descriptor = layer.descriptor
        present = await find_layer(self._state, layer.name, tar=self._image.config is not None)
        if present is not None:
            self._report(LayerSkipped(layer.name))
            return LayerResult(layer.name, present, True, ImportStats(layers_present=1))
        self._report(LayerStarted(layer.name, descriptor.digest, descriptor.size))
        async with self._source.open_blob(descriptor) as blob:
            if self._image.config is None:
                raw = Unpacker(self._state, byte_source(blob), descriptor.digest, raw=True, limits=self._run.limits)
                return await store_blob(self._run, descriptor, raw)
            unpacker = Unpacker(
                self._state,
                byte_source(blob),
                layer.name,
                media_type=descriptor.media_type,
                packed_digest=descriptor.digest,
                limits=self._run.limits,
            )
            return await store_layer(self._run, layer.name, unpacker, descriptor.size)

    # -- documents and names, in a worker thread -----------------------------------------------

    def _publish(self, layers: Sequence[LayerResult], tag: str) -> tuple[ObjectId, ObjectId]:
        manifest, state = self._image.manifest, self._state
        refs = [(layer.diff_id, layer.stream_id) for layer in layers]
        config_name, manifest_name = config_stream(manifest.config.digest), manifest_stream(manifest.digest)
        config_id = _document(state, config_name, OCI_CONFIG, self._image.config_raw, refs)
        manifest_refs = [(config_ref(manifest.config.digest), config_id), *refs]
        manifest_id = _document(state, manifest_name, OCI_MANIFEST, manifest.raw, manifest_refs)
        links = [Link.to_object("streams", layer_stream(name), stream_id) for name, stream_id in dict(refs).items()]
        links.append(Link.to_object("streams", config_name, config_id))
        links.append(Link.to_object("streams", manifest_name, manifest_id))
        links.append(Link.reference("streams", tag_reference(tag), manifest_name))
        if any(names.target_of(state, link.path) != link.target for link in links):
            names.publish(state, links)
        return config_id, manifest_id


def _document(
    state: RepoState, name: str, content_type: int, payload: bytes, refs: list[tuple[str, ObjectId]]
) -> ObjectId:
    """Store the stream of a config or manifest, unless an equal one has that name; publishes nothing.

    References to images that the present stream has are kept: other tools may have made them.
    """
    present = streams.has_stream(state, name)
    if present is not None:
        found = _named_refs(state, present)
        if found is not None:
            refs = [*refs, *((key, found[key]) for key in sorted(found.keys() & IMAGE_REFS))]
            if found == dict(refs):
                return present
    writer = SplitstreamWriter(state.algorithm, content_type)
    for key, stream_id in refs:
        writer.add_named_stream_ref(key, stream_id)
    stored = objects.ensure_object(state, payload)
    writer.write_reference(stored.id)
    writer.add_external_size(stored.size)
    return objects.ensure_object(state, writer.done()).id


def _named_refs(state: RepoState, stream_id: ObjectId) -> dict[str, ObjectId] | None:
    """None if the stream is damaged, so that it is written again."""
    try:
        with streams.open_stream(state, "", stream_id) as reader:
            return dict(reader.named_refs)
    except ComposefsError:
        return None

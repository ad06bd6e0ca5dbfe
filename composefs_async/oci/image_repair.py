"""Repair that knows OCI: images from a directory or another repository, their documents, and EROFS images built anew.

Owns which images are to be mended and what their streams should say.  Does not own objects, names and the account of
what was done (`composefs_async._maintenance.repair.apply`), nor where layers come from (`repair_sources`).

In the order of the sources: objects come back by their ids; what is still not whole then, layers whose content is not
what their name says among it, is brought by the names of images and layers.  Streams that refer to something new are
written again, and their names moved when all is in place; the old ones are left to gc.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from .._aio.hops import checked_hop, hop, in_loop, opening_hop, using
from .._aio.operations import async_operation
from .._maintenance.repair.apply import ITSELF, Repair
from .._maintenance.repair.damaged_graph import Damage, is_there
from .._maintenance.repair.sources import ObjectSource, RepositorySource, open_source
from .._repo import publish
from .._repo.images import image_link
from .._repo.publish import Link
from .._repo.state import RepoState
from ..digest import ObjectId
from ..erofs.writer import build_image
from ..errors import ComposefsError
from ..fsverity import digest
from ..naming import (
    IMAGE_REF,
    IMAGE_REFS,
    IMAGE_V1_REF,
    LAYER_STREAMS,
    config_ref,
    config_stream,
    digest_of_manifest_stream,
    image_ref,
    layer_stream,
    manifest_stream,
)
from ..progress import ProgressCallback
from ..repository import Repository, state_of
from ..results import RepairResult
from ..splitstream import OCI_CONFIG, OCI_MANIFEST
from ..tree.inodes import Directory
from .catalogue import open_image
from .erofs_images import document_stream
from .filesystem import XattrFilter
from .importing.incremental_tree import tree_of_layers
from .limits import Limits
from .repair_sources import ImageDocuments, ImagesOfRepository, ImagesSource, open_images
from .sources.opening import is_reference
from .sparse_repair import SparseFiles

__all__ = ["repair"]

LAYERS = "its layers"
_VERSIONS = {IMAGE_REF: (2,), IMAGE_V1_REF: (1, 0)}
"""Layouts that an image under a reference can have."""


@async_operation
async def repair(
    repo: Repository,
    sources: Sequence[str | os.PathLike[str] | ObjectSource] = (),
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
) -> RepairResult:
    """Check and repair a repository, with sources of images too, and images built anew.  Durable on return.

    Of a source of images only the layers that are needed are read, unless it can be read but once.  A layer that lost
    the end of its tar, as the composefs-rs of spring 2026 stored it, is mended from a source, and its image refers to
    the whole one then.

    Args:
        sources: references of any transport, as for `pull`, beside repositories and directories of files, tried in
            this order.  Images are found by their digests; the one that a reference names serves for layers besides.
            An object of the form of `ObjectSource` (a store's, see `composefs_async.exchange.repairing`) stays open.

    Raises:
        AlgorithmMismatchError: a source is a repository of the other algorithm.
        OciError, ImageNotFoundError, TransportError: a source has no images, or not the one that is named.
        ReadOnlyRepositoryError
    """
    state = state_of(repo)
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(_opened(state, source, limits or Limits(), dry_run)) for source in sources
        ]
        await stack.enter_async_context(using(state))
        begun = checked_hop(Repair.begin, state, discard=Repair.close, dry_run=dry_run, progress=in_loop(progress))
        run = await begun
        stack.push_async_callback(hop, run.close)
        itself = ImagesOfRepository(RepositorySource(run.state, ITSELF, owned=False))
        for objects, images in [(None, itself), *opened]:
            if objects is not None:
                await checked_hop(run.take, objects)
            if images is not None:
                await _Mending(run, images).run()
            await hop(_rebuild_images, run)
        return await checked_hop(run.finish)


@asynccontextmanager
async def _opened(
    state: RepoState, source: str | os.PathLike[str] | ObjectSource, limits: Limits, outside: bool
) -> AsyncIterator[tuple[ObjectSource | None, ImagesSource | None]]:
    """A source of objects and one of images, as far as *source* is that."""
    if not isinstance(source, str | os.PathLike):
        yield source, None
        return
    source = os.fspath(source)
    if is_reference(source):
        async with open_images(state, source, limits, outside=outside) as images:
            yield None, images
        return
    objects = await opening_hop(lambda late: late.close(), open_source, source, state.algorithm)
    try:
        yield objects, ImagesOfRepository(objects) if isinstance(objects, RepositorySource) else None
    finally:
        await hop(objects.close)


# -- images from a source ----------------------------------------------------------------------


class _Mending:
    """What is not whole, brought from one source by name."""

    def __init__(self, run: Repair, source: ImagesSource) -> None:
        self._run, self._source = run, source
        self._brought: dict[str, ObjectId] = {}
        """New streams of layers."""
        self._tried: set[str] = set()
        """Layers that have been asked for."""

    async def run(self) -> None:
        for manifest_digest in await hop(_hurt_manifests, self._run.damage):
            documents = await self._source.find(manifest_digest)
            if documents is not None:
                await self._image(documents)
        for name in await hop(_hurt_layers, self._run.damage):
            layer = name.removeprefix(LAYER_STREAMS)
            await self._layer(layer)
            if layer in self._brought:
                await hop(self._name_layer, name, self._brought[layer])

    async def _image(self, documents: ImageDocuments) -> None:
        run = self._run
        if await hop(_is_unclear, run, documents):
            what = f"image {documents.manifest_digest}"
            run.problems.append(f"{self._source.name}: {what}: something of it could not be read, and is left alone")
            return
        for layer in dict.fromkeys(documents.layers):
            stream_id = await hop(_stream_of, run, documents, layer)
            if stream_id is None or await hop(_layer_hurts, run, layer, stream_id):
                await self._layer(layer)
        await hop(_write_documents, run, documents, self._brought, self._source.name)

    async def _layer(self, layer: str) -> None:
        """Bring the objects of a layer, or all of it if its stream is not what it should be; once."""
        if layer in self._tried or self._source.name == ITSELF:  # which has no other than the one that is hurt
            return
        self._tried.add(layer)
        try:
            async with self._source.layer(layer) as found:
                if found is not None:
                    await hop(self._take_layer, layer, *found)
        except ComposefsError as error:
            # The source is damaged itself, or cannot be read: others may do better.
            self._run.problems.append(f"{self._source.name}: layer {layer}: {error}")

    def _take_layer(self, layer: str, stream_id: ObjectId, objects: RepositorySource) -> None:
        self._run.take(objects)
        present = publish.object_of(self._run.state, "streams", layer_stream(layer))
        if present is None or _layer_hurts(self._run, layer, present):
            self._run.bring(stream_id, objects)
            if not self._run.damage.hurts(stream_id):
                self._brought[layer] = stream_id

    def _name_layer(self, name: str, stream_id: ObjectId) -> None:
        link = Link.to_object("streams", name, stream_id)
        if publish.target_of(self._run.state, link.path) != link.target:
            publish.publish(self._run.state, [link])
            self._run.note(link.path, "rewritten", self._source.name)
            self._run.damage.read_names()


def _layer_hurts(run: Repair, layer: str, stream_id: ObjectId) -> bool:
    """Whether a stream is not whole, or not that layer."""
    return run.damage.hurts(stream_id, f"streams/{layer_stream(layer)}")


def _is_unclear(run: Repair, documents: ImageDocuments) -> bool:
    """Whether streams of an image are there and could not be read, so that nobody knows what they say."""
    wanted = [manifest_stream(documents.manifest_digest), config_stream(documents.config_digest)]
    links = run.damage.roots.links["streams"]
    found = [links[name] for name in (*wanted, *map(layer_stream, documents.layers)) if name in links]
    return not run.damage.unknown.isdisjoint(run.damage.reach(*found))


def _hurt_manifests(damage: Damage) -> list[str]:
    """Digests of the manifests that are not whole, or that references mean and that have no name."""
    links = damage.roots.links["streams"]
    meant = {each.name for each in damage.roots.references if each.category == "streams"}
    hurt = [
        name
        for name in sorted(links.keys() | meant)
        if name not in links or damage.hurts(links[name], f"streams/{name}")
    ]
    return [found for name in hurt if (found := digest_of_manifest_stream(name)) is not None]


def _hurt_layers(damage: Damage) -> list[str]:
    """Names of layers that are not whole, whether an image has them or not."""
    links = damage.roots.links["streams"]
    meant = {each.name for each in damage.roots.references if each.category == "streams"}
    return [
        name
        for name in sorted(links.keys() | meant)
        if name.startswith(LAYER_STREAMS) and (name not in links or damage.hurts(links[name], f"streams/{name}"))
    ]


# -- documents ---------------------------------------------------------------------------------


def _refs_of(run: Repair, name: str) -> dict[str, ObjectId]:
    """The named references of a stream, none if it cannot be read."""
    stream_id = run.damage.roots.links["streams"].get(name)
    node = run.damage.nodes.get(stream_id) if stream_id is not None else None
    return dict(node.named) if node else {}


def _stream_of(run: Repair, documents: ImageDocuments, layer: str) -> ObjectId | None:
    """The stream that has the name of a layer, whose content the check has compared with that, or that of the image.

    One that is whole, if there is one.
    """
    by_name = run.damage.roots.links["streams"].get(layer_stream(layer))
    in_image = _refs_of(run, config_stream(documents.config_digest)).get(layer)
    found = [stream_id for stream_id in (by_name, in_image) if stream_id is not None]
    return next(
        (stream_id for stream_id in found if not _layer_hurts(run, layer, stream_id)), found[0] if found else None
    )


def _write_documents(run: Repair, documents: ImageDocuments, brought: Mapping[str, ObjectId], source: str) -> None:
    """Bring config and manifest, and let them refer to the layers as they are now; publishes what is new."""
    layers: list[tuple[str, ObjectId]] = []
    for layer in dict.fromkeys(documents.layers):
        stream_id = brought.get(layer) or _stream_of(run, documents, layer)
        if stream_id is None:
            return  # the layer could not be had, and a problem says why
        layers.append((layer, stream_id))
    run.put([documents.config_raw, documents.manifest_raw], source)
    config_name, manifest_name = config_stream(documents.config_digest), manifest_stream(documents.manifest_digest)
    config_refs = _refs_of(run, config_name)
    images = [(key, found) for key, found in config_refs.items() if key in IMAGE_REFS]
    if not config_refs and documents.is_container:  # nobody knows which images there were
        images = _make_images(run, layers)
    config_id = _write(run, config_name, OCI_CONFIG, documents.config_raw, [*layers, *images], source)
    old = [(key, found) for key, found in _refs_of(run, manifest_name).items() if key in IMAGE_REFS]
    refs = [(config_ref(documents.config_digest), config_id), *layers, *old]
    manifest_id = _write(run, manifest_name, OCI_MANIFEST, documents.manifest_raw, refs, source)
    links = [image_link(image_id) for _, image_id in images if is_there(run.state, image_id)]
    links.append(Link.to_object("streams", config_name, config_id))
    links.append(Link.to_object("streams", manifest_name, manifest_id))
    # Last: as long as one leads to a damaged stream a check finds it, and the next repair comes back to the image.
    links += [Link.to_object("streams", layer_stream(name), stream_id) for name, stream_id in layers]
    changed = [link for link in links if publish.target_of(run.state, link.path) != link.target]
    if changed:
        publish.publish(run.state, changed)
        for link in changed:
            run.note(link.path, "rewritten", source)
        run.damage.read_names()


def _write(
    run: Repair, name: str, content_type: int, payload: bytes, refs: Sequence[tuple[str, ObjectId]], source: str
) -> ObjectId:
    """Store the stream of a document, unless the one with that name is whole and says the same."""
    present = run.damage.roots.links["streams"].get(name)
    if present is not None and run.damage.is_whole(present) and _refs_of(run, name) == dict(refs):
        return present
    content = document_stream(content_type, digest(payload, run.state.algorithm), len(payload), refs)
    run.put([content], source)
    return digest(content, run.state.algorithm)


def _make_images(run: Repair, layers: Sequence[tuple[str, ObjectId]]) -> list[tuple[str, ObjectId]]:
    """The images that a pull would make; none if layers are not whole."""
    if any(run.damage.hurts(stream_id) for _, stream_id in layers):
        return []
    tree, made = _tree(run, layers), dict[str, ObjectId]()
    for version in run.state.metadata.formats:
        if image_ref(version) not in made:
            content = build_image(tree, run.state.algorithm, version)
            made[image_ref(version)] = digest(content, run.state.algorithm)
            run.put([content], LAYERS)
            run.bring(made[image_ref(version)], SparseFiles(run))
    return [(key, made[key]) for key in sorted(made)]


# -- EROFS images ------------------------------------------------------------------------------


def _rebuild_images(run: Repair) -> None:
    """Build those that are missing or corrupt from their layers, and the sparse files that images refer to.

    An image that comes out with another id is not taken.
    """
    with run.state.shared():
        for manifest_digest in _hurt_manifests(run.damage):
            with suppress(ComposefsError, OSError):  # its documents or layers are not whole either
                image = open_image(Repository(run.state), f"@{manifest_digest}")
                lacking = {key: found for key, found in image.images.items() if found in run.damage.unreadable}
                if image.config and lacking and not any(run.damage.hurts(layer) for layer in image.layers.values()):
                    tree = _tree(run, [(each, image.layers[each]) for each in image.config.diff_ids])
                    for key, wanted in lacking.items():
                        contents = (build_image(tree, run.state.algorithm, each) for each in _VERSIONS.get(key, ()))
                        _put_image(run, wanted, contents)
        run.take(SparseFiles(run))


def _tree(run: Repair, layers: Sequence[tuple[str, ObjectId]]) -> Directory:
    return tree_of_layers(run.state, layers, XattrFilter.ALLOWLIST_ONLY)


def _put_image(run: Repair, wanted: ObjectId, contents: Iterator[bytes]) -> None:
    for content in contents:
        if digest(content, run.state.algorithm) == wanted:
            run.put([content], LAYERS)
            return
    run.problems.append(f"image {wanted.hex()}: built from its layers it has another id")

"""EROFS images of OCI images: built from stored layers, and referred to by the stream of the config.

Owns which images an OCI image should have, building them, and the streams of config and manifest, whose references
lead to layers and images.  Does not own what layers mean (`filesystem`), what an image looks like (`erofs`), nor
bringing layers in (`pull`).

One image is made for each reference that the layouts of the repository ask for (`metadata.formats`): layouts 0 and 1
share one, so where both are wanted the first is made.  Images that other tools have linked stay linked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .._aio.hops import hop, write_hop
from .._aio.operations import async_operation, operation
from .._repo import images, objects, publish, streams
from .._repo.publish import Link
from .._repo.state import RepoState
from ..digest import ObjectId
from ..erofs.writer import image_pieces
from ..errors import ComposefsError, OciError
from ..naming import (
    IMAGE_REF,
    IMAGE_REFS,
    IMAGE_V1_REF,
    check_tag,
    config_ref,
    config_stream,
    image_ref,
    layer_stream,
    manifest_stream,
    tag_reference,
)
from ..repository import Repository, state_of
from ..splitstream import OCI_CONFIG, OCI_MANIFEST, SplitstreamWriter
from ..tree.inodes import Directory
from . import legacy
from .catalogue import OciImage, open_image
from .filesystem import XattrFilter
from .importing.incremental_tree import tree_of_layers

__all__ = [
    "Documents",
    "MadeImage",
    "document_stream",
    "ensure_images",
    "ensure_images_async",
    "find_images",
    "image_tree",
    "image_tree_async",
    "lacks_images",
    "make_missing",
    "publish_image",
]

_IMAGE_ORDER = (IMAGE_REF, IMAGE_V1_REF, *sorted(IMAGE_REFS - {IMAGE_REF, IMAGE_V1_REF}))


@dataclass(frozen=True, slots=True)
class Documents:
    """An image or artifact whose layers are stored."""

    manifest_digest: str
    manifest_raw: bytes = field(repr=False)
    config_digest: str
    config_raw: bytes = field(repr=False)
    layers: tuple[tuple[str, ObjectId], ...]
    """Name and stream of each, in the order of the config; a layer may occur twice."""


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An EROFS image that has been stored and has no name yet."""

    version: int
    """Version of its layout."""
    id: ObjectId
    size: int
    """In bytes."""


# -- for users ---------------------------------------------------------------------------------


@operation
def image_tree(repo: Repository, image: OciImage, xattrs: XattrFilter | None = XattrFilter.ALLOWLIST_ONLY) -> Directory:
    """Return the tree that the layers of *image* make together.

    Blocks; reads the streams of the layers, and of their objects only the data of sparse files.

    Args:
        xattrs: as for `filesystem.tree_from_layers`; the default gives the tree of its EROFS images.

    Raises:
        OciError: it is an artifact, or its layers contradict each other.
        StreamNotFoundError, ObjectNotFoundError, SplitstreamError, TarError
    """
    return tree_of_layers(state_of(repo), _layers(image), xattrs)


@async_operation
async def image_tree_async(
    repo: Repository, image: OciImage, xattrs: XattrFilter | None = XattrFilter.ALLOWLIST_ONLY
) -> Directory:
    """Build the tree of an OCI image like `image_tree`, in a worker thread."""
    return await write_hop(state_of(repo), image_tree, repo, image, xattrs)


@operation
def ensure_images(repo: Repository, name: str) -> OciImage:
    """Make the EROFS images that the image *name* (a tag or ``@DIGEST``) lacks; an artifact has none.  Durable.

    Nothing is built or written if all are there.  A crash leaves the image as it was, or names that are complete.
    An image of January 2026, which goes by its reference, also gets a manifest (see `january`) and a tag of that name
    in place of the reference, after its layers have been read and verified.

    Raises:
        ErofsError: no image can hold the tree.
        ReadOnlyRepositoryError
        The errors of `catalogue.open_image` and `image_tree`.
    """
    state = state_of(repo)
    with state.shared():
        state.require_writable()
        image = open_image(repo, name)
        if image.config is None:
            return image
        new_tag = name if image.manifest_id is None else None
        if new_tag is not None:
            check_tag(new_tag)
            legacy.verify_layers(repo, image.layers, image.manifest)
        digest = image.manifest.config.digest
        documents = Documents(image.manifest.digest, image.manifest.raw, digest, image.config_raw, _layers(image))
        found = find_images(state, digest)
        tree = partial(tree_of_layers, state, documents.layers, XattrFilter.ALLOWLIST_ONLY, store=True)
        found.update((image_ref(made.version), made.id) for made in make_missing(state, found, tree))
        publish_image(state, documents, found, new_tag)
        return open_image(repo, f"@{image.manifest.digest}")


@async_operation
async def ensure_images_async(repo: Repository, name: str) -> OciImage:
    """Make the EROFS images that an OCI image lacks, like `ensure_images`, in a worker thread."""
    return await hop(ensure_images, repo, name)


def _layers(image: OciImage) -> tuple[tuple[str, ObjectId], ...]:
    if image.config is None:
        raise OciError(f"manifest {image.manifest.digest}", "it is an artifact, whose layers make no tree")
    return tuple((diff_id, image.layers[diff_id]) for diff_id in image.config.diff_ids)


# -- building ----------------------------------------------------------------------------------


def find_images(state: RepoState, config_digest: str) -> dict[str, ObjectId]:
    """The images that the stream of the config refers to and that are there, by the name of the reference."""
    stream_id = streams.has_stream(state, config_stream(config_digest))
    found = _named_refs(state, stream_id) if stream_id is not None else None
    return {
        key: image_id
        for key, image_id in (found or {}).items()
        if key in IMAGE_REFS and images.has_image(state, image_id.hex())
    }


def lacks_images(state: RepoState, found: Mapping[str, ObjectId]) -> bool:
    """Whether *found* has not all the images that the repository wants."""
    return bool(_missing(state, found))


def make_missing(state: RepoState, found: Mapping[str, ObjectId], tree: Callable[[], Directory]) -> list[MadeImage]:
    """Build and store the images that *found* lacks.  Blocks for about 5 µs an entry; publishes nothing.

    Args:
        tree: makes the tree, if one is needed.

    Raises:
        ErofsError: no image can hold the tree.
        What *tree* raises.
    """
    versions = _missing(state, found)
    if not versions:
        return []
    root = tree()
    return [_make(state, root, version) for version in versions]


def _missing(state: RepoState, found: Mapping[str, ObjectId]) -> list[int]:
    missing: dict[str, int] = {}
    for version in state.metadata.formats:
        if image_ref(version) not in found:
            missing.setdefault(image_ref(version), version)
    return list(missing.values())


def _make(state: RepoState, tree: Directory, version: int) -> MadeImage:
    stored = objects.ensure_object_from(state, image_pieces(tree, state.algorithm, version))
    return MadeImage(version, stored.id, stored.size)


# -- config and manifest -----------------------------------------------------------------------


def publish_image(
    state: RepoState,
    documents: Documents,
    found: Mapping[str, ObjectId],
    tag: str | None = None,
    *,
    forget: Collection[str] = (),
) -> tuple[ObjectId, ObjectId]:
    """Store config and manifest, and publish them with the layers and the images *found*.  Durable.

    Nothing is written if all is there.  A crash leaves some of the first names, of images, layers, config,
    manifest and tag in this order, each complete.

    Args:
        found: images by the name of their reference.
        tag: to name the manifest with; takes the place of a reference of January 2026.
        forget: names of references to images that are not kept, unless they are *found*.

    Returns:
        The ids of the two streams, of the config first.
    """
    config_name, manifest_name = config_stream(documents.config_digest), manifest_stream(documents.manifest_digest)
    config_id = _document(state, config_name, OCI_CONFIG, documents.config_raw, documents.layers, found, forget)
    refs = [(config_ref(documents.config_digest), config_id), *documents.layers]
    manifest_id = _document(state, manifest_name, OCI_MANIFEST, documents.manifest_raw, refs, {})
    links = [images.image_link(image_id) for image_id in dict.fromkeys(found.values())]
    links += [Link.to_object("streams", layer_stream(name), layer) for name, layer in dict(documents.layers).items()]
    links.append(Link.to_object("streams", config_name, config_id))
    links.append(Link.to_object("streams", manifest_name, manifest_id))
    if tag is not None:
        links.append(Link.reference("streams", tag_reference(tag), manifest_name))
    if any(publish.target_of(state, link.path) != link.target for link in links):
        publish.publish(state, links)
    if tag is not None:
        legacy.remove_superseded(state, tag, documents.config_digest)
    return config_id, manifest_id


def _document(
    state: RepoState,
    name: str,
    content_type: int,
    payload: bytes,
    refs: Sequence[tuple[str, ObjectId]],
    found: Mapping[str, ObjectId],
    forget: Collection[str] = (),
) -> ObjectId:
    """Store the stream of a config or manifest, unless an equal one has that name; publishes nothing.

    References to images that the present stream has and *found* has not are kept: other tools may have made them.
    One that has its payload inline, as in January 2026, is not equal: composefs-rs does not read it any more.
    """
    stored = objects.ensure_object(state, payload, compare=True)
    present = streams.has_stream(state, name)
    known = _contents(state, present) if present is not None else None
    present_refs, present_objects = known or ({}, [])
    kept = {key: present_refs[key] for key in present_refs if key not in forget}
    wanted = [*refs, *_image_refs({**kept, **found})]
    if present is not None and known is not None and present_refs == dict(wanted) and present_objects == [stored.id]:
        return present
    content = document_stream(content_type, stored.id, stored.size, wanted)
    return objects.ensure_object(state, content, compare=True).id


def document_stream(content_type: int, payload: ObjectId, size: int, refs: Iterable[tuple[str, ObjectId]]) -> bytes:
    """Return the stream of a config or manifest, whose content of *size* bytes is the object *payload*."""
    writer = SplitstreamWriter(payload.algorithm, content_type)
    for key, stream_id in refs:
        writer.add_named_stream_ref(key, stream_id)
    writer.write_reference(payload)
    writer.add_external_size(size)
    return writer.done()


def _image_refs(refs: Mapping[str, ObjectId]) -> Iterator[tuple[str, ObjectId]]:
    """Filter *refs* for those that lead to images, in the order that composefs-rs writes."""
    return ((key, refs[key]) for key in _IMAGE_ORDER if key in refs)


def _named_refs(state: RepoState, stream_id: ObjectId) -> dict[str, ObjectId] | None:
    known = _contents(state, stream_id)
    return known[0] if known else None


def _contents(state: RepoState, stream_id: ObjectId) -> tuple[dict[str, ObjectId], list[ObjectId]] | None:
    """Named references and objects; None if the stream is damaged, so that it is written again."""
    try:
        with streams.open_stream(state, "", stream_id) as reader:
            return dict(reader.named_refs), list(reader.object_refs)
    except ComposefsError:
        return None

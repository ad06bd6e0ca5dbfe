"""Everything that an image or a layer of a repository consists of: ids, what they are for, and names.

Owns the walk from a root to a sorted list of objects.  Blocks.  Streams and images are verified as they are read, and
names are derived from what refers to them, so that nothing that came from outside can choose a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .._maintenance import reachability
from .._maintenance.fsck.object_reader import sizes
from .._maintenance.repair.stream_names import NAME, name_of
from .._repo import images, streams
from .._repo.publish import check_name
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import (
    FormatError,
    ImageNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    StreamNotFoundError,
)
from ..naming import IMAGE_REFS, layer_stream, manifest_stream
from ..oci.catalogue import open_image
from ..repository import Repository, state_of
from .documents import ArtifactKind
from .table import Kind

__all__ = ["Closure", "Walked", "image_closure", "layer_closure", "root_of", "walk"]


@dataclass(slots=True)
class Walked:
    """What is reached from a root, as far as it is there."""

    root: str
    """Name of the root's stream, or id of the image."""
    root_id: ObjectId
    kinds: dict[ObjectId, int] = field(default_factory=dict[ObjectId, int])
    """`Kind` of every object that is reached, in the order in which the walk meets them."""
    streams: dict[str, ObjectId] = field(default_factory=dict[str, ObjectId])
    """Names of streams."""
    images: dict[ObjectId, None] = field(default_factory=dict[ObjectId, None])
    missing: list[ObjectId] = field(default_factory=list[ObjectId])
    """Streams and images that are reached and cannot be read, so that what they need is not known."""
    damaged: list[ObjectId] = field(default_factory=list[ObjectId])
    """Those of *missing* that are there and not what their id says."""


@dataclass(frozen=True, slots=True)
class Closure:
    """Everything that an artifact consists of, complete."""

    kind: ArtifactKind
    root: str
    ids: tuple[ObjectId, ...]
    """In the order in which they are packed: streams, images and documents first, then files in the image's order."""
    sizes: tuple[int, ...]
    """In bytes, in the same order."""
    kinds: bytes
    streams: dict[str, ObjectId]
    images: dict[str, int]
    """Sizes by the ids in hexadecimal."""

    @property
    def size(self) -> int:
        """Bytes of all objects together."""
        return sum(self.sizes)

    @property
    def root_id(self) -> ObjectId:
        """Id of the object behind the root."""
        return self.streams[self.root] if self.root in self.streams else ObjectId.from_hex(self.root)


def root_of(repo: Repository, image: str) -> tuple[str, ObjectId]:
    """The root of *image*: a tag or ``@DIGEST`` of an OCI image, or the id or reference of an EROFS image.

    Raises:
        ImageNotFoundError: there is neither.
    """
    state = state_of(repo)
    try:
        found = open_image(repo, image)
    except StreamNotFoundError:
        image_id = images.has_image(state, image)
        if image_id is None:
            raise ImageNotFoundError(image) from None
        return image_id.hex(), image_id
    if found.manifest_id is None:
        raise FormatError(f"{image} has no stored manifest; 'oci upgrade' makes one")
    return manifest_stream(found.manifest.digest), found.manifest_id


def image_closure(repo: Repository, image: str) -> Closure:
    """Everything that the image needs.

    Raises:
        ImageNotFoundError, ObjectNotFoundError, IntegrityError, FormatError: it is not there, or not complete.
    """
    root, root_id = root_of(repo, image)
    return _complete(state_of(repo), "image", root, root_id)


def layer_closure(repo: Repository, diff_id: str) -> Closure:
    """Everything that one layer needs.

    Raises:
        StreamNotFoundError, ObjectNotFoundError, IntegrityError, FormatError
    """
    name, state = layer_stream(diff_id), state_of(repo)
    root_id = streams.has_stream(state, name)
    if root_id is None:
        raise StreamNotFoundError(name)
    return _complete(state, "layer", name, root_id)


def _complete(state: RepoState, kind: ArtifactKind, root: str, root_id: ObjectId) -> Closure:
    walked = walk(state, root, root_id)
    if walked.damaged:
        reachability.read_node(state, walked.damaged[0])  # raises what is wrong with it
    if walked.missing:
        raise ObjectNotFoundError(walked.missing[0].hex())
    first = [found for found, each in walked.kinds.items() if each != Kind.FILE]
    ids = [*first, *(found for found, each in walked.kinds.items() if each == Kind.FILE)]
    known = sizes(state, b"".join(ids))
    for found, size in zip(ids, known, strict=True):
        if size < 0:
            raise ObjectNotFoundError(found.hex())
    by_id = dict(zip(ids, known, strict=True))
    return Closure(
        kind,
        root,
        tuple(ids),
        tuple(known),
        bytes(walked.kinds[found] for found in ids),
        walked.streams,
        {found.hex(): by_id[found] for found in walked.images},
    )


def walk(state: RepoState, root: str, root_id: ObjectId, *, check: Callable[[], object] | None = None) -> Walked:
    """Follow everything from a root.  What cannot be read is noted, and not followed.

    Files come in the order of the images that have them, then of the layers.
    """
    walked = Walked(root, root_id)
    if NAME.fullmatch(root):
        walked.streams[root] = root_id
        pending = [(root_id, Kind.STREAM)]
    else:
        walked.images[root_id] = None
        pending = [(root_id, Kind.IMAGE)]
    files: list[tuple[bool, bytes]] = []
    while pending:
        object_id, kind = pending.pop()
        if object_id in walked.kinds:
            continue
        walked.kinds[object_id] = kind
        if check is not None:
            check()
        node = _read(state, object_id, walked)
        if node is None:
            continue
        documents = object_id in _document_streams(walked)
        for reference, target in reversed(node.named):
            _name(walked, reference, target)
            pending.append((target, Kind.IMAGE if reference in IMAGE_REFS else Kind.STREAM))
        if documents:
            _take(walked, _ids(state, node.objects), Kind.DOCUMENT)
        else:
            files.append((kind == Kind.IMAGE, node.objects))
    for _, objects in sorted(files, key=lambda each: not each[0]):
        _take(walked, _ids(state, objects), Kind.FILE)
    return walked


def _read(state: RepoState, object_id: ObjectId, walked: Walked) -> reachability.Node | None:
    try:
        return reachability.read_node(state, object_id)
    except ObjectNotFoundError:
        walked.missing.append(object_id)
    except (IntegrityError, FormatError):
        walked.missing.append(object_id)
        walked.damaged.append(object_id)
    return None


def _document_streams(walked: Walked) -> set[ObjectId]:
    prefixes = ("oci-manifest-", "oci-config-")
    return {found for name, found in walked.streams.items() if name.startswith(prefixes)}


def _name(walked: Walked, reference: str, target: ObjectId) -> None:
    if reference in IMAGE_REFS:
        walked.images[target] = None
        return
    path = name_of(reference, target)
    if path is not None and path.startswith("streams/"):
        walked.streams.setdefault(check_name(path.removeprefix("streams/")), target)


def _ids(state: RepoState, packed: bytes) -> list[ObjectId]:
    return ObjectId.unpack(packed, state.algorithm)


def _take(walked: Walked, ids: Iterable[ObjectId], kind: int) -> None:
    for object_id in ids:
        walked.kinds.setdefault(object_id, kind)

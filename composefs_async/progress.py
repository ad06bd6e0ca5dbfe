"""What happens during an import, a check, a repair or a collection of garbage, as typed values; no I/O.

Owns the events, the type of the callback that receives them, and their JSON form.  Does not own showing
them (the command line does) nor turning them into an async iterator (`composefs_async.oci.progress_stream`).

There is no event for failure or cancellation: the call that reports raises.  An event may come without
those that usually precede it (a layer that is present is skipped without having started), and new kinds of
events may be added: ignore what you do not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from .results import ImportStats

__all__ = [
    "BlobPushed",
    "BytesFetched",
    "BytesMoved",
    "BytesRead",
    "BytesSent",
    "CheckProgress",
    "CollectProgress",
    "ImageMade",
    "ImageTagged",
    "ImportDone",
    "ImportStarted",
    "LayerDiffersFromPeers",
    "LayerDone",
    "LayerPartial",
    "LayerSkipped",
    "LayerStarted",
    "ManifestStored",
    "Message",
    "ObjectsStored",
    "PackSent",
    "ProgressCallback",
    "ProgressEvent",
    "RateLimit",
    "RefWritten",
    "RegistryWarning",
    "Retrying",
    "SourceChosen",
    "SourceFailed",
    "TransferStarted",
    "is_intermediate",
    "to_json",
]


@dataclass(frozen=True, slots=True)
class ImportStarted:
    """The image is known and nothing of it has been stored."""

    reference: str
    """Where it comes from."""
    manifest_digest: str
    layers: int
    total: int
    """Bytes of all layers as shipped, also of those that will turn out to be present."""


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """A layer is being read."""

    diff_id: str
    """What all events of the layer carry; for a layer of an artifact its own digest."""
    digest: str
    """Digest of the blob as shipped."""
    size: int
    """Size of the blob as shipped, in bytes."""


@dataclass(frozen=True, slots=True)
class BytesRead:
    """Intermediate: how far the blob has been read, as shipped (before decompression)."""

    diff_id: str
    fetched: int
    """In bytes, since the start."""
    total: int


@dataclass(frozen=True, slots=True)
class ObjectsStored:
    """Intermediate: what the layer has brought so far."""

    diff_id: str
    stored: int
    """Objects that were new, since the start."""
    present: int
    """Objects that were there already, since the start."""


@dataclass(frozen=True, slots=True)
class LayerSkipped:
    """The repository has the layer; it is not read."""

    diff_id: str


@dataclass(frozen=True, slots=True)
class LayerDone:
    """All of the layer is in place and its digests fit, but it is not yet durable."""

    diff_id: str
    stats: ImportStats


@dataclass(frozen=True, slots=True)
class LayerDiffersFromPeers:
    """Another program makes another image of the layer, or another tree of its members; both are as they should be."""

    diff_id: str
    reason: str
    """One line: which program, what it does, and where."""


@dataclass(frozen=True, slots=True)
class LayerPartial:
    """A zstd:chunked layer comes without what the repository has; its digest as shipped is not going to be checked."""

    diff_id: str
    fetched: int
    """Bytes that are missing."""
    size: int
    """Of the layer as shipped, in bytes."""


@dataclass(frozen=True, slots=True)
class ImageMade:
    """An EROFS image has been built from the layers, and has no name yet; it does not come if the image was there."""

    version: int
    """Version of the layout: 0, 1 or 2."""
    image_id: str
    """In hexadecimal."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class ManifestStored:
    """Layers, config and manifest are in place and durable."""

    digest: str


@dataclass(frozen=True, slots=True)
class ImageTagged:
    """The manifest has a name, so that garbage collection keeps the image."""

    tag: str
    digest: str


@dataclass(frozen=True, slots=True)
class ImportDone:
    """The last event of an import that succeeded."""

    digest: str
    """Digest of the manifest."""
    stats: ImportStats


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """Intermediate: how far a check of the repository has come."""

    stage: str
    """``streams`` (with the objects of those whose content is hashed), ``objects``, and ``images``, in this order."""
    done: int
    """Streams, images, or of 256 directories of objects."""
    total: int
    read: int
    """Bytes of objects, in all stages so far."""


@dataclass(frozen=True, slots=True)
class CollectProgress:
    """Intermediate: how far a collection of garbage has come."""

    stage: str
    """``follow`` (what names lead to), ``compare`` (what there is with what is needed), ``remove``, in this order."""
    done: int
    """Streams and images, of 256 directories of objects, or objects that are garbage."""
    total: int
    """0 where it is not known yet."""


@dataclass(frozen=True, slots=True)
class SourceChosen:
    """A registry or one of its mirrors has the image, and layers are asked of it first."""

    reference: str
    host: str
    mirror: bool


@dataclass(frozen=True, slots=True)
class BytesFetched:
    """Intermediate: what of a blob has come over the network."""

    diff_id: str
    digest: str
    """Digest of the blob as shipped."""
    received: int
    """Bytes that this process has received for it, also those that were thrown away."""
    resumed: int
    """Bytes that an earlier process had left."""
    total: int
    connections: int
    """That it has now."""


@dataclass(frozen=True, slots=True)
class BytesSent:
    """Intermediate: what of a blob has gone to a registry."""

    digest: str
    sent: int
    total: int


@dataclass(frozen=True, slots=True)
class BlobPushed:
    """A registry has a blob."""

    digest: str
    size: int
    how: str
    """``present`` (it was there), ``mounted`` from another repository, or where its bytes were from: ``kept``,
    ``plain``, ``origin``, ``repacked``, ``config``."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request has failed in a way that may pass; it is sent again after a pause."""

    what: str
    host: str
    attempt: int
    """That has failed, since something was achieved last; counts from 1."""
    of: int
    """How many more attempts there are at most without any progress."""
    delay: float
    """Seconds."""
    reason: str


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A registry says how often it may be asked; None is what it does not say."""

    host: str
    limit: int | None
    remaining: int | None
    window: int | None
    """Seconds."""
    source: str
    """What is counted: an account, or an address."""


@dataclass(frozen=True, slots=True)
class RegistryWarning:
    """A registry wants people to read this; it is shown once."""

    host: str
    text: str


@dataclass(frozen=True, slots=True)
class TransferStarted:
    """Everything that is to be moved to or from a store is known, and nothing of it has been moved."""

    reference: str
    objects: int
    """Objects to be moved."""
    bytes: int
    """Bytes to be moved: on the wire for a fetch, before compression for what is published."""
    present: int
    """Objects that are there already."""


@dataclass(frozen=True, slots=True)
class BytesMoved:
    """Intermediate: how far a transfer has come, in the unit of `TransferStarted.bytes`."""

    moved: int
    total: int
    objects: int
    """Objects that are in place."""


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """A source could not deliver something, or has delivered something damaged; the next one is asked."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackSent:
    """A pack is in the store, and has no name yet."""

    digest: str
    size: int
    """In bytes."""
    objects: int


@dataclass(frozen=True, slots=True)
class RefWritten:
    """A name of the store, or of the repository, means the manifest."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Message:
    """One line for people."""

    text: str


ProgressEvent: TypeAlias = (
    ImportStarted
    | LayerStarted
    | BytesRead
    | ObjectsStored
    | LayerSkipped
    | LayerDone
    | LayerDiffersFromPeers
    | LayerPartial
    | ImageMade
    | ManifestStored
    | ImageTagged
    | ImportDone
    | CheckProgress
    | CollectProgress
    | SourceChosen
    | BytesFetched
    | BytesSent
    | BlobPushed
    | Retrying
    | RateLimit
    | RegistryWarning
    | TransferStarted
    | BytesMoved
    | SourceFailed
    | PackSent
    | RefWritten
    | Message
)

ProgressCallback: TypeAlias = Callable[[ProgressEvent], None]
"""Receives events one at a time.  Async functions call it in the event loop's thread, blocking functions in
the thread that called them; it must return quickly, and what it raises ends the operation."""


def is_intermediate(event: ProgressEvent) -> bool:
    """Whether a later event of the same kind and layer or stage makes this one useless, so that it may be dropped."""
    kinds = BytesRead | BytesFetched | BytesMoved | BytesSent | ObjectsStored | CheckProgress | CollectProgress
    return isinstance(event, kinds)


def to_json(event: ProgressEvent) -> dict[str, Any]:
    """The event as plain values for one line of JSON: ``{"event": "bytes-read", "diff_id": …}``.

    The keys after ``event`` are the attributes in their order; statistics are an object of their own.
    """
    return {"event": _kind(type(event).__name__), **asdict(event)}


def _kind(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()

"""Layers as they were shipped, kept beside what was made of them, so that an image can be pushed bit for bit.

Owns the streams ``oci-blob-DIGEST``, each with the blob as its one object, and the references that keep them, below
``streams/refs/composefs-async/packed``.  Everything here blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .._maintenance import leases
from .._repo import objects, publish, streams
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import ComposefsError
from ..naming import blob_stream, decode_tag, digest_of_manifest_stream, encode_tag
from ..repository import Repository, state_of
from ..splitstream import OCI_BLOB, SplitstreamWriter
from . import legacy
from .catalogue import open_image

__all__ = ["keep_blob", "kept_blob", "opened_blob", "prune", "stored_as_blob"]

_REFERENCES = "composefs-async/packed"
_READ_SIZE = 1 << 20


def keep_blob(state: RepoState, digest: str, fd: int, size: int, offset: int = 0) -> None:
    """Store the blob at *offset* of a file, whose content has been compared with *digest*.  Durable on return."""
    reference = f"{_REFERENCES}/{encode_tag(digest)}"
    named = publish.target_of(state, f"streams/refs/{reference}") is not None
    if named and kept_blob(state, digest) is not None:  # without the name, garbage collection would remove it
        return
    stored = objects.ensure_object_from(state, _pieces(fd, offset, offset + size))
    writer = SplitstreamWriter(state.algorithm, OCI_BLOB)
    writer.write_reference(stored.id)
    writer.add_external_size(stored.size)
    streams.write_stream(state, writer, blob_stream(digest), reference)


def kept_blob(state: RepoState, digest: str) -> ObjectId | None:
    """The object that is the blob *digest*; None if it was not kept."""
    return _single_object(state, blob_stream(digest), None)


def stored_as_blob(state: RepoState, name: str, stream_id: ObjectId) -> ObjectId | None:
    """The object of a layer of an artifact, which is stored undivided; None for a layer that was split."""
    return _single_object(state, name, stream_id)


def _single_object(state: RepoState, name: str, stream_id: ObjectId | None) -> ObjectId | None:
    try:
        found = stream_id or streams.has_stream(state, name)
        if found is None:
            return None
        with streams.open_stream(state, name, found) as reader:
            refs = list(reader.object_refs)
            return refs[0] if reader.content_type == OCI_BLOB and len(refs) == 1 else None
    except ComposefsError:
        return None


@contextmanager
def opened_blob(state: RepoState, object_id: ObjectId) -> Iterator[int]:
    """A descriptor to read an object from."""
    fd = objects.open_object(state, object_id)
    try:
        yield fd
    finally:
        os.close(fd)


def prune(repo: Repository, roots: Iterable[str] = (), *, dry_run: bool = False, timeout: float | None = None) -> int:
    """Let go of the blobs that no image with a name needs, so that garbage collection removes them.  Durable on return.

    While an import runs or waits to be resumed (a lease), all stay: its image has no name yet.  They stay, too, if an
    image is damaged, because it cannot be told what it needs.

    Args:
        roots: names of streams; those of manifests count as images with a name.
        dry_run: only count; takes no lock and writes nothing.
        timeout: seconds to wait for others who use the repository; 0 waits for nobody.  Without blobs to let go of,
            there is no wait.

    Returns:
        How many blobs.

    Raises:
        RepositoryInUseError: not within *timeout* seconds; nothing has been let go of.
        ReadOnlyRepositoryError
    """
    state, kept_too = state_of(repo), tuple(roots)
    unneeded = _unneeded(repo, kept_too)
    if dry_run or not unneeded:
        return len(unneeded)
    with state.exclusive("garbage collection", timeout):
        unneeded = _unneeded(repo, kept_too)  # an import may have begun, or ended, since
        for name in unneeded:
            publish.remove_reference(state, "streams", f"{_REFERENCES}/{name}")
    return len(unneeded)


def _unneeded(repo: Repository, roots: tuple[str, ...]) -> list[str]:
    """References of blobs, below their directory, that no image needs."""
    state = state_of(repo)
    kept = [reference for reference, _ in publish.references(state, "streams", _REFERENCES)]
    if not kept or leases.all_leases(state):
        return []
    streams_named = (*roots, *(stream for _, stream in publish.references(state, "streams")))
    images = {f"@{digest}" for stream in streams_named if (digest := digest_of_manifest_stream(stream))}
    needed: set[str] = set()
    try:
        for image in sorted(images | legacy.references(repo).keys()):
            needed.update(layer.digest for layer in open_image(repo, image).manifest.layers)
    except (ComposefsError, OSError):
        return []
    return [name for name in kept if decode_tag(name) not in needed]


def _pieces(fd: int, offset: int, end: int) -> Iterator[bytes]:
    while offset < end and (piece := os.pread(fd, min(_READ_SIZE, end - offset), offset)):
        yield piece
        offset += len(piece)

"""What an import needs of a place that images come from.

Owns the protocol and its values.  A source resolves one name to verified documents, and opens blobs that
are *not* verified: the importer hashes them while it reads them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from ..documents import Descriptor, ImageConfig, ImageLayer, Manifest
from ..platforms import Platform

__all__ = [
    "Blob",
    "BlockingBlob",
    "Cloner",
    "ImageSource",
    "LocalBlob",
    "PartialBlob",
    "ResolvedImage",
    "SpooledBlob",
    "StreamedBlob",
]


@dataclass(frozen=True, slots=True)
class LocalBlob:
    """A blob in a regular file, or in a part of one, which worker threads can read themselves.

    It is read by pread(2): the position of the descriptor is neither used nor changed, and several may share it.
    """

    fd: int
    """Open for reading; valid inside the context manager, which closes it."""
    size: int
    """In bytes; as the descriptor says."""
    path: str
    """For messages."""
    offset: int = 0
    """Where the blob begins in the file, in bytes."""


class Cloner(Protocol):
    """Takes files whose content stands in a layer, to share it instead of writing it."""

    def clone(self, fd: int, offset: int, size: int, /) -> int | None:
        """Return a descriptor to read instead of *fd*, which the caller closes; None if there is no better one.

        Args:
            offset: where the content begins in the tar, in bytes.
            size: of the content, in bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlockingBlob:
    """A blob that a function brings, called in worker threads, one call at a time."""

    readinto: Callable[[memoryview], int]
    """Put the next bytes at the front of the buffer and return how many; 0 at the end only.  Valid inside the context
    manager."""
    size: int
    """In bytes; 0 if it is not known."""
    unpacked: bool = False
    """The layer comes as what its blob unpacks to, because the source has nothing else: only that is verified."""
    offer: Callable[[Cloner], object] | None = None
    """Call this before the first read to have files of the layer offered, in the threads that read."""


@dataclass(frozen=True, slots=True)
class StreamedBlob:
    """A blob that arrives."""

    chunks: AsyncIterator[bytes]
    """Pieces of any length but 0; never more than *size* bytes together.  Valid inside the context manager."""
    size: int
    """In bytes; as the descriptor says."""


@dataclass(frozen=True, slots=True)
class SpooledBlob:
    """A blob that arrives in a file, from which worker threads read what has come."""

    fd: int
    """Read by pread(2).  Valid inside the context manager, which closes it."""
    size: int
    """In bytes; as the descriptor says."""
    path: str
    """For messages."""
    wait: Callable[[int], Awaitable[int]]
    """Wait, on the event loop, until the byte at an offset is there, and return the offset up to which there is no gap;
    the size if the offset is it.  Raises why it will not come.  What is before the offset is not read any more."""


@dataclass(frozen=True, slots=True)
class PartialBlob:
    """A layer of which parts were fetched, as the tar that it unpacks to: only that is verified, by its diff_id."""

    chunks: AsyncIterator[bytes]
    """Of the tar.  Valid inside the context manager."""
    size: int
    """Of the tar, in bytes."""
    fetched: LocalBlob
    """What has been fetched, at its place in the blob: at least the table of contents."""


Blob: TypeAlias = LocalBlob | StreamedBlob | BlockingBlob | SpooledBlob | PartialBlob


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """One manifest with its config, both verified against their digests.  Nothing of the layers has been read."""

    reference: str
    """Where it was found, as a user would spell it."""
    manifest: Manifest
    config: ImageConfig | None
    """None for an artifact."""
    config_raw: bytes = field(repr=False)
    """The bytes of the config blob, whatever it is."""
    layers: tuple[ImageLayer, ...]
    """Lowest first, and checked to fit the config."""
    manifest_made: bool = False
    """The source has no manifest (a docker-archive, say), and this one was made of what it has."""


class ImageSource(Protocol):
    """A place that images come from: a directory, an archive, a registry.  `pull` takes any object that has this form.

    An implementation

    * finds one image by `resolve`, and *verifies* its documents: manifest and config have been compared with their
      digests when it returns (`verify_content`, `parse_manifest`, `parse_config` and `image_layers` in
      `composefs_async.oci.documents` do that).  It is called once for an import, before any blob is opened.
    * opens blobs by `open_blob`, any number at once, each perhaps more than once.  The importer verifies their content,
      packed and unpacked; the source only compares the size, if it knows one.  What the media type says about
      compression is not believed: the first bytes tell.
    * does its blocking work in worker threads, runs on asyncio and trio if it uses AnyIO, can be cancelled at every
      await, and raises the errors that are named below (`OSError` for a disk that fails).

    Who makes a source closes it.  `pull` opens no more blobs once it has returned or raised.
    """

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find one image and read its documents.  Checks all there is to check before a layer is read.

        Without *tag* and *digest* it is the image that the source was made for, or the only one that it has.

        Args:
            tag: its name in the source.
            digest: of its manifest, or of an index that has it.  A manifest named so is taken whatever its
                platform is, unless *platform* is given too.
            platform: to take instead of this machine's.

        Raises:
            ImageNotFoundError: there is no such image, or none for the platform.
            OciError: a document is not valid, or several images fit.
            DigestMismatchError: a document is not what its digest says.
            TransportError: a document cannot be had.
        """
        ...

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Open a blob of a resolved image, valid in the block; its size has been compared, its digest not.

        A `LocalBlob` is read fastest; a `BlockingBlob` is read in worker threads, a `StreamedBlob` on the event loop,
        a `SpooledBlob` in worker threads after a wait on the event loop.

        Raises:
            OciError: it has another size.
            TransportError: it cannot be had.
            DigestMismatchError: at the end of the block, where that failed: other bytes came than should have.  With a
                ``host``, opening it once more may bring the right ones.
        """
        ...

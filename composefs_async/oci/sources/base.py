"""What an import needs of a place that images come from.

Owns the protocol and its values.  A source resolves one name to verified documents, and opens blobs that
are *not* verified: the importer hashes them while it reads them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from ..documents import Descriptor, ImageConfig, ImageLayer, Manifest
from ..platforms import Platform

__all__ = ["Blob", "ImageSource", "LocalBlob", "ResolvedImage", "StreamedBlob"]


@dataclass(frozen=True, slots=True)
class LocalBlob:
    """A blob in a regular file, which worker threads can read themselves."""

    fd: int
    """Open for reading at offset 0; valid inside the context manager, which closes it."""
    size: int
    """In bytes; as the descriptor says."""
    path: str
    """For messages."""


@dataclass(frozen=True, slots=True)
class StreamedBlob:
    """A blob that arrives."""

    chunks: AsyncIterator[bytes]
    """Of any length but 0; never more than *size* bytes together.  Valid inside the context manager."""
    size: int
    """In bytes; as the descriptor says."""


Blob: TypeAlias = LocalBlob | StreamedBlob


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


class ImageSource(Protocol):
    """A place that images come from: a directory, a registry."""

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find one image and read its documents.  Checks all there is to check before a layer is read.

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
        """Open a blob of a resolved image; its size has been compared, its digest not.

        Raises:
            OciError: it has another size.
            TransportError: it cannot be had.
        """
        ...

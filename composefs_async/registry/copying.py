"""Images from one registry or image directory to another, bit for bit.

Owns what is copied, and in which order: blobs, then the manifests that need them, then the indexes that need those.
Digests never change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CapacityLimiter, create_task_group

from .._aio.groups import single_error
from ..errors import OciError
from ..oci.documents import MANIFEST_TYPES, Descriptor, parse_index, parse_manifest
from ..oci.platforms import Candidate, Platform, choose
from .content import Content
from .manifests import FetchedDocument

__all__ = ["Copied", "Destination", "Source", "copy_image"]

_AT_ONCE = 4
_MAX_DEPTH = 4


class Source(Protocol):
    """Where images are copied from."""

    name: str
    """For messages."""

    async def top(self) -> FetchedDocument:
        """What the reference names."""
        ...

    async def document(self, digest: str) -> FetchedDocument:
        """A manifest or index by its digest."""
        ...

    def content(self, descriptor: Descriptor) -> Content:
        """A blob."""
        ...

    def referrers(self, digest: str) -> AsyncIterator[Descriptor]:
        """What refers to a manifest."""
        ...


class Destination(Protocol):
    """Where images are copied to."""

    async def has_document(self, document: FetchedDocument) -> bool:
        """Whether it has a manifest or index, and so all that this needs."""
        ...

    async def put_blob(self, content: Content) -> str:
        """Bring a blob, unless it is there; returns how, as `upload.How`."""
        ...

    async def put_document(self, document: FetchedDocument, top: bool) -> None:
        """Bring a manifest or index; under the name that was asked for if it is the *top* one."""
        ...


@dataclass(slots=True)
class Copied:
    """What has been copied."""

    digest: str
    """Digest of the manifest or index that has the name."""
    documents: list[str] = field(default_factory=list[str])
    """Digests of manifests and indexes that were brought."""
    blobs: dict[str, str] = field(default_factory=dict[str, str])
    """How each blob came there: ``present``, ``mounted``, ``uploaded``, or ``missing`` if it would have to be."""
    size: int = 0
    """Bytes of blobs that were uploaded, or would be."""


async def copy_image(
    source: Source,
    destination: Destination | None,
    *,
    platform: Platform | None = None,
    referrers: bool = False,
) -> Copied:
    """Copy what *source* names, with everything below it.

    Args:
        destination: None copies nothing and tells what there is to copy.
        platform: take this one's manifest out of an index; the name will stand for it.
        referrers: copy signatures and whatever else refers to the manifests, too.

    Raises:
        ImageNotFoundError: it has not all that it names.
        OciError, TransportError
    """
    top = await source.top()
    if platform is not None and top.is_index:
        entries = parse_index(top.raw, f"index {top.digest}").manifests
        candidates = [
            Candidate(entry.digest, entry.platform, None) for entry in entries if entry.media_type in MANIFEST_TYPES
        ]
        top = await source.document(choose(candidates, platform, what=source.name, tagged=True).digest)
    copying = _Copying(source, destination, referrers)
    await copying.copy(top, 1, top=True)
    copying.result.digest = top.digest
    return copying.result


class _Copying:
    def __init__(self, source: Source, destination: Destination | None, referrers: bool) -> None:
        self._source, self._destination, self._referrers = source, destination, referrers
        self._limiter = CapacityLimiter(_AT_ONCE)
        self.result = Copied("")

    async def copy(self, document: FetchedDocument, depth: int, *, top: bool) -> None:
        if depth > _MAX_DEPTH:
            raise OciError(self._source.name, f"indexes inside indexes are nested deeper than {_MAX_DEPTH}")
        if document.is_index:
            for entry in parse_index(document.raw, f"index {document.digest}").manifests:
                await self.copy(await self._source.document(entry.digest), depth + 1, top=False)
        present = self._destination is not None and await self._destination.has_document(document)
        if not document.is_index and not present:
            await self._blobs(document)
        if self._destination is not None and (top or not present):
            await self._destination.put_document(document, top)
        self.result.documents.append(document.digest)
        if self._referrers:
            async for entry in self._source.referrers(document.digest):
                if entry.digest not in self.result.documents:
                    await self.copy(await self._source.document(entry.digest), depth + 1, top=False)

    async def _blobs(self, document: FetchedDocument) -> None:
        manifest = parse_manifest(document.raw, document.digest)
        wanted = {each.digest: each for each in (manifest.config, *manifest.layers)}
        pending = [each for digest, each in wanted.items() if digest not in self.result.blobs]
        with single_error():
            async with create_task_group() as tasks:
                for descriptor in sorted(pending, key=lambda each: -each.size):
                    self.result.blobs[descriptor.digest] = "missing"
                    tasks.start_soon(self._blob, descriptor)

    async def _blob(self, descriptor: Descriptor) -> None:
        async with self._limiter:
            how = "missing"
            if self._destination is not None:
                how = await self._destination.put_blob(self._source.content(descriptor))
            self.result.blobs[descriptor.digest] = how
            if how in ("missing", "uploaded"):
                self.result.size += descriptor.size

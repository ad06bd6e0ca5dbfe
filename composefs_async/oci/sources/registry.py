"""Images in registries as a source: ``docker://HOST/NAME[:TAG][@DIGEST]``.

Owns the way from a reference to verified documents, and from a layer's descriptor to a file in which it arrives.  Does
not own the protocol (`composefs_async.registry`), nor what the repository remembers of earlier pulls (`oci.origins`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from anyio import CancelScope, current_time, sleep

from ..._aio.to_thread import in_thread
from ...errors import DigestMismatchError, FormatError, ImageNotFoundError, IntegrityError, OciError, TransportError
from ...progress import BytesFetched, ProgressCallback, ProgressEvent
from ...registry.access import Access, Transfer
from ...registry.download import Download, Fetched
from ...registry.manifests import FetchedDocument
from ...registry.reading import head_manifest, manifest, small_blob
from ...registry.reference import Reference, parse_reference
from ...registry.session import Place, Session
from ...registry.signatures import check_signatures
from ...registry.spool import Spool
from ..documents import (
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    content_hasher,
    image_layers,
    parse_config,
    parse_index,
    parse_manifest,
    verify_content,
)
from ..jsondoc import brief
from ..limits import Limits
from ..platforms import Candidate, Platform, choose
from .base import Blob, ImageSource, LocalBlob, PartialBlob, ResolvedImage, SpooledBlob
from .chunked.assembly import Contents
from .chunked.toc import find_positions
from .partial import Partial

__all__ = ["Known", "RegistrySource", "check_reference", "open_reference", "open_registry"]

_MAX_DEPTH = 4
"""Of indexes inside indexes."""
_EMPTY = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""The digest of ``{}``, which artifacts have in the place of a config."""
_IN_MEMORY = 1 << 20
"""Bytes of a blob that is not worth a file with a name."""
_LOCK_POLL, _LOCK_PATIENCE = 0.2, 30.0
"""Seconds: another process is waited for while its download moves."""

Known: TypeAlias = Callable[[str, Platform | None], Awaitable[ResolvedImage | None]]
"""The image that a digest, of a manifest or an index, stands for on a platform, if its documents are at hand."""


def check_reference(reference: str) -> None:
    """Check the spelling of ``docker://HOST/NAME[:TAG][@DIGEST]``."""
    parse_reference(reference)


def open_reference(reference: str, limits: Limits) -> AbstractAsyncContextManager[ImageSource]:
    """Open the image that a reference means, with what podman would use, and no files for what arrives."""
    return open_registry(reference, limits=limits)


@asynccontextmanager
async def open_registry(
    reference: str,
    *,
    access: Access | None = None,
    transfer: Transfer | None = None,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
    spool_directory: Path | None = None,
    known: Known | None = None,
    contents: Contents | None = None,
) -> AsyncIterator[RegistrySource]:
    """Open the registry that *reference* names; its connections are closed at the end of the block.

    Args:
        spool_directory: for layers on their way; without one they are in memory.
        known: spares requests for documents that are at hand.
        contents: spares fetching files of layers that are at hand.

    Raises:
        InvalidNameError: the reference is not spelled right.
        TransportError: a file with configuration cannot be understood.
    """
    parsed = parse_reference(reference)
    session = await Session.open(access or Access(), transfer or Transfer(), progress)
    try:
        yield RegistrySource(session, parsed, limits or Limits(), spool_directory, known, contents)
    finally:
        await session.aclose()


class RegistrySource:
    """One image of a registry; an `ImageSource`."""

    layers_at_once = 4
    """While some wait for the network others are unpacked."""

    def __init__(
        self,
        session: Session,
        reference: Reference,
        limits: Limits,
        spool_directory: Path | None = None,
        known: Known | None = None,
        contents: Contents | None = None,
    ) -> None:
        self._contents = contents if session.transfer.partial and not session.transfer.keep_blobs else None
        self._whole: set[str] = set()
        self._session, self._reference, self._limits = session, reference, limits
        self._spools = session.transfer.spool_directory or spool_directory if session.transfer.spool else None
        self._known = known
        self._places: list[Place] = []
        self._names: dict[str, str] = {}
        self._damaged: set[str] = set()
        self.top_digest: str = ""
        """What the reference stood for: a manifest, or the index that it was chosen from."""
        self.host: str = ""
        """That the image came from."""
        self.fetched: int = 0
        """Bytes of layers from the network."""
        self.resumed: int = 0
        """Bytes of layers that an earlier process had left."""

    # -- documents -----------------------------------------------------------------------------

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find the image, as `ImageSource.resolve` says; a tag costs one request if all that it means is at hand."""
        reference = self._reference
        if tag is not None:
            reference = reference.with_tag(tag)
        if digest is not None:
            reference = reference.with_digest(digest)
        policy, demands = await self._session.demands(reference)

        async def find(place: Place) -> ResolvedImage | FetchedDocument:
            return await self._find(place, reference, platform)

        place, found = await self._session.first(reference, find)
        self._places = self._from(reference, place)
        self.host = place.endpoint.host
        if policy is not None and demands:
            await check_signatures(self._session, self._places, reference, self.top_digest, policy, demands)
        image = found if isinstance(found, ResolvedImage) else await self._image(reference, found, platform)
        self._names = {layer.descriptor.digest: layer.name for layer in image.layers}
        return image

    def _from(self, reference: Reference, chosen: Place) -> list[Place]:
        """The place that has the manifest, and those after it."""
        places = self._session.places(reference)
        return places[places.index(chosen) :]

    async def _find(
        self, place: Place, reference: Reference, platform: Platform | None
    ) -> ResolvedImage | FetchedDocument:
        """The image, if it is at hand, or the document that *reference* names."""
        asked = reference
        if reference.digest is None:
            head = await head_manifest(self._session, place, reference)
            if head is not None:
                asked = reference.with_digest(head.digest)
        if asked.digest is not None and self._known is not None:
            image = await self._known(asked.digest, platform)
            if image is not None:
                self.top_digest = asked.digest
                return image
        try:
            document = await manifest(self._session, place, asked)
        except ImageNotFoundError:
            if asked is reference:
                raise
            document = await manifest(self._session, place, reference)  # the tag has moved meanwhile
        self.top_digest = document.digest
        return document

    async def _image(self, reference: Reference, document: FetchedDocument, platform: Platform | None) -> ResolvedImage:
        what = str(reference)
        if document.is_index:
            entry = await self._choose(what, document, platform, 1)
            embedded = _embedded(entry)
            if embedded is None:
                document = await self._document(reference, entry.digest)
            else:
                document = FetchedDocument(entry.digest, entry.media_type, embedded, document.host)
            if document.is_index:
                raise OciError(what, f"the index says that {entry.digest} is a manifest, and it is an index")
        elif platform is not None:
            chosen = parse_manifest(document.raw, document.digest, media_type=document.media_type)
            config = await self._config(chosen)
            found = parse_config(config, chosen.config.digest).platform if chosen.is_container else None
            choose([Candidate(document.digest, found, None)], platform, what=what, tagged=True)
        limit = self._limits.document_size
        found_manifest = parse_manifest(document.raw, document.digest, media_type=document.media_type, limit=limit)
        raw = await self._config(found_manifest)
        parsed = parse_config(raw, found_manifest.config.digest, limit=limit) if found_manifest.is_container else None
        layers = image_layers(found_manifest, parsed)
        if encrypted := next((layer for layer in layers if layer.descriptor.media_type.endswith("+encrypted")), None):
            raise OciError(what, f"layer {encrypted.descriptor.digest} is encrypted, which is not supported")
        return ResolvedImage(what, found_manifest, parsed, raw, layers)

    async def _document(self, reference: Reference, digest: str) -> FetchedDocument:
        """A manifest or index of the same repository."""
        wanted = reference.with_digest(digest)
        return await self._any_place(lambda place: manifest(self._session, place, wanted))

    async def _any_place(self, ask: Callable[[Place], Awaitable[FetchedDocument]]) -> FetchedDocument:
        for place in self._places[:-1]:
            try:
                return await ask(place)
            except (TransportError, ImageNotFoundError, DigestMismatchError):
                continue
        return await ask(self._places[-1])

    async def _choose(self, what: str, document: FetchedDocument, platform: Platform | None, depth: int) -> Descriptor:
        entries = [entry async for entry in self._expand(what, document, depth)]
        known = [entry for entry in entries if entry.media_type in MANIFEST_TYPES]
        if entries and not known:
            raise OciError(what, f"there is no manifest of a known type, only {brief(entries[0].media_type)}")
        candidates = [Candidate(entry.digest, entry.platform, None) for entry in known]
        return known[candidates.index(choose(candidates, platform, what=what, tagged=True))]

    async def _expand(self, what: str, document: FetchedDocument, depth: int) -> AsyncIterator[Descriptor]:
        if depth > _MAX_DEPTH:
            raise OciError(what, f"indexes inside indexes are nested deeper than {_MAX_DEPTH}")
        index = parse_index(document.raw, f"index {document.digest}", media_type=document.media_type)
        for entry in index.manifests:
            if entry.media_type in MANIFEST_TYPES or "index" not in entry.media_type:
                yield entry
                continue
            async for inner in self._expand(what, await self._document(self._reference, entry.digest), depth + 1):
                yield inner

    async def _config(self, found: Manifest) -> bytes:
        config = found.config
        if config.digest == _EMPTY and config.size == 2:
            return b"{}"
        if (embedded := _embedded(config)) is not None:
            return embedded
        if config.size > self._limits.document_size:
            raise OciError(
                f"config {config.digest}",
                f"it has {config.size} bytes, more than the limit of {self._limits.document_size}",
            )
        for place in self._places[:-1]:
            try:
                return await small_blob(self._session, place, config.digest, config.size, config.size)
            except (TransportError, ImageNotFoundError, DigestMismatchError):
                continue
        return await small_blob(self._session, self._places[-1], config.digest, config.size, config.size)

    # -- layers --------------------------------------------------------------------------------

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Open a blob, as `ImageSource.open_blob` says; it is always a `SpooledBlob`."""
        return self._open_blob(descriptor)

    @asynccontextmanager
    async def _open_blob(self, descriptor: Descriptor) -> AsyncIterator[Blob]:
        if not self._places:  # of an image that was at hand
            self._places = self._session.places(self._reference)
        again = descriptor.digest in self._damaged
        places = self._places[-1:] if again else self._places
        spool = await self._spool(descriptor)
        done = False
        try:
            if again:
                await in_thread(spool.empty)
            download = Download(
                self._session,
                places,
                descriptor.digest,
                descriptor.size,
                spool,
                lambda fetched: self._observe(descriptor, fetched),
                single=again,
            )
            try:
                async with download.running():
                    partial = await self._partial(descriptor, download)
                    try:
                        if partial is None:
                            yield SpooledBlob(spool.fd, descriptor.size, spool.path, download.wait)
                        else:
                            async with partial.opened() as chunks:
                                yield PartialBlob(chunks, partial.layer.size, partial.layer.blob)
                    except (FormatError, IntegrityError) as error:
                        if partial is not None:
                            self._whole.add(descriptor.digest)
                            await partial.blame(error, self.host)
                        await self._blame(descriptor, download, error)
                        raise
                done = True
            finally:
                self.fetched += download.received
                self.resumed += spool.resumed
                download.report()
        finally:
            with CancelScope(shield=True):
                await in_thread(spool.drop if done or descriptor.digest in self._damaged else spool.close)

    async def _partial(self, descriptor: Descriptor, download: Download) -> Partial | None:
        """The layer without what is at hand of it; None if all of it is fetched, for whatever reason."""
        name, positions = self._names.get(descriptor.digest, descriptor.digest), find_positions(descriptor)
        if (
            self._contents is None
            or positions is None
            or descriptor.size < self._session.transfer.partial_size
            or name == descriptor.digest  # of an artifact, or not packed
            or descriptor.digest in self._whole | self._damaged
            or download.spool.forgets
            or not download.gives_parts
        ):
            return None
        blob = LocalBlob(download.spool.fd, descriptor.size, download.spool.path)
        return await Partial.begin(self._session, name, blob, positions, download, self._contents, self._limits)

    async def _spool(self, descriptor: Descriptor) -> Spool:
        digest, size, directory = descriptor.digest, descriptor.size, self._spools
        if directory is None or size <= _IN_MEMORY:
            return await in_thread(lambda: Spool.anonymous(digest, size))
        reference = str(self._reference)
        waited_since, moved = current_time(), 0.0
        while current_time() - waited_since < _LOCK_PATIENCE:
            spool = await in_thread(lambda: Spool.open(directory, digest, size, reference))
            if spool is not None:
                return spool
            now_moved = await in_thread(lambda: Spool.moved_at(directory, digest))
            if now_moved != moved:
                waited_since, moved = current_time(), now_moved
            await sleep(_LOCK_POLL)
        return await in_thread(lambda: Spool.anonymous(digest, size, directory))

    def _observe(self, descriptor: Descriptor, fetched: Fetched) -> None:
        event: ProgressEvent = BytesFetched(
            self._names.get(descriptor.digest, descriptor.digest),
            descriptor.digest,
            fetched.received,
            fetched.resumed,
            fetched.total,
            fetched.connections,
        )
        self._session.report(event)

    async def _blame(self, descriptor: Descriptor, download: Download, error: Exception) -> None:
        """Raise that other bytes came than should have, if it was that; then the spool is of no use.

        Raises:
            DigestMismatchError: with the host; without one if it has been fetched twice.
        """
        if not download.can_be_read_again:
            return
        await download.finish()
        found = await in_thread(lambda: _digest_of(download.spool.fd, descriptor))
        if found == descriptor.digest:
            return
        host = ", ".join(sorted(download.hosts)) or self.host
        resumed = download.spool.resumed
        note = f"{resumed} of its bytes were from an earlier pull" if resumed else ""
        what = f"blob {descriptor.digest}"
        if descriptor.digest in self._damaged:
            what, note, host = f"{what} from {host}", "it was fetched twice", ""
        self._damaged.add(descriptor.digest)
        raise DigestMismatchError(what, descriptor.digest, found, host, note) from error


def _embedded(descriptor: Descriptor) -> bytes | None:
    """What a descriptor has of its blob, if that is the blob."""
    if not descriptor.data or len(descriptor.data) != descriptor.size:
        return None
    try:
        verify_content(f"blob {descriptor.digest}", descriptor.data, descriptor.digest)
    except (DigestMismatchError, OciError):
        return None
    return descriptor.data


def _digest_of(fd: int, descriptor: Descriptor) -> str:
    hasher = content_hasher(f"blob {descriptor.digest}", descriptor.digest)
    for piece in _pieces(fd, descriptor.size):
        hasher.update(piece)
    return f"{descriptor.digest.partition(':')[0]}:{hasher.hexdigest()}"


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size and (piece := os.pread(fd, min(1 << 20, size - offset), offset)):
        yield piece
        offset += len(piece)

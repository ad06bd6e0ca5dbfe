"""Images from archives that can be read but once: pipes, sockets, compressed files.  Nothing is spooled.

Which members are layers of the image is known only at the end, but a layer needs nothing but its *name* at the end: so
each member that looks like a layer is stored at once, under no name, with both its digests computed; documents are kept
in memory; then the image is chosen, every digest compared, and `pull` gives the names.  What turns out not to be wanted
stays without a name, for garbage collection.

Owns telling what a member is by its first bytes, and the source that `pull` goes on with.  Does not own cutting the
archive (`archive_stream`), storing layers (`layers`), nor choosing the image (`sources.archive_image`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

from ..._aio.hops import hop
from ...errors import ComposefsError, DigestMismatchError, FormatError, IntegrityError, OciError, TransportError
from ...progress import Message
from ..documents import Descriptor, ImageLayer
from ..limits import Limits
from ..platforms import Platform
from ..sources.archive_image import ArchiveWanted, find_image
from ..sources.arriving import UnpackedBytes
from ..sources.base import Blob, LocalBlob, ResolvedImage, StreamedBlob
from ..sources.members import MemberTable
from ..sources.store import MissingError
from ..tar.header import BLOCK, EntryType, Member
from .archive_stream import ArchiveStream, Body
from .decompress import HEAD_SIZE, Compression, begins_tar, decompressor, detect
from .layers import ImportRun, LayerResult, find_layer, skipped, store_layer
from .unpack import Unpacker

__all__ = ["OnePassArchive", "OnePassSource", "ReadOnce", "Received"]

_DOCUMENTS = 64 << 20
"""Bytes of documents and small blobs of one archive that are kept in memory."""
_LOOK = 256 << 10  # packed bytes that certainly unpack to the first header: a block of zstd has at most 128 KiB


@runtime_checkable
class OnePassSource(Protocol):
    """A source that brings an image's layers before it is known which image it is."""

    async def receive(self, run: ImportRun, platform: Platform | None) -> Received:
        """Store what comes, and find the image.  Publishes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """An image whose layers have been stored, or are small and in memory; an `ImageSource`."""

    image: ResolvedImage
    layers: Mapping[str, LayerResult]
    """Those that have been stored, by the name that they have in the repository."""
    small: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Blobs in memory, by the digests of descriptors."""

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """The image, as `ImageSource.resolve` has it."""
        return self.image

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Blob]:
        """One that is in memory, as `ImageSource.open_blob` has it."""
        content = self.small.get(descriptor.digest)
        if content is None:
            raise TransportError(f"{descriptor.digest} cannot be taken from what is read but once: use a file")
        yield StreamedBlob(_Once(content), len(content))


class _Once:
    """A blob in memory, as it would come."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A member that has been read."""

    size: int
    content: bytes | None = None
    """Of what is kept in memory."""
    layer: LayerResult | None = None
    packed: str = ""
    """The digest of a layer as it came."""
    unpacked: int = 0
    """Bytes of a layer when it is unpacked."""
    error: ComposefsError | None = None
    """Why it could not be stored; of interest if the image needs it."""


class ReadOnce:
    """What is common to sources that are read once: they are none that answers questions.

    Args:
        reference: for messages.
    """

    def __init__(self, reference: str) -> None:
        self.reference: str = reference

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Refuse: which image it is, is known only when all has been read.

        Raises:
            OciError: always.
        """
        raise OciError(self.reference, "it can be read but once, by a pull; use an uncompressed file")

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Refuse, as `resolve`."""
        raise OciError(self.reference, "it can be read but once, by a pull; use an uncompressed file")


class OnePassArchive(ReadOnce):
    """An archive that is read once, by `pull`.

    Args:
        source: the bytes of the archive, packed or not.
        known: the diff_ids of the image, if somebody knows them: when the repository has all of them, they are compared
            and not stored again.
    """

    def __init__(
        self, source: AsyncIterator[bytes], wanted: ArchiveWanted, limits: Limits, known: Sequence[str] = ()
    ) -> None:
        super().__init__(wanted.reference)
        self._source, self._wanted, self._limits, self._known = source, wanted, limits, known

    async def receive(self, run: ImportRun, platform: Platform | None) -> Received:
        """Store what comes, and find the image; see `OnePassSource`.

        Raises:
            As `ImageSource.resolve`; and `TarError`, `CompressionError` for the archive.
        """
        run.report(Message(f"{self._wanted.reference} is read once; which image it is, is known at the end"))
        unpacked = UnpackedBytes(self._source, self._limits)
        return await _Receiving(run, self._wanted, self._limits).run(unpacked, platform, self._known)


class _Receiving:
    def __init__(self, run: ImportRun, wanted: ArchiveWanted, limits: Limits) -> None:
        self._run, self._wanted, self._limits = run, wanted, limits
        self._table: MemberTable[_Arrived] = MemberTable(wanted.reference)
        self._kept = 0
        self._here: dict[str, LayerResult] = {}  # layers of the image, if all are there

    async def run(self, source: AsyncIterator[bytes], platform: Platform | None, known: Sequence[str]) -> Received:
        present = [await self._present(diff_id) for diff_id in dict.fromkeys(known)]
        if None not in present:
            self._here = {layer.diff_id: layer for layer in present if layer is not None}
        stream = ArchiveStream(source)
        while (member := await stream.next_member()) is not None:
            arrived = await self._take(member, stream) if member.type is EntryType.FILE else _Arrived(0)
            self._table.add(member, arrived)
        store = _ArrivedStore(self._wanted.reference, self._table)
        limit = self._limits.document_size
        found = await hop(find_image, store, self._wanted, platform, limit, store.unpacked_size)
        return self._received(found.image, found.members)

    # -- members -------------------------------------------------------------------------------

    async def _take(self, member: Member, stream: ArchiveStream) -> _Arrived:
        head = await stream.peek(_LOOK if _looks_packed(await stream.peek(HEAD_SIZE)) else BLOCK)
        if await hop(_is_layer, head, self._limits):
            return await self._store(member, stream)
        if member.size <= self._limits.document_size:
            self._kept += member.size
            if self._kept > _DOCUMENTS:
                raise OciError(self._wanted.reference, f"its documents have more than {_DOCUMENTS} bytes together")
            return _Arrived(member.size, content=await stream.peek(member.size))
        reason = "it is no layer, and too large to be kept in memory; use an uncompressed file"
        return _Arrived(member.size, error=OciError(self._path(member), reason))

    async def _store(self, member: Member, stream: ArchiveStream) -> _Arrived:
        body, run = Body(stream), self._run
        name = member.path.rpartition(b"/")[2].removesuffix(b".tar").decode("ascii", "replace")
        present = await self._present(f"sha256:{name}")
        if present is not None or self._here:
            digest, size = await _hashed(body)
            layer = self._here.get(digest) or present
            if layer is None or digest != layer.diff_id:
                error = DigestMismatchError(self._path(member), layer.diff_id if layer else name, digest)
                return _Arrived(member.size, packed=digest, error=error)
            return _Arrived(member.size, layer=layer, packed=digest, unpacked=size)
        unpacker = Unpacker(run.state, body, None, pack=True, limits=self._limits)
        try:
            result = await store_layer(run, None, unpacker, member.size, label=self._path(member))
        except (FormatError, IntegrityError) as error:
            return _Arrived(member.size, error=error)
        await run.lease(result.diff_id, result.stream_id)
        return _Arrived(member.size, layer=result, packed=unpacker.digests[0], unpacked=unpacker.bytes_unpacked)

    async def _present(self, digest: str) -> LayerResult | None:
        """The layer of that diff_id if the repository has it: archives of skopeo and podman name layers so."""
        if self._run.verify:  # what arrives anyway is read, and takes the place of what is there
            return None
        try:
            found = await find_layer(self._run.state, digest)
        except ComposefsError:
            return None
        if found is None:
            return None
        await self._run.lease(digest, found)
        return skipped(self._run, digest, found)

    def _path(self, member: Member) -> str:
        return f"{self._wanted.reference}: {member.path.decode('utf-8', 'backslashreplace')}"

    # -- the image -----------------------------------------------------------------------------

    def _received(self, image: ResolvedImage, members: Mapping[str, str]) -> Received:
        layers: dict[str, LayerResult] = {}
        small: dict[str, bytes] = {}
        for layer in image.layers:
            descriptor = layer.descriptor
            arrived = self._table.find(members[descriptor.digest])
            if arrived is None:
                raise MissingError(f"{self._wanted.reference}: {members[descriptor.digest]} is missing")
            if arrived.error is not None:
                raise arrived.error
            if not image.manifest_made and arrived.size != descriptor.size:
                raise OciError(
                    f"blob {descriptor.digest}", f"it has {arrived.size} bytes, its descriptor says {descriptor.size}"
                )
            if arrived.content is not None:
                small[descriptor.digest] = arrived.content
            elif arrived.layer is not None:
                _compare(image, layer, arrived)
                layers[layer.name] = arrived.layer
        return Received(image, layers, small)


def _compare(image: ResolvedImage, layer: ImageLayer, arrived: _Arrived) -> None:
    """What came must have the digests that it is known by; the packed one first, as it explains the other."""
    assert arrived.layer is not None
    digest = layer.descriptor.digest
    if not image.manifest_made and arrived.packed != digest:
        raise DigestMismatchError(f"layer blob {digest}", digest, arrived.packed)
    if arrived.layer.diff_id != layer.name:
        if image.config is None:
            raise TransportError(
                f"{digest} is a packed blob, and cannot be taken from what is read but once: use a file"
            )
        raise DigestMismatchError(f"unpacked layer {layer.name}", layer.name, arrived.layer.diff_id)


class _ArrivedStore:
    """The documents that have come, as a `BlobStore`."""

    def __init__(self, place: str, table: MemberTable[_Arrived]) -> None:
        self._place, self._table = place, table

    def path(self, name: str) -> str:
        return f"{self._place}: {name}"

    def has(self, name: str) -> bool:
        return self._table.find(name) is not None

    def read(self, name: str, limit: int) -> bytes:
        arrived = self._arrived(name)
        if arrived.content is None or len(arrived.content) > limit:
            raise OciError(self.path(name), f"it is larger than the limit of {limit} bytes, or no document")
        return arrived.content

    def open(self, name: str) -> AbstractContextManager[LocalBlob]:
        raise TransportError(f"{self.path(name)} has gone by")

    def unpacked_size(self, name: str) -> int:
        arrived = self._arrived(name)
        if arrived.error is not None:
            raise arrived.error
        return arrived.unpacked if arrived.content is None else len(arrived.content)

    def _arrived(self, name: str) -> _Arrived:
        arrived = self._table.find(name)
        if arrived is None:
            raise MissingError(f"{self.path(name)} is missing")
        return arrived


async def _hashed(body: Body) -> tuple[str, int]:
    """The digest of a member, and its size."""
    hasher, size = hashlib.sha256(), 0
    async for piece in body:
        await hop(hasher.update, piece)
        size += len(piece)
    return f"sha256:{hasher.hexdigest()}", size


# -- what a member is ----------------------------------------------------------------------------


def _looks_packed(head: bytes) -> bool:
    """Whether a member looks packed, in a supported way or not."""
    try:
        return detect(head) is not Compression.NONE
    except FormatError:
        return True


def _is_layer(head: bytes, limits: Limits) -> bool:
    """Whether a member that begins so, packed or not, is a tar; blocks."""
    try:
        compression = detect(head)
        if compression is not Compression.NONE:
            unpacking = decompressor(
                compression, max_size=limits.max_layer_size, max_ratio=limits.max_ratio, max_window=limits.max_window
            )
            unpacking.feed(head)
            buffer = memoryview(bytearray(BLOCK))
            head = bytes(buffer[: unpacking.read_into(buffer)])
    except FormatError:
        return False
    return len(head) >= BLOCK and begins_tar(head[:BLOCK])

"""From whatever delivers a layer's bytes to unpacked bytes in a buffer, hashed on both sides.

Local files, and what a function brings, are read in the worker thread that unpacks them; everything else is awaited on
the event loop, gathered, and then unpacked in a worker thread.  How a layer is packed is told by its first bytes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, Self, TypeAlias, runtime_checkable

from anyio import EndOfStream
from anyio.lowlevel import checkpoint

from ..._aio.hops import write_hop
from ..._repo.batch import Buffer
from ..._repo.state import RepoState
from ...errors import CompressionError, OciError
from ..limits import Limits
from ..sources.base import BlockingBlob, LocalBlob, PartialBlob, SpooledBlob, StreamedBlob
from .decompress import HEAD_SIZE, Compression, Decompressor, decompressor, detect, for_media_type
from .hashes import BlobHashes

__all__ = ["ByteSource", "Unpacker", "byte_source", "opened_source"]

_READ_SIZE = 512 << 10
_PIECES_BETWEEN = 16
"""Two looks at whether others want to run."""
_MOST_PIECES = 16
"""Of packed bytes for one call: there are archives, of empty members say, that unpack to nothing for gigabytes."""


@runtime_checkable
class Readable(Protocol):
    """Source of bytes with an async ``read``: files of AnyIO and aiofiles, and asyncio's StreamReader."""

    async def read(self, size: int, /) -> bytes:
        """Return at most *size* bytes, and nothing only at the end."""
        ...


@runtime_checkable
class Receivable(Protocol):
    """Source of bytes with an async ``receive``: AnyIO's byte streams."""

    async def receive(self, max_bytes: int = ..., /) -> bytes:
        """Return at least one and at most *max_bytes* bytes; raise `anyio.EndOfStream` at the end."""
        ...


ByteSource: TypeAlias = (
    AsyncIterable[bytes] | Readable | Receivable | LocalBlob | StreamedBlob | BlockingBlob | SpooledBlob | PartialBlob
)
Delivery: TypeAlias = LocalBlob | BlockingBlob | SpooledBlob | AsyncIterator[bytes]


def byte_source(source: ByteSource) -> Delivery:
    """One form for all of them.  Files are read in blocks, although iterating over them gives lines."""
    if isinstance(source, LocalBlob | BlockingBlob | SpooledBlob):
        return source
    if isinstance(source, StreamedBlob | PartialBlob):
        return source.chunks
    if isinstance(source, Readable):
        return _Pieces(source.read)
    if isinstance(source, Receivable):
        return _Pieces(source.receive)
    return aiter(source)


class _Pieces:
    """What a function brings, up to its end.  Not a generator: nobody has to close it."""

    def __init__(self, receive: Callable[[int], Awaitable[bytes]]) -> None:
        self._receive = receive

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            coming = self._receive(_READ_SIZE)
            if isinstance(coming, bytes | bytearray | memoryview):
                raise TypeError("a source is needed that is awaited; for an open file there is oci.LocalBlob")
            piece = await coming
        except EndOfStream:
            raise StopAsyncIteration from None
        if not piece:
            raise StopAsyncIteration
        return piece


@asynccontextmanager
async def opened_source(source: ByteSource) -> AsyncIterator[Delivery]:
    """`byte_source` for the time of a block, which closes what iterating over *source* has made, but not *source*."""
    chunks = byte_source(source)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator) and chunks is not source and not isinstance(source, StreamedBlob):
            await chunks.aclose()


class _LocalReader:
    """Reads a blob in the calling thread, one call at a time."""

    def __init__(self, blob: LocalBlob | BlockingBlob) -> None:
        self._blob, self._at, self._head = blob, 0, b""

    def peek(self) -> bytes:
        """The first bytes, which will be read once more."""
        buffer, filled = bytearray(HEAD_SIZE), 0
        while filled < HEAD_SIZE and (size := self._take(memoryview(buffer)[filled:])):
            filled += size
        self._head = bytes(buffer[:filled])
        return self._head

    def readinto(self, view: memoryview) -> int:
        if not self._head:
            return self._take(view)
        size = min(len(self._head), len(view))
        view[:size], self._head = self._head[:size], self._head[size:]
        return size

    def read(self) -> Buffer:
        if self._head:
            head, self._head = self._head, b""
            return head
        if isinstance(self._blob, LocalBlob):
            data = os.pread(self._blob.fd, self._room(_READ_SIZE), self._blob.offset + self._at)
            self._at += len(data)
            return data
        buffer = bytearray(_READ_SIZE)
        return memoryview(buffer)[: self._blob.readinto(memoryview(buffer))]

    def _take(self, view: memoryview) -> int:
        if isinstance(self._blob, BlockingBlob):
            return self._blob.readinto(view)
        size = os.preadv(self._blob.fd, [view[: self._room(len(view))]], self._blob.offset + self._at)
        self._at += size
        return size

    def _room(self, size: int) -> int:
        return min(size, self._blob.size - self._at)


class Unpacker:
    """Unpacks one layer, piece by piece, and knows in the end whether it was the right one.

    Args:
        source: as `byte_source` gives it; stays open.
        digest: of the unpacked bytes; None if it is to be computed, see `digests`.
        media_type: must be that of a layer; how it is packed is told by the first bytes.
        packed_digest: of the bytes as shipped, if that is known.
        raw: take the bytes as they are, whatever they look like.
        pack: compute the digest of the bytes as shipped, too.
    """

    def __init__(
        self,
        state: RepoState,
        source: Delivery,
        digest: str | None,
        *,
        media_type: str | None = None,
        packed_digest: str | None = None,
        raw: bool = False,
        pack: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._state, self._source, self._limits = state, source, limits or Limits()
        self._claimed = for_media_type(media_type) if media_type else None
        if media_type and not raw and self._claimed is None:
            raise OciError(f"layer {digest}", f"it is no tar layer but {media_type}")
        self._compression = Compression.NONE if raw else None
        self._digest, self._same = digest, pack or packed_digest == digest
        self._hashes = BlobHashes(digest, packed_digest, pack=pack)
        self._reader = _LocalReader(source) if isinstance(source, LocalBlob | BlockingBlob) else None
        self._decompressor: Decompressor | None = None
        self._exhausted = False
        self.ended: bool = False
        """The last call of `fill` or `fill_here` has brought the end."""
        self.bytes_read: int = 0
        """Packed bytes taken from the source so far."""
        self.bytes_unpacked: int = 0
        """Bytes that `hash` has counted in."""

    async def fill(self, view: memoryview) -> tuple[int, Sequence[Buffer]]:
        """Unpack into *view*, until it is full or the end has come, or after 8 MiB of packed bytes.

        Returns:
            How many bytes, and the packed pieces that were read for them, to be given to `hash`.
        """
        if isinstance(self._source, LocalBlob | BlockingBlob):
            return await write_hop(self._state, self.fill_here, view)
        if isinstance(self._source, SpooledBlob):
            return await self._fill_spooled(self._source, view)
        packed: list[Buffer] = []
        filled = 0
        while True:
            if self._decompressor is not None:
                data = packed[-1] if packed else b""
                filled += await write_hop(self._state, self._unpack, data, view[filled:])
                if self._is_enough(filled, view, packed):
                    return filled, packed
            packed.append(self._take(await self._gather(self._source)))

    async def _fill_spooled(self, blob: SpooledBlob, view: memoryview) -> tuple[int, Sequence[Buffer]]:
        packed: list[Buffer] = []
        filled = 0
        while True:
            until = await blob.wait(self.bytes_read)
            while self._decompressor is None and until < min(HEAD_SIZE, blob.size):
                until = await blob.wait(until)
            filled += await write_hop(self._state, self._unpack_spooled, blob, until, view[filled:], packed)
            if self._is_enough(filled, view, packed):
                return filled, packed

    def _is_enough(self, filled: int, view: memoryview, packed: Sequence[Buffer]) -> bool:
        self.ended = self._exhausted and filled < len(view)
        return filled == len(view) or self._exhausted or len(packed) >= _MOST_PIECES

    async def _gather(self, source: AsyncIterator[bytes]) -> bytes:
        """Enough packed bytes to be worth a hop; none at the end."""
        pieces: list[bytes] = []
        size = taken = 0
        while size < _READ_SIZE and (piece := await anext(source, None)) is not None:
            taken += 1
            if piece:
                pieces.append(piece)
                size += len(piece)
            if taken % _PIECES_BETWEEN == 0:  # a source that never waits must not keep the event loop to itself
                await checkpoint()
        return b"".join(pieces)

    def _take(self, data: Buffer) -> Buffer:
        """Note that *data* has been read."""
        self.bytes_read += len(data)
        self._exhausted = not data
        if self._decompressor is None:
            self._decompressor = decompressor(
                self._detected(data),
                max_size=self._limits.max_layer_size,
                max_ratio=self._limits.max_ratio,
                max_window=self._limits.max_window,
            )
        return data

    def _detected(self, head: Buffer) -> Compression:
        """How the source is packed, by its first bytes unless that is known."""
        if self._compression is None:
            self._compression = detect(memoryview(head), self._claimed)
            if self._compression is Compression.NONE and self._same:
                # What is not packed has both digests from the same bytes: hash them once.
                self._hashes = BlobHashes(self._digest)
        return self._compression

    # -- in worker threads ---------------------------------------------------------------------

    @property
    def local(self) -> bool:
        """The source is read in the calling thread, so that `fill_here` may be called."""
        return self._reader is not None

    def fill_here(self, view: memoryview) -> tuple[int, Sequence[Buffer]]:
        """What `fill` does, in the calling thread."""
        assert self._reader is not None
        packed: list[Buffer] = []
        try:
            if self._compression is None:
                self._detected(self._reader.peek())
            if self._compression is Compression.NONE:
                return self._read_plain(self._reader, view), packed
            return self._unpack_local(self._reader, view, packed), packed
        except OSError as error:
            if isinstance(self._source, LocalBlob):
                error.filename = self._source.path
            raise

    def _unpack_local(self, reader: _LocalReader, view: memoryview, packed: list[Buffer]) -> int:
        filled = 0
        while True:
            if self._decompressor is not None:
                filled += self._unpack(packed[-1] if packed else b"", view[filled:])
                if self._is_enough(filled, view, packed):
                    return filled
            packed.append(self._take(reader.read()))

    def _unpack_spooled(self, blob: SpooledBlob, until: int, view: memoryview, packed: list[Buffer]) -> int:
        """Unpack what has come, up to the byte *until*; new pieces are added to *packed*."""
        filled = 0
        data: Buffer = b""
        try:
            while True:
                if self._decompressor is not None:
                    filled += self._unpack(data, view[filled:])
                    if self._is_enough(filled, view, packed):
                        return filled
                if self.bytes_read == until < blob.size:
                    return filled
                data = self._take(os.pread(blob.fd, min(_READ_SIZE, until - self.bytes_read), self.bytes_read))
                packed.append(data)
        except OSError as error:
            error.filename = blob.path
            raise

    def _read_plain(self, reader: _LocalReader, view: memoryview) -> int:
        filled = 0
        while filled < len(view) and (size := reader.readinto(view[filled:])):
            filled += size
        self.ended = filled < len(view)
        self.bytes_read += filled
        if self.bytes_read > self._limits.max_layer_size:
            raise CompressionError(f"the limit of {self._limits.max_layer_size} bytes is exceeded", self.bytes_read)
        return filled

    def _unpack(self, data: Buffer, view: memoryview) -> int:
        assert self._decompressor is not None
        if data:
            self._decompressor.feed(data)
        filled = self._decompressor.read_into(view)
        if self._exhausted and filled < len(view):
            self._decompressor.finish()
        return filled

    def hash(self, packed: Sequence[Buffer], content: memoryview) -> None:
        """Count in what `fill` brought, in its order."""
        self.bytes_unpacked += len(content)
        self._hashes.update(content, (content,) if self._compression is Compression.NONE else packed)

    def verify(self) -> None:
        """Compare both digests.

        Raises:
            DigestMismatchError
        """
        self._hashes.verify()

    @property
    def digests(self) -> tuple[str, str]:
        """At the end: digests of the bytes as shipped, if asked for and another one, and of the unpacked bytes."""
        packed, content = self._hashes.digests()
        return packed or content, content

"""The members of a tar archive that comes but once, one after another.

Owns cutting the stream at members.  Does not own what headers mean (`tarheader`), nor what members are for.  Memory is
a few pieces of the source.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Self

from ...errors import TarError
from ..tar.header import BLOCK, HeaderParser, Member

__all__ = ["ArchiveStream", "Body"]


class ArchiveStream:
    """Reads an archive from *source*; `next_member`, then perhaps `peek` and `Body`, then `next_member` again."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._rest = memoryview(b"")
        self._offset = 0  # of the rest
        self._parser = HeaderParser()
        self._left = self._padding = 0  # of the member's data
        self._name = ""
        self._ended = False

    async def next_member(self) -> Member | None:
        """Pass over what is left of a member, and return the next one; None at the end.

        Raises:
            TarError: the archive is damaged, or cut off.
        """
        while True:
            await self._skip(self._left + self._padding)
            self._left = self._padding = 0
            await self._gather(BLOCK)
            header = bytes(self._rest[:BLOCK])
            if len(header) < BLOCK or not any(header):
                await self._finish(header)
                return None
            at = self._offset
            self._drop(BLOCK)
            parsed = self._parser.parse(header, at)
            self._left, self._padding = parsed.size, -parsed.size % BLOCK
            if parsed.member is not None:
                self._name = os.fsdecode(parsed.member.path)
                return parsed.member
            if parsed.collect:
                self._parser.extension(await self.peek(parsed.size))

    async def _finish(self, header: bytes) -> None:
        if len(header) % BLOCK or (not header and not self._offset):
            what = f"the archive is cut off after {self._name!r}" if self._name else "it is no tar archive"
            raise TarError(what, self._offset)
        self._parser.check_end(self._offset)
        while await self._more():  # whoever writes into a pipe is to see it read
            self._drop(len(self._rest))

    async def peek(self, size: int) -> bytes:
        """The next *size* bytes of the member, which stay to be read; fewer if it has not so many.

        Raises:
            TarError: the archive is cut off.
        """
        size = min(size, self._left)
        await self._gather(size)
        if len(self._rest) < size:
            raise self._cut_off()
        return bytes(self._rest[:size])

    async def take(self) -> bytes | None:
        """The next piece of the member's data; None at its end.

        Raises:
            TarError: the archive is cut off.
        """
        if not self._left:
            return None
        if not self._rest and not await self._more():
            raise self._cut_off()
        piece = self._rest[: self._left]
        self._left -= len(piece)
        self._drop(len(piece))
        return piece.obj if isinstance(piece.obj, bytes) and len(piece.obj) == len(piece) else bytes(piece)

    async def _skip(self, size: int) -> None:
        while size > len(self._rest):
            size -= len(self._rest)
            self._drop(len(self._rest))
            if not await self._more():
                if self._left and size > self._padding:
                    raise self._cut_off()
                return  # padding at the end of an archive may be missing
        self._drop(size)

    async def _gather(self, size: int) -> None:
        """Have *size* bytes at hand, or all that there are."""
        if len(self._rest) >= size:
            return
        pieces, have = [bytes(self._rest)], len(self._rest)
        while have < size and (piece := await anext(self._source, None)) is not None:
            pieces.append(piece)
            have += len(piece)
        self._rest = memoryview(b"".join(pieces))

    async def _more(self) -> bool:
        self._rest = memoryview(await anext(self._source, b"") or b"")
        return bool(self._rest)

    def _drop(self, size: int) -> None:
        self._rest = self._rest[size:]
        self._offset += size

    def _cut_off(self) -> TarError:
        return TarError(f"the archive is cut off in {self._name!r}", self._offset)


class Body:
    """The data of a member of an `ArchiveStream`, from where it stands, as an async iterator."""

    def __init__(self, stream: ArchiveStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._stream.take()
        if piece is None:
            raise StopAsyncIteration
        return piece

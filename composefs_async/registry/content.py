"""A blob that can be read as often as needed, from any byte on: what uploads are made of.

Owns the value, and reading one from memory, from a file, or from a registry while it is sent elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .._aio.to_thread import in_thread
from ..errors import ComposefsError, DigestMismatchError, RegistryError, TransportError
from .exchange import Request, repository_path
from .ranges import Answer, judge, range_header
from .reference import check_digest
from .retrying import PROGRESS, FailedAttemptError
from .session import Place, Session

__all__ = ["Content", "from_bytes", "from_file", "from_registry", "stream_blob"]

_READ_SIZE = 512 << 10


@dataclass(frozen=True, slots=True)
class Content:
    """A blob."""

    digest: str
    size: int
    """In bytes."""
    read: Callable[[int, int], AsyncIterator[bytes]]
    """The bytes from an offset up to before another one."""


def from_bytes(digest: str, content: bytes) -> Content:
    """What is in memory."""

    async def read(start: int, end: int) -> AsyncIterator[bytes]:
        yield content[start:end]

    return Content(digest, len(content), read)


def from_file(digest: str, size: int, path: str | Path) -> Content:
    """What is in a file, which is opened each time it is read."""

    async def read(start: int, end: int) -> AsyncIterator[bytes]:
        file = await in_thread(lambda: open(path, "rb"), discard=lambda late: late.close())  # noqa: SIM115
        try:
            await in_thread(lambda: file.seek(start))
            left = end - start
            while left > 0 and (piece := await in_thread(partial(file.read, min(_READ_SIZE, left)))):
                left -= len(piece)
                yield piece
        finally:
            file.close()

    return Content(digest, size, read)


def from_registry(session: Session, places: Sequence[Place], digest: str, size: int) -> Content:
    """What another registry has; it is fetched while it is sent."""

    def read(start: int, end: int) -> AsyncIterator[bytes]:
        return stream_blob(session, places, digest, size, start, end)

    return Content(digest, size, read)


async def stream_blob(
    session: Session, places: Sequence[Place], digest: str, size: int, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes, None]:
    """A blob in order, over one connection; goes on where one broke.

    Args:
        end: the byte to end before; the size if not given.

    Raises:
        DigestMismatchError: before the last piece of a whole blob, so that nobody takes it for good.
        ImageNotFoundError, RegistryError, AuthenticationError, TransportError
    """
    check_digest(digest)
    stream = _Stream(session, places, digest, size, start, size if end is None else end)
    whole = start == 0 and stream.end == size
    hasher = hashlib.new(digest.partition(":")[0])
    last = b""
    async with aclosing(stream.pieces()) as pieces:
        async for piece in pieces:
            if not whole:
                yield piece
                continue
            hasher.update(piece)
            if last:
                yield last
            last = piece
    if whole:
        found = f"{digest.partition(':')[0]}:{hasher.hexdigest()}"
        if found != digest:
            raise DigestMismatchError(f"blob {digest}", digest, found, stream.host)
        if last:
            yield last


class _Stream:
    def __init__(self, session: Session, places: Sequence[Place], digest: str, size: int, start: int, end: int) -> None:
        self._session, self._places = session, list(places)
        self._digest, self._size, self._start, self.end = digest, size, start, end
        self._skipped = 0
        self.host = ""

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        budget, before = self._session.exchange.budget(), self._start
        while self._start < self.end:
            place = self._places[0]
            what = f"blob {self._digest} of {place.name}"
            try:
                async with aclosing(self._attempt(place, what)) as pieces:
                    async for piece in pieces:
                        self._start += len(piece)
                        yield piece
                if self._start < self.end:
                    error = TransportError(f"{self.host}: the connection broke")
                    raise FailedAttemptError(error, "the connection broke")
            except FailedAttemptError as failure:
                if self._start - before >= PROGRESS:
                    budget.renew()
                before = self._start
                try:
                    await self._session.exchange.pause(budget, failure, what, place.endpoint.host)
                except TransportError:
                    if len(self._places) == 1:
                        raise
                    self._places.pop(0)
                    budget = self._session.exchange.budget()
            except ComposefsError:
                if len(self._places) == 1:
                    raise
                self._places.pop(0)

    async def _attempt(self, place: Place, what: str) -> AsyncGenerator[bytes, None]:
        exchange = self._session.exchange
        asked = not (self._start == 0 and self.end == self._size) and place.endpoint.ranges is not False
        headers = {"Range": range_header(self._start, self.end)} if asked else {}
        target = repository_path(place.path, f"blobs/{self._digest}")
        request = Request(what, place.endpoint, "GET", target, place.path, place.scopes(), headers)
        async with exchange.open(request) as response:
            self.host = response.host
            ranges = response.get_all("content-range")
            verdict = judge(response.status, ranges, response.content_length, self._start, self.end, self._size, asked)
            if verdict.answer is Answer.NO_RANGES:
                place.endpoint.ranges = False
                raise FailedAttemptError(TransportError(f"{what}: it gives no parts of blobs"), "it gives no parts")
            if verdict.answer is Answer.WRONG_SIZE:
                message = f"the registry says {verdict.size} bytes, the manifest {self._size}"
                raise RegistryError(what, response.status, "", host=response.host, message=message)
            if verdict.answer is Answer.REFUSED:
                raise await exchange.refusal(request, response)
            exchange.succeeded(request, response)
            skip = self._start if verdict.answer is Answer.WHOLE else 0
            if self._skipped + skip > self._size:
                message = f"it gives no parts of blobs, so that the rest of {self._size} bytes cannot be had"
                raise RegistryError(what, response.status, "", host=response.host, message=message)
            self._skipped += skip
            left = min(self.end, verdict.end) - self._start
            while left and (piece := await response.next_chunk()):
                data, skip = (piece[skip:], max(0, skip - len(piece))) if skip else (piece, 0)
                data = data[:left]
                left -= len(data)
                if data:
                    yield data

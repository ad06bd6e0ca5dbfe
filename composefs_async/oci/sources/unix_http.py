"""HTTP/1.1 over a Unix socket, as much as Docker's interface needs: one request, one answer, no reuse.

Not a client for foreign servers: the socket belongs to this machine's administrator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import anyio
from anyio import DelimiterNotFound, EndOfStream, IncompleteRead
from anyio.streams.buffered import BufferedByteReceiveStream

from ...errors import TransportError

__all__ = ["Answer", "request"]

_HEAD = 64 << 10  # bytes of status line and headers
_LINE = 256  # bytes of the line before a chunk
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    body: AsyncIterator[bytes]
    """Valid in the block of the request."""

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            TransportError: it is longer than *limit* bytes.
        """
        pieces = bytearray()
        async for piece in self.body:
            pieces += piece
            if len(pieces) > limit:
                raise TransportError(f"an answer is longer than {limit} bytes")
        return bytes(pieces)


@asynccontextmanager
async def request(
    path: str, method: str, target: str, body: AsyncIterator[bytes] | None = None, content_type: str = ""
) -> AsyncIterator[Answer]:
    """Send a request to the server at the socket *path*; the block has the answer.

    Args:
        target: path and query, percent-encoded.
        body: is sent in chunks.

    Raises:
        TransportError: nobody listens, or the server does not speak HTTP.
    """
    try:
        connection = await anyio.connect_unix(path)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror or error}") from error
    async with connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
        try:
            await connection.send(f"{head}\r\n".encode())
            if body is not None:
                async for piece in body:
                    await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                await connection.send(b"0\r\n\r\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it has answered early, and says why
        stream = BufferedByteReceiveStream(connection)
        with _as_transport_errors(path):
            status, headers = _head(await stream.receive_until(b"\r\n\r\n", _HEAD), path)
        yield Answer(status, _Body(stream, headers, path))


def _head(raw: bytes, path: str) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
        raise TransportError(f"{path}: no HTTP server answers there")
    headers = (line.partition(":") for line in lines)
    return int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in headers}


class _Body:
    """The body of an answer.  Not a generator: nobody has to close it."""

    def __init__(self, stream: BufferedByteReceiveStream, headers: dict[str, str], path: str) -> None:
        self._stream, self._path = stream, path
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length", "")
        self._left: int | None = int(length) if length.isdecimal() and not self._chunked else None
        if self._chunked:
            self._left = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._left is None:
            return await anext(self._stream)
        with _as_transport_errors(self._path):
            if not self._left and self._chunked:
                self._left = await self._chunk_size()
                self._chunked = bool(self._left)
            if self._left:
                piece = await self._stream.receive(min(self._left, _PIECE))
                self._left -= len(piece)
                if not self._left and self._chunked:
                    await self._stream.receive_exactly(2)
                return piece
        raise StopAsyncIteration

    async def _chunk_size(self) -> int:
        line = await self._stream.receive_until(b"\r\n", _LINE)
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            size = -1
        if size < 0:
            raise TransportError(f"{self._path}: the answer is damaged")
        return size


class _as_transport_errors:  # noqa: N801
    """A connection that ends early is a `TransportError`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EndOfStream | IncompleteRead | DelimiterNotFound | anyio.BrokenResourceError):
            raise TransportError(f"{self._path}: the answer is cut off or damaged") from error

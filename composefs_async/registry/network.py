"""Sockets and TLS for `httpcore2`, on AnyIO: the same on asyncio, uvloop and trio.

Owns how bytes are read: as many at once as there are, also over TLS, whose records of 16 KiB would otherwise each
take the whole way through the HTTP parser.  The end of a connection that TLS did not announce is an error.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpcore2
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    EndOfStream,
    connect_tcp,
    fail_after,
    sleep,
)
from anyio.abc import SocketAttribute, SocketStream

__all__ = ["Backend"]

_READ_SIZE = 256 << 10
_NetworkErrors = (BrokenResourceError, ClosedResourceError, BusyResourceError, OSError, ssl.SSLError)


@contextmanager
def _mapped(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    """What happens below in the terms of httpcore2."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error) or "timed out") from error
    except _NetworkErrors as error:
        cause = error.__cause__ if isinstance(error, BrokenResourceError) and error.__cause__ else error
        raise other(str(cause) or type(error).__name__) from cause


class Backend(httpcore2.AsyncNetworkBackend):
    """Connects by TCP."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to *host* by TCP within *timeout* seconds."""
        with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError), fail_after(timeout):
            stream = await connect_tcp(host.strip("[]"), port, local_host=local_address)
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return _PlainStream(stream)

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds* on whichever event loop runs."""
        await sleep(seconds)


class _PlainStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError), fail_after(timeout):
            try:
                return await self._stream.receive(_READ_SIZE)
            except EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError), fail_after(timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        secured = _TLSStream(self._stream, ssl_context, server_hostname)
        try:
            with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError), fail_after(timeout):
                await secured.handshake()
        except BaseException:
            await self._stream.aclose()
            raise
        return secured

    def get_extra_info(self, info: str) -> Any:
        return _is_readable(self._stream) if info == "is_readable" else None


class _TLSStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: SocketStream, context: ssl.SSLContext, host: str | None) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._buffer = bytearray(_READ_SIZE)

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError), fail_after(timeout):
            while True:
                filled, ended = self._drain()
                if filled or ended:
                    return bytes(memoryview(self._buffer)[:filled])
                await self._flush()
                await self._receive()

    def _drain(self) -> tuple[int, bool]:
        """Unpack all records that are there; how many bytes, and whether the peer has ended the connection."""
        view, filled = memoryview(self._buffer), 0
        try:
            while filled < len(view):
                count = cast("int", self._tls.read(len(view) - filled, view[filled:]))
                if not count:
                    return filled, True
                filled += count
        except ssl.SSLWantReadError:
            return filled, False
        except ssl.SSLZeroReturnError:
            return filled, True
        except ssl.SSLError:
            if not filled:
                raise
        return filled, False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError), fail_after(timeout):
            view = memoryview(buffer)
            while view:
                try:
                    view = view[self._tls.write(view) :]
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._receive()
                await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._stream.send(self._outgoing.read())

    async def _receive(self) -> None:
        try:
            self._incoming.write(await self._stream.receive(_READ_SIZE))
        except EndOfStream:
            self._incoming.write_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("TLS inside TLS is not supported: reach the proxy by http://")

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._tls
        return _is_readable(self._stream) if info == "is_readable" else None


def _is_readable(stream: SocketStream) -> bool:
    """Whether an idle connection has something to read: that can only be its end."""
    number = stream.extra(SocketAttribute.raw_socket).fileno()
    if number < 0:
        return True
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))

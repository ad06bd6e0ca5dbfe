"""An HTTP/1.1 server that misbehaves as it is told, on AnyIO: for tests of clients.

Owns connections, parsing of requests, and what a `Fault` does to an answer.  Listens on loopback only.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    DelimiterNotFound,
    EndOfStream,
    IncompleteRead,
    create_task_group,
    create_tcp_listener,
    sleep,
    sleep_forever,
)
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from .._aio.groups import single_error

__all__ = ["Answer", "Fault", "FaultyServer", "Seen"]

_HEAD_LIMIT = 64 << 10
_PIECE = 64 << 10
_TLS = b"\x16"
"""The first byte of who wants to speak TLS."""
_ENDS = (BrokenResourceError, ClosedResourceError, DelimiterNotFound, EndOfStream, IncompleteRead, OSError, ValueError)
"""Of connections: whoever is at the other side has gone, or speaks something else."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that has come."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str] = field(hash=False)
    """Names in lower case."""
    body: bytes = field(default=b"", repr=False)

    @property
    def path(self) -> str:
        """Path of the request without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, before a fault is done to it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Fault:
    """What is done to answers whose request fits *match*, a regular expression for ``METHOD TARGET``.

    Members that are None or False do nothing.
    """

    match: str
    times: int = 1
    """How many requests it concerns; -1 is all."""
    skip: int = 0
    """Fitting requests that are spared before."""
    status: int | None = None
    headers: Mapping[str, str] | None = None
    """Added; one that is empty is removed."""
    body: bytes | None = None
    delay: float = 0.0
    """Seconds before the answer."""
    cut: int | None = None
    """Bytes of the body after which *then* happens."""
    then: Literal["close", "reset", "stall"] = "close"
    before_head: bool = False
    """*then* happens instead of an answer."""
    rate: float | None = None
    """Bytes of the body a second."""
    flip: int | None = None
    """The byte of the body that is changed."""
    extra: int = 0
    """Bytes that follow the body, and are announced."""
    endless: bool = False
    """The body never ends, and has no length."""
    ignore_range: bool = False
    """Answer as if no range had been asked for."""
    chunked: bool = False
    """Send the body in chunks, without its length."""
    only_with: str | None = None
    """A header that a request must have for this."""

    def fits(self, seen: Seen) -> bool:
        """Whether the request is one of those; counts it."""
        if self.times == 0 or not re.search(self.match, f"{seen.method} {seen.target}"):
            return False
        if self.only_with is not None and self.only_with not in seen.headers:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1 if self.times > 0 else 0
        return True


Handler = Callable[[Seen], Awaitable[Answer]]


class FaultyServer:
    """Answers requests by *handler*, and then as `faults` say."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        """All requests, in their order."""
        self.sent: int = 0
        """Bytes of bodies."""
        self.open: int = 0
        """Connections."""
        self.most_open: int = 0
        """Connections at once, so far."""
        self.latency: float = 0.0
        """Seconds before each answer."""
        self.rate: float | None = None
        """Bytes a second of each connection."""
        self.address: str = ""
        """HOST:PORT, while it serves."""

    def count(self, match: str) -> int:
        """How many requests fit a regular expression for ``METHOD TARGET``."""
        return sum(bool(re.search(match, f"{seen.method} {seen.target}")) for seen in self.seen)

    @property
    def authorizations(self) -> list[str]:
        """All that came in headers ``Authorization``."""
        return [seen.headers["authorization"] for seen in self.seen if "authorization" in seen.headers]

    @asynccontextmanager
    async def serving(
        self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0
    ) -> AsyncIterator[str]:
        """Serve on a free port while the block runs; the value is the address."""
        listener = await create_tcp_listener(local_host=host, local_port=port)
        number = listener.extra(SocketAttribute.local_port)
        self.address = f"{host}:{number}"
        serving = TLSListener(listener, tls, standard_compatible=False) if tls is not None else listener
        try:
            with single_error():
                async with create_task_group() as tasks:
                    tasks.start_soon(serving.serve, self._guarded)
                    try:
                        yield self.address
                    finally:
                        tasks.cancel_scope.cancel()
        finally:
            with CancelScope(shield=True):
                await listener.aclose()

    async def _guarded(self, stream: ByteStream) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with suppress(*_ENDS):
                await self._connection(stream)
        finally:
            self.open -= 1
            with suppress(*_ENDS), CancelScope(shield=True):
                await stream.aclose()

    async def _connection(self, stream: ByteStream) -> None:
        buffered = BufferedByteReceiveStream(stream)
        while True:
            seen = await _read_request(buffered, stream)
            self.seen.append(seen)
            fault = next((each for each in self.faults if each.fits(seen)), None)
            asked = seen
            if fault is not None and fault.ignore_range:
                kept = {key: value for key, value in seen.headers.items() if key != "range"}
                asked = replace(seen, headers=kept)
            if fault is not None and fault.before_head:
                await sleep(fault.delay)
                await _end(stream, fault.then)
                return
            answer = await self._handler(asked)
            await sleep(self.latency + (fault.delay if fault else 0.0))
            if not await self._answer(stream, seen, answer, fault or Fault("")):
                return

    async def _answer(self, stream: ByteStream, seen: Seen, answer: Answer, fault: Fault) -> bool:
        """Send an answer; False if the connection is over."""
        status = answer.status if fault.status is None else fault.status
        body = answer.body if fault.body is None else fault.body
        if fault.flip is not None and body:
            at = fault.flip % len(body)
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        body += b"\0" * fault.extra
        headers = {"content-length": str(len(body)), **{key.lower(): value for key, value in answer.headers.items()}}
        if fault.body is not None or fault.extra:
            headers["content-length"] = str(len(body))
        headers |= {key.lower(): value for key, value in (fault.headers or {}).items()}
        if fault.chunked or fault.endless:
            headers |= {"content-length": "", "transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {status} Status", *(f"{key}: {value}" for key, value in headers.items() if value)]
        await stream.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if seen.method == "HEAD" or status == 204:
            return True
        if fault.endless:
            while True:
                await self._send(stream, b"x" * _PIECE, fault, True)
        whole = body if fault.cut is None else body[: fault.cut]
        await self._send(stream, whole, fault, fault.chunked)
        if fault.cut is not None and (fault.cut < len(body) or fault.then != "close"):
            await _end(stream, fault.then)
            return False
        if fault.chunked:
            await stream.send(b"0\r\n\r\n")
        return headers.get("connection") != "close"

    async def _send(self, stream: ByteStream, body: bytes, fault: Fault, chunked: bool) -> None:
        rate = fault.rate or self.rate
        piece = _PIECE if rate is None else max(1, min(_PIECE, int(rate / 20)))
        for at in range(0, len(body), piece):
            data = body[at : at + piece]
            await stream.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            self.sent += len(data)
            if rate is not None:
                await sleep(len(data) / rate)


async def _read_request(buffered: BufferedByteReceiveStream, stream: ByteStream) -> Seen:
    begin = await buffered.receive_exactly(1)
    if begin == _TLS:
        raise ValueError("this is no HTTP")
    head = (begin + await buffered.receive_until(b"\r\n\r\n", _HEAD_LIMIT)).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await buffered.receive_until(b"\r\n", 64), 16):
            body += await buffered.receive_exactly(size)
            await buffered.receive_exactly(2)
        await buffered.receive_exactly(2)
    elif length := int(headers.get("content-length", "0")):
        body = await buffered.receive_exactly(length)
    return Seen(method, target, headers, body)


async def _end(stream: ByteStream, how: str) -> None:
    if how == "stall":
        await sleep_forever()
    if how == "reset":
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

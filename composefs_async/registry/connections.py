"""One HTTP request over a pooled connection, without redirects, authentication or retries.

Owns the pools of `httpcore2`, one for each origin, with its TLS and its proxy; headers that every request has; and
what failures of the network are called.  Nobody else imports httpcore2, but `network`.
"""

from __future__ import annotations

import importlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import httpcore2
from anyio import CancelScope, fail_after, move_on_after

from .._aio.to_thread import in_thread
from ..errors import TransportError
from .access import Access, Surroundings, Transfer
from .certs import find_certificates, make_context
from .network import Backend
from .proxies import proxy_for
from .retrying import FailedAttemptError
from .urls import Origin, origin_of, shown

__all__ = ["Body", "Connections", "Response"]

Body = Callable[[], AsyncIterator[bytes]]
"""Makes the body of a request, each time it is sent."""

_Trust: TypeAlias = tuple[str, bool, bool]
"""Whose certificates are used, whether client certificates are among them, and whether nothing is verified."""
_KEEP = 60.0
"""Seconds that an idle connection is kept."""
_SLOW_SECONDS, _SLOW_RATE = 30.0, 1024
"""A document that comes with fewer bytes a second, after so long, is not waited for."""
_CLOSING = 1.0
"""Seconds that closing a response may take."""
_PROBE = 2.0
"""Seconds for TLS with a host on this machine that may do without: one that speaks plain HTTP often says nothing."""


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read."""

    status: int
    url: str
    """Secret, if it was redirected to."""
    _headers: list[tuple[str, str]] = field(repr=False)
    _stream: AsyncIterator[bytes] = field(repr=False)
    ended: bool = False
    """All of the body has been read."""
    received: int = 0
    """Bytes of the body so far."""
    redirected: bool = False
    """Another URL than the registry's has given it."""

    def get(self, name: str) -> str | None:
        """The first header of that name (in lower case)."""
        return next((value for key, value in self._headers if key == name), None)

    def get_all(self, name: str) -> list[str]:
        """Return the values of all headers *name*, which is in lower case."""
        return [value for key, value in self._headers if key == name]

    @property
    def host(self) -> str:
        """Host and port that answered, after redirections."""
        return origin_of(self.url).authority

    @property
    def content_length(self) -> int | None:
        """None if it is not there or malformed."""
        values = set(self.get_all("content-length"))
        text = values.pop() if len(values) == 1 else ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    async def next_chunk(self) -> bytes:
        """More of the body; empty at its end.

        Raises:
            FailedAttemptError: the connection broke.
        """
        try:
            chunk = await anext(self._stream, b"")
        except _FAILURES as error:
            raise _failure(error, self.url, in_body=True) from error
        self.received += len(chunk)
        self.ended = not chunk
        return chunk

    async def read(self, limit: int) -> bytes | None:
        """The whole body; None if it has more than *limit* bytes.

        Raises:
            FailedAttemptError: the connection broke, or brings less than 1 KiB a second.
        """
        pieces: list[bytes] = []
        size, begun = 0, time.monotonic()
        while chunk := await self.next_chunk():
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                return None
            seconds = time.monotonic() - begun
            if seconds > _SLOW_SECONDS and size < _SLOW_RATE * seconds:
                error = TransportError(f"{self.host}: the connection is too slow")
                raise FailedAttemptError(error, "the connection is too slow")
        return b"".join(pieces)


@dataclass(slots=True)
class Connections:
    """The connections of one client; closed by `aclose`.  Making it blocks."""

    access: Access
    transfer: Transfer
    around: Surroundings
    user_agent: str = field(default_factory=lambda: f"composefs-async/{version('composefs-async')}")
    _pools: dict[tuple[Origin, _Trust], httpcore2.AsyncConnectionPool] = field(
        default_factory=dict[tuple[Origin, tuple[str, bool, bool]], httpcore2.AsyncConnectionPool]
    )
    _contexts: dict[_Trust, ssl.SSLContext] = field(default_factory=dict[tuple[str, bool, bool], ssl.SSLContext])

    def __post_init__(self) -> None:
        self.user_agent = f"{self.user_agent} {self.access.user_agent}".strip()

    async def aclose(self) -> None:
        """Close all connections."""
        with CancelScope(shield=True):
            for pool in self._pools.values():
                with move_on_after(_CLOSING):
                    await pool.aclose()
        self._pools.clear()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None = None,
        *,
        certificates_of: str = "",
        clients: bool = True,
        insecure: bool = False,
        probing: bool = False,
        patience: float | None = None,
    ) -> AsyncIterator[Response]:
        """Send one request; the response is closed at the end of the block.

        Args:
            certificates_of: the registry in whose name authorities are looked for.
            clients: and client certificates; never for another host than that.
            insecure: certificates need not be valid.
            probing: it is not known whether the host speaks TLS.
            patience: seconds until the answer begins, in place of the usual time.

        Raises:
            FailedAttemptError: there is no answer.
            TransportError: no connection can be tried: a certificate or a proxy cannot be used.
        """
        origin = origin_of(url)
        pool = await self._pool(origin, (certificates_of, clients, insecure))
        timeouts = self._timeouts(origin, patience, probing=probing)
        stated = {"Host": origin.authority, "User-Agent": self.user_agent, "Accept-Encoding": "identity", **headers}
        content = None if body is None else body()
        request = httpcore2.Request(
            method, url, headers=list(stated.items()), content=content, extensions={"timeout": timeouts}
        )
        try:
            # A body may take any time as long as it moves.
            with fail_after(None if body is not None else timeouts["read"] + 2 * timeouts["connect"]):
                raw = await pool.handle_async_request(request)
        except _FAILURES as error:
            raise _failure(error, url) from error
        timeouts["read"] = self.transfer.idle_timeout
        try:
            decoded = _decoded(raw, url)
            async with aclosing(raw.aiter_stream()) as stream:
                yield Response(raw.status, url, decoded, stream)
        finally:
            with CancelScope(shield=True), move_on_after(_CLOSING):
                await raw.aclose()

    def _timeouts(self, origin: Origin, patience: float | None, *, probing: bool) -> dict[str, float]:
        """Seconds for a request; ``read`` is that of the answer's begin, until it has begun."""
        connect = self.transfer.connect_timeout
        if probing and origin.host in ("localhost", "127.0.0.1", "::1"):
            connect = min(connect, _PROBE)
        wait = patience if patience is not None else self.transfer.header_timeout
        return {"connect": connect, "read": wait, "write": self.transfer.idle_timeout}

    async def _pool(self, origin: Origin, trust: _Trust) -> httpcore2.AsyncConnectionPool:
        key = (origin, trust)
        if key not in self._pools:
            context = await self._context(trust) if origin.scheme == "https" else None
            proxy = self._proxy(origin)
            # Another task may have been faster.
            self._pools.setdefault(
                key,
                httpcore2.AsyncConnectionPool(
                    ssl_context=context,
                    proxy=proxy,
                    network_backend=Backend(),
                    http1=True,
                    http2=False,
                    max_connections=4 * self.transfer.connections + 8,
                    keepalive_expiry=_KEEP,
                ),
            )
        return self._pools[key]

    async def _context(self, trust: _Trust) -> ssl.SSLContext:
        if trust not in self._contexts:
            registry, clients, insecure = trust

            def make() -> ssl.SSLContext:
                found = find_certificates(self.around, registry, self.access.cert_dir)
                if not clients:
                    found = replace(found, clients=())
                return make_context(self.around, found, verify=not insecure)

            self._contexts[trust] = await in_thread(make)
        return self._contexts[trust]

    def _proxy(self, origin: Origin) -> httpcore2.Proxy | None:
        url = proxy_for(self.around.variables, origin.scheme, origin.host, origin.port)
        if url is None:
            return None
        parts = urlsplit(url)
        auth = None
        if parts.username is not None:
            auth = (unquote(parts.username), unquote(parts.password or ""))
        scheme = parts.scheme.lower()
        if scheme not in ("http", "https", "socks5", "socks5h") or not parts.hostname:
            raise TransportError(f"the proxy for {origin.host} is not one of http, https and socks5")
        if scheme.startswith("socks5"):
            try:
                importlib.import_module("socksio")
            except ImportError:
                raise TransportError(f"the proxy for {origin.host} speaks SOCKS: install socksio") from None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        default = {"http": 80, "https": 443}.get(scheme, 1080)
        return httpcore2.Proxy(f"{scheme}://{host}:{parts.port or default}", auth=auth)


# -- failures ----------------------------------------------------------------------------------

_FAILURES = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    TimeoutError,
)
_UNCONNECTED = (httpcore2.ConnectError, httpcore2.ConnectTimeout)


def _failure(error: Exception, url: str, *, in_body: bool = False) -> FailedAttemptError:
    """What failed, in words, and whether it may be tried again."""
    host = origin_of(url).authority
    cause = _cause(error)
    unconnected = isinstance(error, _UNCONNECTED)
    again = True
    if isinstance(cause, ssl.SSLCertVerificationError):
        again, reason = False, f"the certificate is not valid: {cause.verify_message}"
    elif isinstance(cause, ssl.SSLError) and unconnected:
        again = isinstance(cause, ssl.SSLEOFError)
        detail = (cause.reason or "the connection was closed").replace("_", " ").lower()
        reason = f"it speaks no TLS that can be used ({detail}); --tls-verify=false also tries HTTP without TLS"
    elif isinstance(error, httpcore2.TimeoutException | TimeoutError):
        reason = "no connection in time" if unconnected else "nothing came for too long"
    elif isinstance(error, httpcore2.ProxyError):
        again, reason = False, f"the proxy refuses: {str(error)[:120]}"
    elif isinstance(error, httpcore2.ProtocolError):
        reason = "the connection broke" if in_body else f"no valid answer: {str(error)[:120]}"
    elif isinstance(cause, socket.gaierror):
        # EAI_AGAIN is the server of names that does not answer; everything else is a name that is not there.
        again = cause.errno == socket.EAI_AGAIN
        reason = f"the host is not known: {cause.strerror}"
    else:
        reason = (getattr(cause, "strerror", None) or "the connection broke").lower()
    if not reason.isprintable():
        reason = "no valid answer"
    return FailedAttemptError(TransportError(f"{host}: {reason}"), reason, again=again, unconnected=unconnected)


def _cause(error: BaseException) -> OSError | None:
    """What the system or TLS said, wherever in the chain of exceptions it is."""
    found: OSError | None = None
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, ssl.SSLError | socket.gaierror):
            return current
        if isinstance(current, OSError) and current.strerror and not isinstance(current, TimeoutError):
            found = found or current
        pending += [each for each in (current.__cause__, current.__context__) if each is not None]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions
    return found


def _decoded(raw: httpcore2.Response, url: str) -> list[tuple[str, str]]:
    """The headers of an answer, whose body must be as it is."""
    if _header(raw.headers, b"content-encoding") not in (None, "identity"):
        raise TransportError(f"{shown(url)}: the answer is encoded, which was not asked for")
    return [(name.decode("ascii").lower(), value.decode("latin-1")) for name, value in raw.headers]


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)

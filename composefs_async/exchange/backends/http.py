"""A store behind any web server or CDN, read only, over the HTTP connections of the registry client.

Owns which answer means what.  The connections live on the event loop: calls come from worker threads of AnyIO and run
there, so that a handle belongs to the loop that used it first, and a cancelled task does not wait for the network.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote, urlsplit

from anyio import CancelScope, from_thread

from ...errors import BlobMissingError, StoreError, TransportError
from .base import (
    BlobInfo,
    Buffer,
    RangeIgnoredError,
    ReadOnlyStoreError,
    Stored,
    ThrottledError,
    TransientError,
    Version,
)

if TYPE_CHECKING:
    from ...registry.connections import Connections, Response

__all__ = ["HttpStore"]

_REDIRECTS = 5
_MISSING = (404, 410)
_BUSY = (429, 503)


class HttpStore:
    """The store below *url*, ``https://HOST/PATH`` or ``http://…``."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or not parts.hostname or parts.query or parts.fragment or endpoint:
            raise StoreError(f"{parts.scheme}://{parts.hostname or ''}", "no URL of a store: user, query, or endpoint")
        self.url: str = url.rstrip("/")
        self._connections: Connections | None = None
        self._left: list[AbstractAsyncContextManager[Response]] = []
        """Answers that could not be closed because their task had been cancelled."""

    # -- reading -------------------------------------------------------------------------------

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob, or *length* bytes of it from *start* on, by one request."""
        headers = {} if length is None and not start else {"Range": _range(start, length)}
        with self._answer("GET", key, headers) as response:
            if response.status == 416:  # the blob ends before the range begins: nothing comes
                return
            self._refuse(response, key)
            if headers and not _is_range(response, start, length):
                raise RangeIgnoredError(self.url, f"{key}: the server gives no ranges")
            while chunk := self._next(response):
                yield chunk

    def read(self, key: str, limit: int) -> Stored | None:
        """Return a document of at most *limit* bytes with its version, past all caches; None if it is missing."""
        with self._answer("GET", key, {"Cache-Control": "no-cache"}) as response:
            if response.status in _MISSING:
                return None
            self._refuse(response, key)
            content = bytearray()
            while chunk := self._next(response):
                content += chunk
                if len(content) > limit:
                    raise StoreError(self.url, f"{key} has more than {limit} bytes")
            version = response.get("etag") or hashlib.sha256(content).hexdigest()
            return Stored(bytes(content), version, _modified(response))

    def head(self, key: str) -> BlobInfo | None:
        """Return the size of a blob; None if it is missing."""
        with self._answer("HEAD", key, {}) as response:
            if response.status in _MISSING:
                return None
            self._refuse(response, key)
            size = response.content_length
            if size is None:
                raise StoreError(self.url, f"{key}: the server does not tell its size")
            return BlobInfo(key, size, _modified(response))

    # -- what it cannot ------------------------------------------------------------------------

    def put(self, key: str, data: Buffer | Path) -> None:
        """Raise `ReadOnlyStoreError`: a web server takes nothing."""
        self._cannot("written")

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Raise `ReadOnlyStoreError`: a web server takes nothing."""
        self._cannot("written")

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """Raise `ReadOnlyStoreError`: a web server does not list its files."""
        self._cannot("listed")

    def delete(self, keys: Sequence[str]) -> None:
        """Raise `ReadOnlyStoreError`: a web server deletes nothing."""
        self._cannot("written")

    def _cannot(self, what: str) -> NoReturn:
        raise ReadOnlyStoreError(self.url, f"a store behind a web server cannot be {what}")

    # -- connections ---------------------------------------------------------------------------

    @contextmanager
    def _answer(self, method: str, key: str, headers: dict[str, str]) -> Iterator[Response]:
        """The answer to one request, behind redirects."""
        url = f"{self.url}/{quote(key, safe='/')}"
        for _ in range(_REDIRECTS + 1):
            with self._send(method, url, headers) as response:
                location = response.get("location") if 300 <= response.status < 400 else None
                if location is None:
                    yield response
                    return
            url = self._redirected(url, location)
        raise StoreError(self.url, f"{key}: more than {_REDIRECTS} redirects")

    def _redirected(self, url: str, location: str) -> str:
        from ...registry.urls import origin_of, resolve_location

        try:
            target = resolve_location(url, location)
        except ValueError:
            raise StoreError(self.url, "it redirects to what is no URL") from None
        if origin_of(target).scheme == "http" and origin_of(url).scheme == "https":
            raise StoreError(self.url, "it redirects to a place without TLS")
        return target

    @contextmanager
    def _send(self, method: str, url: str, headers: dict[str, str]) -> Iterator[Response]:
        from ...registry.retrying import FailedAttemptError

        manager = self._opened().send(method, url, headers)
        try:
            response = from_thread.run(manager.__aenter__)
        except FailedAttemptError as error:
            raise self._failed(error) from None
        except TransportError as error:
            raise StoreError(self.url, str(error)) from None
        self._left.append(manager)
        try:
            yield response
        finally:
            # A task that has been cancelled may not get as far as this; `close` comes in any case.
            from_thread.run(_leave, manager)
            self._left.remove(manager)

    def _next(self, response: Response) -> bytes:
        from ...registry.retrying import FailedAttemptError

        try:
            return from_thread.run(response.next_chunk)
        except FailedAttemptError as error:
            raise self._failed(error) from None

    def _opened(self) -> Connections:
        if self._connections is None:
            try:
                from ...registry.access import Access, Surroundings, Transfer
                from ...registry.connections import Connections
            except ImportError as error:
                raise StoreError(
                    self.url, f"{error.name} is not installed; install composefs-async[registry]"
                ) from None
            access = Access()
            transfer = Transfer(connections=32, connect_timeout=5, header_timeout=30, idle_timeout=10)
            self._connections = Connections(access, transfer, Surroundings.of(access))
        return self._connections

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        if self._connections is not None:
            connections, self._connections = self._connections, None
            from_thread.run(_close, connections, self._left)

    # -- answers -------------------------------------------------------------------------------

    def _refuse(self, response: Response, key: str) -> None:
        """Raise what an answer means that is not fine."""
        status = response.status
        if status in (200, 206):
            return
        if status in _MISSING:
            raise BlobMissingError(self.url, key)
        reason = f"{key}: the server answered {status}"
        if status in _BUSY:
            from ...registry.retrying import retry_after

            raise ThrottledError(self.url, reason, retry_after(response.get("retry-after"), time.time()))
        if status >= 500 or status == 408:
            raise TransientError(self.url, reason)
        raise StoreError(self.url, reason)

    def _failed(self, error: Exception) -> StoreError:
        again = bool(getattr(error, "again", False))
        reason = str(getattr(error, "reason", error))
        return TransientError(self.url, reason) if again else StoreError(self.url, reason)


async def _leave(manager: AbstractAsyncContextManager[Response]) -> None:
    with CancelScope(shield=True):
        await manager.__aexit__(None, None, None)


async def _close(connections: Connections, left: list[AbstractAsyncContextManager[Response]]) -> None:
    with CancelScope(shield=True):
        while left:
            with suppress(Exception):
                await left.pop().__aexit__(None, None, None)
        await connections.aclose()


def _range(start: int, length: int | None) -> str:
    return f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"


def _is_range(response: Response, start: int, length: int | None) -> bool:
    """Whether the answer is that part of the blob, or what there is of it."""
    unit, _, rest = (response.get("content-range") or "").partition(" ")
    begin, _, end = rest.partition("/")[0].partition("-")
    if response.status != 206 or unit != "bytes" or not begin.isdecimal() or not end.isdecimal():
        return False
    return int(begin) == start and (length is None or int(end) < start + length)


def _modified(response: Response) -> float:
    text = response.get("last-modified")
    try:
        return parsedate_to_datetime(text).timestamp() if text else 0.0
    except (ValueError, OverflowError):
        return 0.0

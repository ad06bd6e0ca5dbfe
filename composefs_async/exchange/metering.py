"""A backend as a store uses it: requests counted, paced and repeated; and conditional writes tried, or done without.

Owns what is true of every kind of place.  Blocks.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..digest import Algorithm
from ..errors import ConditionalWritesError, StoreError
from .backends.base import BlobInfo, BlobStore, Buffer, PreconditionError, Stored, Version, data_size
from .condemned import Description
from .pacing import Gate, RateLimit, retrying

__all__ = ["Meter", "Unconditional", "Usage", "try_conditions"]

T = TypeVar("T")


@dataclass(slots=True)
class Usage:
    """What has been asked of a store through one handle."""

    requests: int = 0
    sent: int = 0
    """Bytes of content written."""
    received: int = 0
    """Bytes of content read."""


class Meter:
    """A backend as `Store` uses it: requests counted, paced and repeated."""

    def __init__(self, backend: BlobStore, rate: RateLimit, transfers: int) -> None:
        self._backend, self._rate = backend, rate
        self.url: str = backend.url
        self.gate: Gate = Gate(transfers)
        self.usage: Usage = Usage()
        self._mutex = threading.Lock()

    def _count(self, *, requests: int = 0, sent: int = 0, received: int = 0) -> None:
        with self._mutex:
            self.usage.requests += requests
            self.usage.sent += sent
            self.usage.received += received

    def made_description(self, algorithm: Algorithm | None) -> Description | None:
        """The description of a place that has none of its own."""
        describe: Callable[[Algorithm | None], Description] | None = getattr(self._backend, "describe", None)
        return None if describe is None else describe(algorithm)

    def _ask(self, function: Callable[..., T], *arguments: object) -> T:
        def once() -> T:
            self._count(requests=1)
            with self.gate.request():
                return function(*arguments)

        return retrying(once)

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Not repeated when it fails: the caller knows what it has got."""
        if length == 0:
            return
        self._count(requests=1)
        with self.gate.request():
            for piece in self._backend.get(key, start, length):
                self._rate.take(len(piece))
                self._count(received=len(piece))
                yield piece

    def put(self, key: str, data: Buffer | Path) -> None:
        """Store a blob, within the rate that is set, and count its bytes."""
        size = data_size(data)
        self._rate.take(size)
        self._ask(self._backend.put, key, data)
        self._count(sent=size)

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Replace a document within the limit of requests, and count its bytes."""
        self._count(requests=1, sent=len(data))
        with self.gate.request():
            return self._backend.swap(key, data, expected)

    def read(self, key: str, limit: int) -> Stored | None:
        """Read a document within the limit of requests, and count its bytes."""
        found = self._ask(self._backend.read, key, limit)
        self._count(received=len(found.data) if found else 0)
        return found

    def head(self, key: str) -> BlobInfo | None:
        """Ask for a blob's size within the limit of requests."""
        return self._ask(self._backend.head, key)

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """List blobs as one request; the whole listing is read at once."""
        return iter(self._ask(lambda: [*self._backend.list(prefix, after)]))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs as one request."""
        self._ask(self._backend.delete, keys)

    def close(self) -> None:
        """Close the store that is metered."""
        self._backend.close()


class Unconditional:
    """A backend without conditional writes: compared before, and then overwritten.  For one writer at a time."""

    def __init__(self, backend: Meter) -> None:
        self._backend = backend
        self.url: str = backend.url

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Compare, then write; another writer in between would be overwritten."""
        found = self._backend.read(key, 1 << 30)
        if (found.version if found else None) != expected:
            raise PreconditionError(self.url, f"{key} has changed")
        self._backend.put(key, data)
        written = self._backend.read(key, 1 << 30)
        if written is None or written.data != data:
            raise PreconditionError(self.url, f"{key} has changed")
        return written.version

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def try_conditions(backend: Meter) -> None:
    """Refuse a store that writes although the condition is not met."""
    key = f"gc/trial-{uuid.uuid4()}"
    try:
        try:
            version = backend.swap(key, b"1", None)
        except PreconditionError as error:
            raise ConditionalWritesError(backend.url, f"a write to a new key was refused: {error.reason}") from None
        _refuse_accepted(backend, key, None, "creates what is there")
        try:
            backend.swap(key, b"2", version)
        except PreconditionError as error:
            raise ConditionalWritesError(backend.url, f"a write was refused for no reason: {error.reason}") from None
        _refuse_accepted(backend, key, version, "replaces what has changed")
    finally:
        with suppress(StoreError):
            backend.delete([key])


def _refuse_accepted(backend: Meter, key: str, expected: Version | None, what: str) -> None:
    try:
        backend.swap(key, b"3", expected)
    except PreconditionError:
        return
    raise ConditionalWritesError(
        backend.url, f"it {what}, so that two writers would overwrite each other; --single-writer is for one"
    )

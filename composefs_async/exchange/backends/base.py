"""What every place of a store must be able to do: eight blocking operations on keys and bytes.

Owns the protocol and its values.  A backend knows nothing of references, packs or tables.  Its methods are called in
worker threads of AnyIO, several at a time, and each may be repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from ...errors import StoreError

__all__ = [
    "BlobInfo",
    "BlobStore",
    "Buffer",
    "PreconditionError",
    "RangeIgnoredError",
    "ReadOnlyStoreError",
    "Stored",
    "ThrottledError",
    "TransientError",
    "Version",
    "data_size",
    "pieces_of_file",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
Version: TypeAlias = str
"""What a backend tells one content of a key from another by: an ETag, for example."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a store says about a key."""

    key: str
    size: int
    """In bytes."""
    modified: float
    """When it was last written, in seconds since 1970, by the clock of the store."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A small object that was read whole."""

    data: bytes
    version: Version
    modified: float
    """When it was last written, in seconds since 1970, by the clock of the store."""


class PreconditionError(StoreError):
    """A conditional write found something else than it expected.  Also when another write was under way."""


class RangeIgnoredError(StoreError):
    """The store cannot give a part of a blob; the whole must be asked for."""


class TransientError(StoreError):
    """A request failed in a way that may not happen again: a broken connection, a time-out, an error of a server."""


class ThrottledError(TransientError):
    """The store asks for fewer requests; *retry_after* has its wish in seconds, or None."""

    def __init__(self, store: str, reason: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(store, reason)


class ReadOnlyStoreError(StoreError):
    """This kind of store can only be read."""


class BlobStore(Protocol):
    """The operations of a backend.  Blocking; called in worker threads; every method is safe to repeat."""

    url: str
    """For people, without secrets."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the content, or *length* bytes of it from *start* on, in pieces.

        Raises:
            BlobMissingError: there is no such key.
            RangeIgnoredError: only the whole can be had.
        """
        ...

    def put(self, key: str, data: Buffer | Path) -> None:
        """Write *data*, or the file at a path, whatever was there before."""
        ...

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Write *data* if the key still has the version *expected*, or if that is None does not exist.

        Raises:
            PreconditionError: it has another version, or exists.
            UnknownOutcomeError: the answer was lost.
        """
        ...

    def read(self, key: str, limit: int) -> Stored | None:
        """The whole content, not through a cache; None if it is not there.

        Raises:
            StoreError: it is longer than *limit* bytes.
        """
        ...

    def head(self, key: str) -> BlobInfo | None:
        """Size and time of a key; None if it is not there."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """All keys that begin with *prefix* and sort behind *after*, sorted."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove keys; those that are not there are passed over."""
        ...

    def close(self) -> None:
        """Release connections and descriptors; a second call does nothing."""
        ...


def data_size(data: Buffer | Path) -> int:
    """How many bytes a write sends."""
    if isinstance(data, Path):
        return os.stat(data).st_size
    return data.nbytes if isinstance(data, memoryview) else len(data)


def pieces_of_file(path: Path) -> Iterator[bytes]:
    """The content of a file in pieces of 1 MiB."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece

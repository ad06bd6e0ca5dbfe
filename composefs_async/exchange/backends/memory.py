"""A store in memory, for tests and simulations: what it holds goes with it.

Its clock can be given, and *before* is called ahead of each operation with the operation's name and key; what that
raises is the operation's failure.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...errors import BlobMissingError, StoreError
from .base import BlobInfo, Buffer, PreconditionError, Stored, Version

__all__ = ["MemoryStore"]

_PIECE = 1 << 20


class MemoryStore:
    """All keys in one dictionary.  Safe for use from several threads."""

    def __init__(
        self,
        url: str = "memory:",
        *,
        clock: Callable[[], float] = time.time,
        before: Callable[[str, str], object] | None = None,
    ) -> None:
        self.url: str = url
        self.objects: dict[str, Stored] = {}
        """Everything there is, by key."""
        self._clock, self._before = clock, before
        self._versions = itertools.count(1)
        self._mutex = threading.Lock()

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob, or *length* bytes of it from *start* on; `BlobMissingError` if it is missing."""
        self._begin("get", key)
        found = self.objects.get(key)
        if found is None:
            raise BlobMissingError(self.url, key)
        end = len(found.data) if length is None else min(start + length, len(found.data))
        return (found.data[at : min(at + _PIECE, end)] for at in range(start, end, _PIECE))

    def put(self, key: str, data: Buffer | Path) -> None:
        """Keep a blob in memory."""
        self._begin("put", key)
        with self._mutex:
            self._write(key, data.read_bytes() if isinstance(data, Path) else bytes(data))

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Replace a document if it still has the version *expected*."""
        self._begin("swap", key)
        with self._mutex:
            found = self.objects.get(key)
            if (found.version if found else None) != expected:
                raise PreconditionError(self.url, f"{key} has changed")
            return self._write(key, data)

    def _write(self, key: str, data: bytes) -> Version:
        version = str(next(self._versions))
        self.objects[key] = Stored(data, version, self._clock())
        return version

    def read(self, key: str, limit: int) -> Stored | None:
        """Return a document of at most *limit* bytes with its version; None if it is missing."""
        self._begin("read", key)
        found = self.objects.get(key)
        if found is not None and len(found.data) > limit:
            raise StoreError(self.url, f"{key} has more than {limit} bytes")
        return found

    def head(self, key: str) -> BlobInfo | None:
        """Return the size and age of a blob; None if it is missing."""
        self._begin("head", key)
        found = self.objects.get(key)
        return None if found is None else BlobInfo(key, len(found.data), found.modified)

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """Yield the blobs whose keys begin with *prefix*, sorted, after the key *after*."""
        self._begin("list", prefix)
        with self._mutex:
            found = sorted((key, each) for key, each in self.objects.items() if key.startswith(prefix) and key > after)
        return (BlobInfo(key, len(each.data), each.modified) for key, each in found)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs; those that are missing are skipped."""
        for key in keys:
            self._begin("delete", key)
            with self._mutex:
                self.objects.pop(key, None)

    def close(self) -> None:
        """Keep everything: another handle may be open."""

    def _begin(self, operation: str, key: str) -> None:
        if self._before is not None:
            self._before(operation, key)

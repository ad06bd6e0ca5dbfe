"""A set of object ids, packed and sorted: about as many bytes as the ids have; no I/O."""

from __future__ import annotations

from bisect import bisect_left

from .shards import sort_ids

__all__ = ["IdSet"]

_SLACK = 8 << 20


class IdSet:
    """Ids of *width* bytes."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._sorted = b""
        self._added: list[bytes] = []
        self._size = 0

    def add(self, ids: bytes) -> None:
        """Add ids, which stand one after the other."""
        self._added.append(ids)
        self._size += len(ids)
        # Images that share most of their files must not take as much as if each were alone.
        if self._size > _SLACK + len(self._sorted):
            self._settle()

    def shard(self, first: int) -> bytes:
        """The ids with this first byte, sorted."""
        self._settle()
        places = range(0, len(self._sorted), self._width)
        start, end = (bisect_left(places, value, key=self._sorted.__getitem__) for value in (first, first + 1))
        return self._sorted[start * self._width : end * self._width]

    def __contains__(self, object_id: bytes) -> bool:
        self._settle()
        places = range(0, len(self._sorted), self._width)
        at = bisect_left(places, object_id, key=lambda place: self._sorted[place : place + self._width])
        return self._sorted[at * self._width : (at + 1) * self._width] == object_id

    def _settle(self) -> None:
        if self._added:
            self._sorted = sort_ids(b"".join((self._sorted, *self._added)), self._width)
            self._added.clear()
            self._size = 0

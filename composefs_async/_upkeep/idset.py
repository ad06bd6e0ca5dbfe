"""A set of object ids, small in memory and cheap to compare with the listing of a directory; no I/O."""

from __future__ import annotations

from ..digest import Algorithm

__all__ = ["SHARDS", "IdSet"]

SHARDS = 256

_SLACK = 1 << 20
"""Bytes that may be added before duplicates are looked for; further on, as many as there are."""


class IdSet:
    """Ids by the directory that their objects are in, packed: about as many bytes as the ids have."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._width = algorithm.digest_size - 1
        self._shards = [bytearray() for _ in range(SHARDS)]
        self._added = 0
        self._unique = 0

    def add(self, ids: bytes) -> None:
        """Add ids, which stand one after the other."""
        shards, width = self._shards, self._width
        for at in range(0, len(ids), width + 1):
            shards[ids[at]] += ids[at + 1 : at + 1 + width]
        self._added += len(ids)
        if self._added > _SLACK + self._unique:
            # Images that share most of their files would otherwise take as much each as one alone.
            self._shards = [bytearray(b"".join(self._pieces(shard))) for shard in range(SHARDS)]
            self._unique = sum(map(len, self._shards))
            self._added = 0

    def names(self, shard: int) -> set[str]:
        """What the objects of a directory are called."""
        digits, width = self._shards[shard].hex(), 2 * self._width
        return {digits[at : at + width] for at in range(0, len(digits), width)}

    def _pieces(self, shard: int) -> set[bytes]:
        content, width = bytes(self._shards[shard]), self._width
        return {content[at : at + width] for at in range(0, len(content), width)}

"""What a repository remembers of stores: tables, and the packs of publications that were interrupted.

Owns the files below ``.composefs-async/tables`` and ``.composefs-async/publish``.  All of it can be deleted at any
time, and nothing of it is believed without a look at the store.  What cannot be written is not remembered.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from .._maintenance import state_dir
from .._repo.state import RepoState
from ..digest import Algorithm
from ..errors import ComposefsError, StoreFormatError
from .documents import PACK_TYPE, Descriptor, digest_of
from .draft import Part
from .packing import Pack
from .plan import Place
from .table import DECODED_LIMIT, KEY_SIZE, Entry, Kind, decode_table, encode_table

__all__ = ["SentPacks", "cached_table", "remember_table"]

_TABLES = "tables"
_MOST_TABLES = 32
_PUBLISH = "publish"
_LIMIT = 64 << 20
_SIZE = len("0123456789abcdef") + 1


def cached_table(state: RepoState, digest: str) -> bytes | None:
    """The bytes of a table that was remembered, if they still have that digest."""
    with suppress(OSError):
        raw = state_dir.read(state, f"{_TABLES}/{digest.removeprefix('sha256:')}", _LIMIT)
        if raw is not None and digest_of(raw) == digest:
            return raw
    return None


def remember_table(state: RepoState, digest: str, raw: bytes) -> None:
    """Keep the bytes of a table for the next time; others go when there are too many."""
    with suppress(OSError, ComposefsError):
        state.require_writable()
        known = state_dir.listing(state, _TABLES)
        for name in known[: max(0, len(known) + 1 - _MOST_TABLES)]:
            state_dir.remove(state, f"{_TABLES}/{name}")
        state_dir.write(state, f"{_TABLES}/{digest.removeprefix('sha256:')}", raw)


class SentPacks:
    """The packs that publications of one artifact to one store have sent and not named yet."""

    def __init__(self, state: RepoState, store_id: str, root: str) -> None:
        self._state = state
        name = hashlib.sha256(f"{store_id}\0{root}".encode()).hexdigest()[:32]
        self._directory = f"{_PUBLISH}/{name}"

    def found(self) -> list[Part]:
        """The blobs that are remembered; whether the store still has them is not known."""
        parts = []
        with suppress(OSError):
            for name in state_dir.listing(self._state, self._directory):
                raw = state_dir.read(self._state, f"{self._directory}/{name}", _LIMIT)
                with suppress(StoreFormatError, ValueError):
                    parts.append(_decode(name, raw or b"", self._state.algorithm))
        return parts

    def add(self, pack: Pack) -> None:
        """Remember a pack that has been put."""
        with suppress(OSError, ComposefsError):
            self._state.require_writable()
            name = f"{pack.blob.digest.removeprefix('sha256:')}-{pack.blob.size:016x}"
            entries = [
                Entry(found[:KEY_SIZE], 0, place.offset, place.stored, place.size, Kind.FILE, place.coding)
                for found, place in pack.members.items()
            ]
            state_dir.write(self._state, f"{self._directory}/{name}", encode_table(self._state.algorithm, 1, entries))

    def forget(self) -> None:
        """The artifact has its name."""
        with suppress(OSError):
            for name in state_dir.listing(self._state, self._directory):
                state_dir.remove(self._state, f"{self._directory}/{name}")


def _decode(name: str, raw: bytes, algorithm: Algorithm) -> Part:
    digest, size = f"sha256:{name[:-_SIZE]}", int(name[-_SIZE + 1 :], 16)
    table = decode_table(raw, name, algorithm=algorithm, blob_sizes=[size], limit=DECODED_LIMIT)
    members = {}
    for at in range(len(table)):
        entry = table.entry(at)
        members[entry.key] = Place(entry.offset, entry.stored, entry.size, entry.coding)
    return Part(Descriptor(PACK_TYPE, digest, size), members)

"""A store as a source of repair: single objects out of packs, found by the tables of the images that it has.

Owns finding and unpacking them.  What is taken is compared with its id by the repair itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from .._aio.hops import hop
from .._repo.publish import references
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import DigestMismatchError, FormatError, ImageNotFoundError, StoreError
from ..naming import TAGS, decode_tag
from ..repository import Repository, state_of
from .backends.base import RangeIgnoredError, ReadOnlyStoreError
from .documents import Config, Manifest, blob_key, name_of_ref, parse_manifest, parse_ref, ref_key
from .plan import Range, plan_ranges
from .store import Store
from .storecheck import read_member, unpacked_member
from .table import KEY_SIZE, Table

__all__ = ["StoreObjects", "store_objects"]

_SPOOL = 16 << 20
_FAILURES = (StoreError, FormatError, DigestMismatchError)


@dataclass(slots=True)
class _Artifact:
    manifest: Manifest
    config: Config
    known: bool
    """The repository has its root."""


@dataclass(slots=True)
class StoreObjects:
    """Objects of a store, for `repair`.  Blocks; the store stays the caller's."""

    store: Store
    artifacts: list[_Artifact]
    name: str
    _tables: dict[str, tuple[Table, dict[bytes, int]] | None] = field(
        default_factory=dict[str, tuple[Table, dict[bytes, int]] | None]
    )

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        """Open temporary files with the content of objects of *wanted*; the receiver closes the descriptors."""
        left = {found[:KEY_SIZE]: found for found in wanted}
        for artifact in self.artifacts:
            if not left:
                return
            found = self._table(artifact)
            if found is None:
                continue
            table, index = found
            entries = [index[key] for key in left if key in index]
            sizes = [blob.size for blob in artifact.manifest.blobs]
            for each in plan_ranges(table, entries, sizes):
                with suppress(*_FAILURES):  # another artifact may have it
                    yield from self._members(artifact.manifest, table, each, left)

    def _table(self, artifact: _Artifact) -> tuple[Table, dict[bytes, int]] | None:
        digest = artifact.manifest.table.digest
        if digest not in self._tables:
            self._tables[digest] = None
            with suppress(*_FAILURES):
                table = self.store.read_table(artifact.manifest, artifact.config)
                self._tables[digest] = table, table.index()
        return self._tables[digest]

    def _members(
        self, manifest: Manifest, table: Table, wanted: Range, left: dict[bytes, ObjectId]
    ) -> Iterator[tuple[ObjectId, int]]:
        key = blob_key(manifest.blobs[wanted.blob].digest)
        with tempfile.SpooledTemporaryFile(_SPOOL, prefix="composefs-async-repair-") as spool:
            start = wanted.start
            try:
                for piece in self.store.backend.get(key, wanted.start, wanted.length):
                    spool.write(piece)
            except RangeIgnoredError:
                start = 0
                for piece in self.store.backend.get(key):
                    spool.write(piece)
            for member in wanted.members:
                entry = table.entry(member.entry)
                object_id = left.get(entry.key)
                if object_id is not None:
                    with suppress(FormatError):
                        pieces = unpacked_member(read_member(spool, entry._replace(offset=entry.offset - start)), entry)
                        fd = _written(pieces)
                        left.pop(entry.key)
                        yield object_id, fd

    def close(self) -> None:
        """Do nothing: the store stays open."""


def _written(pieces: Iterator[bytes]) -> int:
    """A descriptor of an unnamed file with that content, which the caller closes."""
    file: IO[bytes]
    with tempfile.TemporaryFile(prefix="composefs-async-repair-") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        return os.dup(file.fileno())


async def store_objects(store: Store, repo: Repository) -> StoreObjects:
    """Look for what a store has that a repository may need.

    Images whose root the repository knows come first.  One that cannot be listed is asked for the tags that are here.

    Raises:
        StoreError: it cannot be read.
    """
    await store.describe()
    artifacts = await hop(_artifacts, store, state_of(repo))
    return StoreObjects(store, artifacts, store.url)


def _artifacts(store: Store, state: RepoState) -> list[_Artifact]:
    tags = [decode_tag(reference) for reference, _ in references(state, "streams", TAGS)]
    try:
        names = [name_of_ref(info.key) for info in store.backend.list("refs/")]
    except ReadOnlyStoreError:
        names = tags
    roots = {stream for _, stream in references(state, "streams")} | {image for _, image in references(state, "images")}
    found = []
    for name in names:
        with suppress(FormatError, DigestMismatchError, ImageNotFoundError):
            stored = store.backend.read(ref_key(name), 1 << 20)
            ref = parse_ref(stored.data, name) if stored else None
            if ref is None or ref.deleted:
                continue
            manifest = parse_manifest(ref.manifest, ref.digest) if ref.manifest else store.read_manifest(ref.digest)
            config = store.read_config(manifest)
            if config.algorithm is state.algorithm:
                found.append(_Artifact(manifest, config, config.root in roots))
    return sorted(found, key=lambda each: not each.known)

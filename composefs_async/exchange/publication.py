"""One artifact on its way to a store: what is there is found, what is missing is packed and sent.

Owns the order of a publication, and what it remembers for the next try.  Does not own what is published (`publisher`),
nor the last step (`commit`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import create_task_group

from .._aio.groups import single_error
from .._aio.hops import hop
from .._aio.to_thread import in_checked_thread
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import (
    AlgorithmMismatchError,
    BlobMissingError,
    DigestMismatchError,
    StoreFormatError,
)
from ..progress import BytesMoved, PackSent, ProgressCallback, RefWritten, TransferStarted
from .closure import Closure
from .commit import ANYTHING, Expected, Uploads, commit, read_condemned, read_ref
from .condemned import Condemned, format_time
from .documents import MAX_BLOBS, Config, Manifest, Ref, blob_key, ref_key
from .draft import ImageDraft, Part
from .pacing import elapsed
from .packing import LEVEL, PACK_SIZE, Packer, new_salt, pack_large
from .plan import Base, choose_reuse, slices
from .resume import SentPacks, cached_table, remember_table
from .store import Store, run_program
from .table import KEY_SIZE

__all__ = ["Publication", "PublishResult"]

_OTHER_BASES = 8
_MOST_PACKERS = 8
"""Packs that are made or sent at once; each is in memory, and perhaps once more in the library that sends it."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """An artifact that is in a store under its name."""

    name: str
    manifest_digest: str
    root: str
    """Name of the stream, or id of the EROFS image, from which everything is reached."""
    image_id: str | None
    """Id of the EROFS image, in hexadecimal, if there is one."""
    objects_sent: int
    objects_shared: int
    """Objects that the store had already."""
    bytes_sent: int
    requests: int
    unchanged: bool
    """Nothing had to be sent."""


def _ignore(event: object) -> None:
    pass


class Publication:
    """One artifact on its way to one store; `run` is called once."""

    def __init__(
        self,
        state: RepoState,
        store: Store,
        closure: Closure,
        name: str,
        *,
        level: int = LEVEL,
        pack_size: int = PACK_SIZE,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._state, self._store, self._closure, self._name = state, store, closure, name
        self._level, self._pack_size = level, pack_size
        self._report: ProgressCallback = progress or _ignore
        self._uploads = Uploads(elapsed)
        self._before = store.usage.requests, store.usage.sent
        self._sizes = dict(zip(closure.ids, closure.sizes, strict=True))
        self._sent = 0
        self._moved = 0

    async def run(
        self,
        bases: Sequence[str],
        subject: Mapping[str, Any] | None,
        annotations: Mapping[str, str],
        *,
        known: Sequence[Base] = (),
        repack: bool = False,
        force: bool = False,
    ) -> PublishResult:
        """Send what is missing, and give it its name.

        Args:
            known: artifacts that have what is not here; whatever they have is used, however little it is of a pack.

        Raises:
            AlgorithmMismatchError, RefConflictError, StoreError
        """
        store, closure = self._store, self._closure
        description = await store.describe(self._state.algorithm)
        if description.algorithm is not self._state.algorithm:
            what = f"the store {store.url}"
            raise AlgorithmMismatchError(what, self._state.algorithm.text, description.algorithm.text)
        found, _ = await run_program(store, read_ref(self._name, store.url))
        current = found if found is not None and not found.deleted else None
        condemned = await run_program(store, read_condemned(store.url))
        manifest = await self._manifest(current)
        if manifest is not None and not repack and await hop(self._is_same, manifest):
            return self._result(manifest, unchanged=True)
        self._remembered = SentPacks(self._state, description.id, closure.root)
        parts: list[Part] = []
        if known:
            parts = await hop(self._parts_of, known, 0.0)
        elif not repack:
            parts = await self._reusable([manifest, *await self._others(bases, manifest)], condemned)
        draft = ImageDraft(closure, description.algorithm, parts, self._upload_again, subject, annotations)
        draft.parts = [*parts, *await self._send(parts)]
        expected: Expected = ANYTHING if force else (found.digest if found else "")
        created = format_time(int(time.time()))
        manifest = await run_program(
            store,
            commit(
                draft,
                self._name,
                expected,
                url=store.url,
                grace=description.grace,
                uploads=self._uploads,
                created=created,
            ),
        )
        await hop(self._remembered.forget)
        await hop(self._remember_table, manifest, draft)
        self._report(RefWritten(self._name, manifest.digest))
        return self._result(manifest, unchanged=False)

    def _result(self, manifest: Manifest, *, unchanged: bool) -> PublishResult:
        requests, sent = self._store.usage.requests, self._store.usage.sent
        images = self._closure.images
        return PublishResult(
            self._name,
            manifest.digest,
            self._closure.root,
            next(iter(images), None),
            self._sent,
            len(self._closure.ids) - self._sent,
            sent - self._before[1],
            requests - self._before[0],
            unchanged,
        )

    # -- what the store has --------------------------------------------------------------------

    async def _manifest(self, ref: Ref | None) -> Manifest | None:
        try:
            return None if ref is None else await self._store.manifest(ref)
        except (BlobMissingError, StoreFormatError, DigestMismatchError):
            return None  # a broken name is replaced

    def _is_same(self, manifest: Manifest) -> bool:
        try:
            config = self._store.read_config(manifest)
        except (BlobMissingError, StoreFormatError, DigestMismatchError):
            return False
        closure = self._closure
        return (config.kind, config.root, config.streams, config.images, config.algorithm) == (
            closure.kind,
            closure.root,
            closure.streams,
            closure.images,
            self._state.algorithm,
        )

    async def _others(self, bases: Sequence[str], current: Manifest | None) -> list[Manifest | None]:
        """The artifacts of *bases*; without any, of names with the same repository part."""
        if bases:
            return [await self._store.resolve(base) for base in bases]
        if current is not None or self._closure.kind == "layer":
            return []
        prefix = self._name.rpartition(":")[0] or self._name.rpartition("/")[0]
        if not prefix:
            return []
        listed = await hop(lambda: [*self._store.backend.list(ref_key(prefix))])
        listed.sort(key=lambda info: -info.modified)
        others = []
        for info in listed[:_OTHER_BASES]:
            found = await hop(self._store.backend.read, info.key, 1 << 20)
            others.append(found)
        return [await self._parsed(each.data) for each in others if each is not None]

    async def _parsed(self, raw: bytes) -> Manifest | None:
        from .documents import parse_ref

        ref = parse_ref(raw, "a base")
        return None if ref.deleted else await self._manifest(ref)

    async def _reusable(self, manifests: Sequence[Manifest | None], condemned: Condemned) -> list[Part]:
        bases = [await hop(self._base, manifest) for manifest in manifests if manifest is not None]
        keys = {found[:KEY_SIZE] for found in self._closure.ids}
        earlier = await self._earlier(condemned)
        taken: set[bytes] = set()
        parts = []
        for part in earlier:
            members = {key: place for key, place in part.members.items() if key in keys and key not in taken}
            if members:
                parts.append(Part(part.blob, members))
                taken.update(members)
        reuse = await hop(
            partial(choose_reuse, keys - taken, [base for base in bases if base], condemned=condemned.__contains__)
        )
        known = {part.blob.digest for part in parts}
        return [*parts, *(Part(each.blob, each.members) for each in reuse if each.blob.digest not in known)]

    def _parts_of(self, bases: Sequence[Base], share: float) -> list[Part]:
        keys = {found[:KEY_SIZE] for found in self._closure.ids}
        return [Part(each.blob, each.members) for each in choose_reuse(keys, bases, share=share, limit=MAX_BLOBS)]

    def _base(self, manifest: Manifest) -> Base | None:
        """What can be re-used of an artifact; nothing of one that is damaged."""
        with suppress(BlobMissingError, StoreFormatError, DigestMismatchError):
            return self._read_base(manifest)
        return None

    def _read_base(self, manifest: Manifest) -> Base | None:
        config: Config = self._store.read_config(manifest)
        if config.algorithm is not self._state.algorithm:
            return None
        raw = cached_table(self._state, manifest.table.digest)
        if raw is None:
            raw = self._store.read_table_blob(manifest)
            remember_table(self._state, manifest.table.digest, raw)
        return Base(manifest.blobs, self._store.parse_table(raw, manifest, config))

    def _remember_table(self, manifest: Manifest, draft: ImageDraft) -> None:
        documents = draft.assemble().documents
        if manifest.table.digest in documents:
            remember_table(self._state, manifest.table.digest, documents[manifest.table.digest])

    async def _earlier(self, condemned: Condemned) -> list[Part]:
        """Packs that an earlier try has sent, as far as the store still has them."""
        found = await hop(self._remembered.found)
        there = []
        for part in found:
            if part.blob.digest in condemned:
                continue
            info = await hop(self._store.backend.head, blob_key(part.blob.digest))
            if info is not None and info.size == part.blob.size:
                there.append(part)
        return there

    # -- what it has not got -------------------------------------------------------------------

    async def _send(self, parts: Sequence[Part]) -> list[Part]:
        """Pack and send what no part has; the parts come in the order of the closure."""
        have = {key for part in parts for key in part.members}
        ids = [found for found in self._closure.ids if found[:KEY_SIZE] not in have]
        sizes = [self._sizes[found] for found in ids]
        total = sum(sizes)
        self._report(TransferStarted(self._name, len(ids), total, len(self._closure.ids) - len(ids)))
        runs = list(slices(sizes, pack_size=self._pack_size))
        sent: dict[int, list[Part]] = {}
        # The largest objects first, so that none of them is begun when all others are done.
        queue = iter(sorted(range(len(runs)), key=lambda number: (len(runs[number]) > 1, number)))
        workers = min(max(os.cpu_count() or 2, 2), _MOST_PACKERS, len(runs))

        async def work() -> None:
            for number in queue:
                run = ids[runs[number].start : runs[number].stop]
                sent[number] = await in_checked_thread(
                    lambda check, run=run: self._send_run(run, b"", check)  # type: ignore[misc]
                )
                self._sent += len(run)
                self._moved += sum(self._sizes[found] for found in run)
                for part in sent[number]:
                    self._report(PackSent(part.blob.digest, part.blob.size, len(part.members)))
                self._report(BytesMoved(self._moved, total, self._sent))

        with single_error():
            async with create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(work)
        return [part for number in range(len(runs)) for part in sent[number]]

    def _send_run(self, ids: Sequence[ObjectId], salt: bytes, check: Callable[[], object]) -> list[Part]:
        """Pack and send one run of objects.  Blocks."""
        if len(ids) == 1 and self._sizes[ids[0]] > self._pack_size:
            with pack_large(self._state, ids[0], level=self._level, salt=salt, check=check) as pack:
                return [self._put(pack)]
        packer = Packer(self._state, level=self._level, pack_size=self._pack_size)
        parts = []
        for pack in packer.packs(ids, salt=salt):
            check()
            parts.append(self._put(pack))
        return parts

    def _put(self, pack: Any) -> Part:
        begun = self._uploads.clock()
        self._store.backend.put(blob_key(pack.blob.digest), pack.data)
        self._uploads.note(pack.blob.digest, begun)
        self._remembered.add(pack)
        return Part(pack.blob, {found[:KEY_SIZE]: place for found, place in pack.members.items()})

    def _upload_again(self, ids: Collection[ObjectId]) -> list[Part]:
        """Send objects in salted packs, whose names nobody else knows.  Blocks."""
        ordered = list(ids)
        runs = slices([self._sizes[found] for found in ordered], pack_size=self._pack_size)
        parts = []
        for run in runs:
            parts += self._send_run(ordered[run.start : run.stop], new_salt(), lambda: None)
        self._sent += len(ordered)
        return parts

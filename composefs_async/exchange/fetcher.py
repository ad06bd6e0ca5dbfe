"""Fetch an image from stores, mirrors and repositories into a repository.

Owns the order: what it is, what streams and images say, what is missing, what is proven, and names last.  A fetch that
is stopped leaves objects without a name, and a lease that keeps them; the next one asks only for what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from .._aio.hops import hop, using
from .._aio.operations import async_operation
from .._aio.to_thread import in_checked_thread
from .._maintenance import leases
from .._maintenance.fsck.object_reader import sizes
from .._maintenance.repair.sources import ObjectSource, RepositorySource, open_source
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import (
    AlgorithmMismatchError,
    ComposefsError,
    FetchDamagedError,
    FetchError,
    FormatError,
    ImageNotFoundError,
    IntegrityError,
    InvalidNameError,
    StoreError,
    StoreFormatError,
)
from ..naming import check_tag
from ..progress import BytesMoved, ProgressCallback, ProgressEvent, RefWritten, SourceFailed, TransferStarted
from ..repository import Repository, state_of
from .arrival import check_expected, present_keys, prove, publish_names
from .closure import Walked, walk
from .documents import Config, Manifest
from .local_sources import take_objects
from .plan import plan_ranges, totals
from .receiving import Receiver
from .store import Store
from .table import DECODED_LIMIT, KEY_SIZE, Kind, Table
from .transfers import Deal, Source

__all__ = ["AnySource", "FetchResult", "fetch"]

AnySource = Store | Repository | str | os.PathLike[str]
"""Where content may come from: a store, or a repository or directory of files on this machine."""

_ROUNDS = 8
"""Times that streams are asked for that other streams were found to need."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """An image that is in place, named and durable."""

    name: str
    manifest_digest: str
    """Digest of the artifact in the store."""
    root: str
    """Name of the stream, or id of the EROFS image."""
    image_id: ObjectId | None
    tag: str
    objects_fetched: int
    objects_present: int
    bytes_received: int
    requests: int
    failed_sources: dict[str, str]
    """What was wrong with sources, by their URL, where another one had what was needed."""


@async_operation
async def fetch(
    repo: Repository,
    sources: AnySource | Sequence[AnySource],
    name: str,
    *,
    expect: str | None = None,
    tag: str | None = None,
    table_limit: int = DECODED_LIMIT,
    progress: ProgressCallback | None = None,
) -> FetchResult:
    """Fetch the image *name* (``NAME`` or ``NAME@sha256:…``) and tag it.  Durable on return.

    Nothing of a store is believed: every object is compared with its id, manifest, config and layers with the digests
    that they have in their names, before anything gets a name.  What one source has not, or has damaged, comes from
    the next one.

    Args:
        sources: in the order of preference; the first store that has *name* says what it is.
        expect: the id of the EROFS image (``sha512:…``), the digest of the OCI manifest, or that of the artifact in
            the store.  Everything that is named is then proven by it.
        tag: in the repository; *name* if not given.
        table_limit: bytes that the table may have after decompression.
        progress: hears of all that is going to be moved before the first byte is, on the event loop.

    Raises:
        ImageNotFoundError: no source has that name.
        FetchError: something is to be had from no source; `FetchDamagedError` if a source has it damaged.
        DigestMismatchError: it is not what is expected, or content is not what its name says.
        AlgorithmMismatchError, InvalidNameError, ReadOnlyRepositoryError
    """
    if tag is None:
        tag = name.partition("@")[0]
    check_tag(tag)
    given = [sources] if isinstance(sources, Store | Repository | str | os.PathLike) else list(sources)
    stores = [each for each in given if isinstance(each, Store)]
    if not stores:
        raise ValueError("at least one source must be a store, which says what the image consists of")
    state = state_of(repo)
    await hop(state.require_writable)
    async with using(state), AsyncExitStack() as stack:
        local: list[ObjectSource] = []
        for each in given:
            if not isinstance(each, Store):
                opened = await hop(_open_local, each, state)
                stack.push_async_callback(hop, opened.close)
                local.append(opened)
        return await _Fetch(state, stores, local, name, progress or _ignore, table_limit).run(expect, tag)


def _ignore(event: object) -> None:
    pass


def _without_failures(report: ProgressCallback) -> ProgressCallback:
    """Fetch from a single source, whose failure is the error that ends it all."""

    def some(event: ProgressEvent) -> None:
        if not isinstance(event, SourceFailed):
            report(event)

    return some


def _open_local(source: Repository | str | os.PathLike[str], state: RepoState) -> ObjectSource:
    if isinstance(source, Repository):
        if source.algorithm is not state.algorithm:
            raise AlgorithmMismatchError(source.path, state.algorithm.text, source.algorithm.text)
        return RepositorySource(state_of(source), source.path, owned=False)
    return open_source(source, state.algorithm)


class _Fetch:
    def __init__(
        self,
        state: RepoState,
        stores: Sequence[Store],
        local: Sequence[ObjectSource],
        name: str,
        report: ProgressCallback,
        table_limit: int,
    ) -> None:
        self._state, self._stores, self._local, self._name = state, stores, local, name
        self._report: ProgressCallback = report if len(stores) + len(local) > 1 else _without_failures(report)
        self._table_limit = table_limit
        self._sources = [Source(store) for store in stores]
        self._said: dict[str, str] = {}
        self._damaged = False
        self._lease: leases.LeaseHolder | None = None
        self._fetched = 0
        self._moved = self._total = 0
        self._before = [(store.usage.requests, store.usage.received) for store in stores]

    async def run(self, expect: str | None, tag: str) -> FetchResult:
        manifest, config = await self._resolve(self._name)
        if config.algorithm is not self._state.algorithm:
            raise AlgorithmMismatchError(self._name, self._state.algorithm.text, config.algorithm.text)
        expected_image = check_expected(expect, manifest.digest, config) if expect else None
        if config.kind != "image":
            raise StoreFormatError(self._name, "it is a layer, not an image")
        walked = await self._walk(config)
        if walked.missing or await self._absent(walked):
            walked = await self._bring(manifest, config, walked)
        else:
            self._report(TransferStarted(self._name, 0, 0, len(walked.kinds)))
        try:
            await prove(self._state, walked, config, image=expected_image, all_images=expect is not None)
        except FormatError as error:  # each object is what its id says, and together they make no sense
            self._damaged = True
            self._said[self._stores[0].url] = str(error)
            raise self._failed(()) from error
        await hop(publish_names, self._state, walked, tag)
        if self._lease is not None:
            await hop(self._lease.end)
        self._report(RefWritten(tag, manifest.digest))
        used = [
            (store.usage.requests - requests, store.usage.received - received)
            for store, (requests, received) in zip(self._stores, self._before, strict=True)
        ]
        return FetchResult(
            self._name,
            manifest.digest,
            config.root,
            next(iter(walked.images), None),
            tag,
            self._fetched,
            len(walked.kinds) - self._fetched,
            sum(received for _, received in used),
            sum(requests for requests, _ in used),
            dict(self._said),
        )

    # -- what it is ----------------------------------------------------------------------------

    async def _resolve(self, name: str) -> tuple[Manifest, Config]:
        """Manifest and config of *name*, from the first store that has them whole.

        A manifest that one store means and has damaged is asked for elsewhere, by its digest.
        """
        wanted = name
        absent: list[ImageNotFoundError] = []
        for store in self._stores:
            try:
                await store.describe()
                if "@" not in wanted:
                    ref = await store.ref(wanted)
                    if ref is None:
                        raise ImageNotFoundError(name, "name", f"{store.url} has none")
                    wanted = f"{name}@{ref.digest}"
                    manifest = await store.manifest(ref)
                else:
                    manifest = await store.resolve(wanted)
                return manifest, await hop(store.read_config, manifest)
            except ImageNotFoundError as error:
                absent.append(error)
            except InvalidNameError:
                raise
            except (StoreError, FormatError, IntegrityError) as error:
                self._blame(store, error)
        if absent and not self._said:
            raise absent[0]
        raise self._failed(())

    def _blame(self, store: Store, error: ComposefsError) -> None:
        self._damaged |= isinstance(error, FormatError | IntegrityError)
        reason = error.reason if isinstance(error, StoreError) else str(error)
        self._said.setdefault(store.url, reason)
        self._report(SourceFailed(store.url, reason))

    def _failed(self, missing: Iterable[ObjectId | str]) -> FetchError:
        ids = tuple(each if isinstance(each, str) else each.hex() for each in missing)
        kind = FetchDamagedError if self._damaged else FetchError
        return kind(self._name, ids, dict(self._said))

    async def _table(self, manifest: Manifest, config: Config) -> Table:
        for store in self._stores:
            try:
                return await hop(store.read_table, manifest, config, self._table_limit)
            except (StoreError, FormatError, IntegrityError) as error:
                self._blame(store, error)
        raise self._failed(())

    # -- what is missing -----------------------------------------------------------------------

    async def _walk(self, config: Config) -> Walked:
        return await in_checked_thread(lambda check: walk(self._state, config.root, config.root_id, check=check))

    async def _absent(self, walked: Walked) -> list[ObjectId]:
        """Objects that are reached and not there."""
        ids = list(walked.kinds)
        found = await hop(sizes, self._state, b"".join(ids))
        return [object_id for object_id, size in zip(ids, found, strict=True) if size < 0]

    async def _bring(self, manifest: Manifest, config: Config, walked: Walked) -> Walked:
        table = await self._table(manifest, config)
        index = await hop(table.index)
        present = await hop(present_keys, self._state)
        lease = await hop(leases.begin, self._state, manifest.digest, f"{self._stores[0].url} {self._name}")
        damaged = frozenset(walked.damaged)
        again = {object_id[:KEY_SIZE] for object_id in damaged}
        lacking = [at for key, at in index.items() if key not in present or key in again]
        self._announce(manifest, table, lacking)
        first = [at for at in lacking if table.kinds[at] != Kind.FILE]
        await self._stage(manifest, table, first, {}, damaged)
        for _ in range(_ROUNDS):
            walked = await self._walk(config)
            if not walked.missing or not await self._elsewhere(manifest, config, table, index, walked.missing):
                break
        if walked.missing:
            self._damaged |= bool(walked.damaged)
            raise self._failed(walked.missing)
        absent = await self._absent(walked)
        await self._elsewhere(manifest, config, table, index, absent)
        if left := await self._absent(walked):
            raise self._failed(left)
        self._lease = lease
        return walked

    def _announce(self, manifest: Manifest, table: Table, lacking: Sequence[int]) -> None:
        """Tell how much there is to do, before anything is done."""
        ranges = plan_ranges(table, lacking, [blob.size for blob in manifest.blobs])
        objects, _, self._total = totals(ranges, table.sizes)
        self._report(TransferStarted(self._name, objects, self._total, len(table) - objects))

    async def _stage(
        self,
        manifest: Manifest,
        table: Table,
        entries: Sequence[int],
        expected: dict[int, ObjectId],
        damaged: frozenset[ObjectId] = frozenset(),
        sources: Sequence[Source] | None = None,
    ) -> None:
        """Bring entries of a table from stores, as far as possible."""
        if not entries:
            return
        receiver = Receiver(self._state, table, expected, damaged)
        deal = Deal(
            receiver,
            manifest.blobs,
            sources or self._sources,
            transfers=max(store.transfers for store in self._stores),
            report=self._report,
            moved=self._count,
        )
        await deal.run(plan_ranges(table, entries, [blob.size for blob in manifest.blobs]))
        self._damaged |= deal.damaged
        for source in sources or self._sources:
            if source.said:
                self._said[source.name] = source.said

    def _count(self, moved: int, objects: int) -> None:
        self._moved += moved
        self._fetched += objects
        self._report(BytesMoved(self._moved, max(self._total, self._moved), self._fetched))

    async def _elsewhere(
        self,
        manifest: Manifest,
        config: Config,
        table: Table,
        index: dict[bytes, int],
        wanted: Sequence[ObjectId],
    ) -> bool:
        """Bring objects by their ids: from this machine, by the plan, and from what other stores mean by the name.

        False if nothing has come.
        """
        before = self._fetched
        left = list(wanted)
        for local in self._local:
            left = await self._from_local(local, left)
        planned = {index[found[:KEY_SIZE]]: found for found in left if found[:KEY_SIZE] in index}
        await self._stage(manifest, table, sorted(planned), planned)
        left = await self._still_absent(left)
        for source in self._sources:
            if not left:
                break
            left = await self._by_other_plan(source, manifest, left)
        return self._fetched > before

    async def _still_absent(self, ids: Sequence[ObjectId]) -> list[ObjectId]:
        found = await hop(sizes, self._state, b"".join(ids))
        return [object_id for object_id, size in zip(ids, found, strict=True) if size < 0]

    async def _from_local(self, source: ObjectSource, wanted: list[ObjectId]) -> list[ObjectId]:
        if not wanted:
            return []
        found = await in_checked_thread(lambda check: set(take_objects(self._state, source, wanted, check=check)))
        self._count(0, len(found))
        return [object_id for object_id in wanted if object_id not in found]

    async def _by_other_plan(self, source: Source, manifest: Manifest, wanted: list[ObjectId]) -> list[ObjectId]:
        """Bring objects by what *source* itself has under the name, if that is another artifact."""
        store = source.store
        try:
            ref = await store.ref(self._name.partition("@")[0])
            if ref is None or ref.digest == manifest.digest:
                return wanted
            other = await store.manifest(ref)
            config = await hop(store.read_config, other)
            if config.algorithm is not self._state.algorithm:
                return wanted
            table = await hop(store.read_table, other, config, self._table_limit)
        except (StoreError, FormatError, IntegrityError) as error:
            self._blame(store, error)
            return wanted
        index = await hop(table.index)
        planned = {index[found[:KEY_SIZE]]: found for found in wanted if found[:KEY_SIZE] in index}
        await self._stage(other, table, sorted(planned), planned, sources=[source])
        return await self._still_absent(wanted)

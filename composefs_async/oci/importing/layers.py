"""One layer into the repository: whatever delivers its bytes, packed or not, verified before it has a name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from ..._aio.hops import hop, resources, using, write_hop
from ..._aio.operations import async_operation
from ..._repo import objects, streams
from ..._repo.publish import check_reference
from ..._repo.state import RepoState
from ..._sys import files
from ...digest import ObjectId
from ...errors import ComposefsError, inputs_named
from ...naming import layer_stream
from ...progress import (
    BytesRead,
    LayerDiffersFromPeers,
    LayerDone,
    LayerSkipped,
    LayerStarted,
    ObjectsStored,
    ProgressCallback,
)
from ...repository import Repository, state_of
from ...results import ImportStats, StoredObject
from ...splitstream import OCI_BLOB, SplitstreamWriter
from ..documents import Descriptor, content_hasher
from ..limits import Limits
from ..sources.base import BlockingBlob, LocalBlob, StreamedBlob
from ..tar.header import INLINE_MAX
from ..tar.split import PIECE, TarSplitter
from .clones import Clones, Link
from .incremental_tree import Follower
from .single_flight import Holder, fly, holding
from .stages import Conveyor, store_raw
from .unpack import ByteSource, Unpacker, opened_source

__all__ = ["ImportRun", "LayerResult", "find_layer", "import_layer", "skipped", "store_blob", "store_layer"]

T = TypeVar("T")

_MAX_CARRIERS = 4
"""Unpacking bounds one layer: more than a few chunks under way only cost memory."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A layer that is in place."""

    diff_id: str
    """For a layer of an artifact, its own digest."""
    stream_id: ObjectId
    """Id of its splitstream."""
    present: bool
    """It was there, or somebody else brought it; nothing was read for this caller."""
    stats: ImportStats
    packed_verified: bool = True
    """Not if it came unpacked, or in parts: then its diff_id was checked, and its digest as shipped was not."""


@dataclass(frozen=True, slots=True)
class ImportRun:
    """What all layers of one import share."""

    state: RepoState
    report: ProgressCallback
    limits: Limits
    holder: Holder
    told: set[str] = field(default_factory=set[str])
    """Layers of which it has been reported that others make something else."""
    link: Link = "auto"
    """Whether content is shared with files of the source."""
    verify: bool = False
    """Read what is reused, too, and compare it with the digest by which it is known."""

    @classmethod
    @asynccontextmanager
    async def begin(
        cls,
        repo: Repository,
        progress: ProgressCallback | None,
        limits: Limits | None,
        *,
        verify: bool = False,
        link: Link = "auto",
    ) -> AsyncIterator[ImportRun]:
        """Check that the repository can be written, and keep exclusive operations of its handle away.

        Raises:
            ReadOnlyRepositoryError
        """
        state = state_of(repo)
        await hop(state.require_writable)
        async with using(state):
            with holding() as holder:
                yield cls(state, progress or _ignore, limits or Limits(), holder, link=link, verify=verify)

    async def once(self, kind: str, name: str, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """`fly` for something of this repository, whichever handles it is wanted through."""
        status = await hop(_status, self.state)
        return await fly((status.st_dev, status.st_ino, kind, name), work, self.holder)

    def differs(self, diff_id: str, reason: str) -> None:
        """Report, once for a layer, that another program makes something else of it."""
        if reason and diff_id not in self.told:
            self.told.add(diff_id)
            self.report(LayerDiffersFromPeers(diff_id, reason))

    async def lease(self, diff_id: str, stream_id: ObjectId) -> None:
        """Let the leases that the handle has open keep a layer, whether it was there or has just come."""
        for lease in tuple(self.state.leases):
            await hop(lease.finished, diff_id, stream_id)


def _status(state: RepoState) -> os.stat_result:
    with files.naming(state.path):
        return os.fstat(state.fd)


def _ignore(event: object) -> None:
    pass


@async_operation
async def import_layer(
    repo: Repository,
    diff_id: str | None,
    source: ByteSource,
    *,
    reference: str | None = None,
    media_type: str | None = None,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
) -> LayerResult:
    """Store a tar layer and publish it as ``oci-layer-<diff_id>``.  Durable on return.

    The next garbage collection removes it, unless an image names it by then (`add_image`, `pull`), it has a
    *reference*, or it was imported inside ``async with repo.lease(name)``, which keeps it meanwhile.

    The tar may be packed with gzip or zstd, which its first bytes tell; its unpacked bytes must have the digest
    *diff_id*.  Nothing is published otherwise.  A layer that is there is not read.

    Args:
        diff_id: None computes the sha256 digest of the unpacked bytes; it is in the result.
        source: any async iterable of bytes, an object with an async ``read`` or ``receive`` (files of AnyIO and
            aiofiles, byte streams), a `LocalBlob`, which is read fastest, or a `BlockingBlob`.  Stays open.
        reference: a name to publish besides, below ``refs/``.
        media_type: must be one of a layer, if it is given.

    Raises:
        DigestMismatchError, TarError, CompressionError, OciError, InvalidNameError
    """
    if diff_id is not None:
        content_hasher("layer", diff_id)
    if reference is not None:
        check_reference(reference)
    async with ImportRun.begin(repo, progress, limits) as run:
        found = await find_layer(run.state, diff_id) if diff_id is not None else None
        if diff_id is None or found is None:
            size = 0 if not isinstance(source, LocalBlob | StreamedBlob | BlockingBlob) else source.size
            run.report(LayerStarted(diff_id or "", diff_id or "", size))
            async with opened_source(source) as chunks:
                unpacker = Unpacker(run.state, chunks, diff_id, media_type=media_type, limits=run.limits)
                result = await store_layer(run, diff_id, unpacker, size)
        else:
            result = skipped(run, diff_id, found)
        await run.lease(result.diff_id, result.stream_id)
        if found is None:
            await repo.register_stream_async(result.stream_id, layer_stream(result.diff_id), reference)
        elif reference is not None:
            await repo.name_stream_async(layer_stream(result.diff_id), reference)
        return result


async def store_layer(
    run: ImportRun,
    diff_id: str | None,
    unpacker: Unpacker,
    total: int,
    follower: Follower | None = None,
    label: str = "",
    clones: Clones | None = None,
) -> LayerResult:
    """Store a tar layer without publishing it; the same layer wanted twice at once is read once.

    Args:
        diff_id: None if it is to be computed.
        total: packed size in bytes, for progress; 0 if it is not known.
        follower: sees the layer, if it is read here.
        clones: of files in the layer, if the source offers them; closed when this returns.
        label: what events, but for the last, and messages have in the place of a diff_id that is not known yet.
    """

    def observe(packed: int, stats: ImportStats) -> None:
        run.report(BytesRead(diff_id or label, packed, total))
        run.report(
            ObjectsStored(diff_id or label, stats.objects_stored + stats.objects_replaced, stats.objects_present)
        )

    async def work() -> tuple[StoredObject, ImportStats]:
        carriers = min(int(resources(run.state).write_semaphore.total_tokens), _MAX_CARRIERS)
        limit = run.limits.max_file_size
        # The splitter does not compare what it carries whole with the limit.
        splitter = TarSplitter(carry_limit=min(PIECE, max(limit, INLINE_MAX)), max_file_size=limit)
        conveyor = Conveyor(run.state, unpacker, splitter, observe, carriers=carriers, follower=follower, clones=clones)
        with inputs_named(f"layer {diff_id}" if diff_id else label or "layer"):
            done = await conveyor.run()
        run.differs(diff_id or unpacker.digests[1], splitter.difference)
        return done

    if diff_id is not None:
        return await _once(run, "layer", diff_id, work)
    if label:
        run.report(LayerStarted(label, label, total))
    stored, stats = await work()
    return _done(run, unpacker.digests[1], stored.id, stats)


async def store_blob(run: ImportRun, descriptor: Descriptor, unpacker: Unpacker) -> LayerResult:
    """Store a blob that is no tar layer as one object and a stream that refers to it; publishes nothing."""

    async def work() -> tuple[StoredObject, ImportStats]:
        with inputs_named(f"blob {descriptor.digest}"):
            stored, stats = await store_raw(run.state, unpacker, descriptor.size)
        writer = SplitstreamWriter(run.state.algorithm, OCI_BLOB)
        writer.write_reference(stored.id)
        writer.add_external_size(stored.size)
        return await write_hop(run.state, partial(objects.ensure_object, run.state, writer.done(), compare=True)), stats

    return await _once(run, "blob", descriptor.digest, work)


def skipped(run: ImportRun, name: str, stream_id: ObjectId) -> LayerResult:
    """Nothing has to be done for a layer."""
    run.report(LayerSkipped(name))
    return LayerResult(name, stream_id, True, ImportStats(layers_present=1))


async def _once(
    run: ImportRun, kind: str, name: str, work: Callable[[], Awaitable[tuple[StoredObject, ImportStats]]]
) -> LayerResult:
    async def unless_published() -> tuple[ObjectId, ImportStats | None]:
        # Another import may have published it, and let go of it, since the caller looked.
        found = await find_layer(run.state, name, tar=kind == "layer")
        if found is not None:
            return found, None
        stored, stats = await work()
        return stored.id, stats

    (stream_id, stats), ran_here = await run.once(kind, name, unless_published)
    if not ran_here or stats is None:
        return skipped(run, name, stream_id)
    return _done(run, name, stream_id, stats)


def _done(run: ImportRun, name: str, stream_id: ObjectId, stats: ImportStats) -> LayerResult:
    stats += ImportStats(layers_imported=1)
    run.report(LayerDone(name, stats))
    return LayerResult(name, stream_id, False, stats)


async def find_layer(state: RepoState, name: str, *, tar: bool = True) -> ObjectId | None:
    """The stream of a layer that has been published, None if it is not there or cannot be read.

    Args:
        tar: not if it was stored as a blob: an artifact may have brought the same bytes, undivided, under the
            same name, and no tree can be made of that.
    """
    return await hop(partial(_find_layer, state, layer_stream(name), tar))


def _find_layer(state: RepoState, name: str, tar: bool) -> ObjectId | None:
    found = streams.has_stream(state, name)
    if found is None:
        return None
    try:
        with streams.open_stream(state, name, found) as reader:
            return None if tar and reader.content_type == OCI_BLOB else found
    except ComposefsError:
        return None

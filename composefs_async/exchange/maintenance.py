"""Looking after a store: collection of garbage, removal of names, an index for other tools, mirrors.

Owns running them on a `Store`.  Does not own when garbage may be deleted (`gc`), nor checking (`storecheck`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import create_task_group

from .._aio.groups import single_error
from .._aio.hops import hop
from ..errors import BlobMissingError, DigestMismatchError, StoreError
from ..progress import BytesMoved, ProgressCallback, RefWritten, TransferStarted
from .backends.base import PreconditionError, Stored
from .commit import read_condemned, remove_ref
from .condemned import DESCRIPTION_KEY, DESCRIPTION_LIMIT, LAYOUT, LAYOUT_KEY, Description
from .documents import MANIFEST_TYPE, REF_LIMIT, blob_key, canonical, parse_ref, ref_key
from .gc import CollectReport, Marker, survey
from .gc import collect as collect_program
from .pacing import elapsed
from .store import Store, run_program

__all__ = ["MirrorResult", "collect", "mirror", "remove", "write_index"]

_INDEX_KEY = "index.json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"


async def collect(store: Store, *, keep: Collection[str] = (), dry_run: bool = False) -> CollectReport:
    """Delete blobs that no name has needed for the grace time of the store.  Safe beside publishers.

    What is garbage now is put on a list, and deleted by a run after the grace time.  In a store without conditional
    writes only its one writer may collect.

    Args:
        keep: digests of blobs that are kept all the same.
        dry_run: tell what is garbage and what each name costs; write nothing.

    Raises:
        StoreBusyError: another run is at work.
        StoreError, StoreFormatError, DigestMismatchError: it cannot be told what is needed; nothing was deleted.
    """
    description = await store.describe()
    unknown = description.features.get("read-only-compatible", ())
    if unknown and not dry_run:
        raise StoreError(store.url, f"it uses features unknown to this version: {', '.join(unknown)}")
    if dry_run:
        return await run_program(store, survey(store.url, keep))
    return await run_program(store, collect_program(store.url, description.grace, clock=elapsed, keep=keep))


async def remove(store: Store, name: str) -> bool:
    """Remove *name*; what it means stays until garbage is collected.  False if it was not there."""
    await store.describe()
    return await run_program(store, remove_ref(name, url=store.url))


async def write_index(store: Store) -> int:
    """Write index.json, by which tools that read OCI image directories find the names.  Returns their number.

    It is derived: nothing of ours reads it, and whoever changes a name does not change it.
    """
    await store.describe()
    manifests: list[dict[str, Any]] = []
    async for each in store.refs():
        ref = await store.ref(each.name)
        if ref is not None:
            members: dict[str, Any] = {"mediaType": MANIFEST_TYPE, "digest": ref.digest, "size": ref.size}
            manifests.append({**members, "annotations": {_REF_NAME: each.name}})
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": manifests}
    await hop(store.backend.put, _INDEX_KEY, canonical(index))
    return len(manifests)


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """What a mirror has got."""

    names: int
    """Names that were written or changed."""
    blobs: int
    bytes: int
    removed: int
    """Names that the original does not have any more."""


async def mirror(source: Store, target: Store, *, progress: ProgressCallback | None = None) -> MirrorResult:
    """Make *target* a copy of *source*: blobs that names need, then the names, all with the same bytes.

    A target that is no store yet becomes one with the identity of the source.  Its own names that the source has not
    are removed.

    Raises:
        StoreError: a blob is missing in the source, or is about to be deleted in the target.
        StoreFormatError, DigestMismatchError: a name of the source cannot be understood.
    """
    report = progress or (lambda event: None)
    await source.describe()
    await hop(_copy_description, source, target)
    await target.describe()
    marker = Marker(source.url)
    needed = await run_program(source, marker.mark())
    have = {info.key: info.size for info in await hop(lambda: [*target.backend.list("blobs/")])}
    sizes = {info.key: info.size for info in await hop(lambda: [*source.backend.list("blobs/")])}
    wanted = sorted(key for key in map(blob_key, needed) if key not in have)
    if lost := [key for key in wanted if key not in sizes]:
        raise BlobMissingError(source.url, lost[0])
    total = sum(sizes[key] for key in wanted)
    report(TransferStarted(source.url, len(wanted), total, len(needed) - len(wanted)))
    await _copy_blobs(source, target, wanted, sizes, report)
    condemned = await run_program(target, read_condemned(target.url))
    if doomed := [digest for digest in needed if digest in condemned]:
        reason = f"{doomed[0]} is about to be deleted there; try again after its next collection of garbage"
        raise StoreError(target.url, reason)
    written = 0
    for name in sorted(marker.refs):
        if await hop(_copy_ref, source, target, name):
            report(RefWritten(name, marker.refs[name]))
            written += 1
    removed = 0
    async for each in target.refs():
        if each.name not in marker.refs:
            removed += await run_program(target, remove_ref(each.name, url=target.url))
    return MirrorResult(written, len(wanted), total, removed)


def _copy_description(source: Store, target: Store) -> None:
    if target.backend.read(DESCRIPTION_KEY, DESCRIPTION_LIMIT) is None:
        stored = source.backend.read(DESCRIPTION_KEY, DESCRIPTION_LIMIT)
        raw = stored.data if stored else b""
        Description.parse(raw, source.url)
        target.backend.put(LAYOUT_KEY, LAYOUT)
        target.backend.put(DESCRIPTION_KEY, raw)


async def _copy_blobs(
    source: Store, target: Store, keys: Collection[str], sizes: dict[str, int], report: ProgressCallback
) -> None:
    queue, moved, done = iter(keys), 0, 0
    total = sum(sizes[key] for key in keys)

    async def work() -> None:
        nonlocal moved, done
        for key in queue:
            await hop(_copy_blob, source, target, key)
            moved, done = moved + sizes[key], done + 1
            report(BytesMoved(moved, total, done))

    with single_error():
        async with create_task_group() as tasks:
            for _ in range(min(4, len(keys))):
                tasks.start_soon(work)


def _copy_blob(source: Store, target: Store, key: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="composefs-async-mirror-") as file:
        hasher = hashlib.sha256()
        for piece in source.backend.get(key):
            hasher.update(piece)
            file.write(piece)
        file.flush()
        if key != blob_key(hasher.hexdigest()):
            raise DigestMismatchError(f"{source.url}/{key}", key.rpartition("/")[2], hasher.hexdigest())
        target.backend.put(key, Path(file.name))


def _copy_ref(source: Store, target: Store, name: str) -> bool:
    """Let the name mean the same; False if it does."""
    for _ in range(8):
        ours: Stored | None = source.backend.read(ref_key(name), REF_LIMIT)
        theirs: Stored | None = target.backend.read(ref_key(name), REF_LIMIT)
        if ours is None or (theirs is not None and theirs.data == ours.data):
            return False
        parse_ref(ours.data, name)
        try:
            target.writer().swap(ref_key(name), ours.data, theirs.version if theirs else None)
        except PreconditionError:
            continue
        return True
    raise StoreError(target.url, f"the name {name} is changing all the time")

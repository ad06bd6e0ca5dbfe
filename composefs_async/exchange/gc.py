"""Delete what no name of a store needs, beside publishers that take no locks.

Owns the side of garbage collection; the other side is `commit`.  A blob is deleted only after at least the grace time G
on the list gc/condemned.json, within G/3 of a heartbeat of the list that names it, and after references read since
then did not need it.  A publisher names a manifest only if at some moment not more than G/3 before, none of its blobs
was on the list and all were there.  So whatever a publisher re-used was either not on the list then, and the run that
deletes it reads the references later than the new one was made; or it is on the list, and is uploaded under another
name.  All times are the store's own; durations are local and monotonic.  No I/O of its own: see `protocol`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from ..errors import BlobMissingError, StoreBusyError, StoreFormatError
from .backends.base import BlobInfo, PreconditionError, Stored
from .condemned import CLOCK_KEY, CONDEMNED_KEY, CONDEMNED_LIMIT, Condemned, format_time
from .documents import MANIFEST_LIMIT, REF_LIMIT, Manifest, blob_key, name_of_ref, parse_manifest, parse_ref
from .protocol import Delete, Head, List, Many, Program, Put, Read, Swap

__all__ = ["CollectReport", "Marker", "RefCost", "collect", "survey"]

_BATCH = 100
_READS = 64
_ATTEMPTS = 8
_RESOLUTION = 1.0
"""Seconds by which a time of a store may be too early: HTTP has whole seconds."""
_BLOBS = "blobs/sha256/"


@dataclass(frozen=True, slots=True)
class RefCost:
    """What one name keeps, in bytes."""

    name: str
    exclusive: int
    """In blobs that no other name needs; removing the name frees them."""
    shared: int


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection did, or in a dry run would do."""

    live_blobs: int
    live_bytes: int
    young_blobs: int
    """Not needed by any name, and younger than the grace time, so that a publisher may be about to name them."""
    condemned_blobs: int
    """On the list when the run ended, to be deleted by a later one."""
    condemned_bytes: int
    deleted_blobs: int
    deleted_bytes: int
    refs: tuple[RefCost, ...]
    dry_run: bool = False


@dataclass(slots=True)
class Marker:
    """Reads all references and manifests; what a manifest needs is remembered by its digest."""

    url: str
    needed: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    refs: dict[str, str] = field(default_factory=dict[str, str])
    """Digests of the manifests by the names that mean them, as of the last `mark`."""

    def mark(self) -> Program[set[str]]:
        """Digests of everything that a name needs.

        Raises:
            StoreFormatError, DigestMismatchError, BlobMissingError: it cannot be told what a name needs.
        """
        listed: list[BlobInfo] = yield List("refs/")
        self.refs = {}
        absent: dict[str, str] = {}
        for at in range(0, len(listed), _READS):
            keys = [info.key for info in listed[at : at + _READS]]
            found: list[Stored | None] = yield Many([Read(key, REF_LIMIT) for key in keys])
            for key, stored in zip(keys, found, strict=True):
                if stored is not None:
                    self._ref(name_of_ref(key), stored, absent)
        yield from self._manifests(absent)
        return {digest for manifest in self.refs.values() for digest in self.needed[manifest]}

    def _ref(self, name: str, stored: Stored, absent: dict[str, str]) -> None:
        ref = parse_ref(stored.data, name)
        if ref.deleted:
            return
        self.refs[name] = ref.digest
        if ref.digest in self.needed:
            return
        if ref.manifest is not None:
            self._take(parse_manifest(ref.manifest, ref.digest))
        else:
            absent[ref.digest] = name

    def _take(self, manifest: Manifest) -> None:
        self.needed[manifest.digest] = tuple(manifest.needed)

    def _manifests(self, absent: dict[str, str]) -> Program[None]:
        digests = [digest for digest in absent if digest not in self.needed]
        for at in range(0, len(digests), _READS):
            some = digests[at : at + _READS]
            found: list[Stored | None] = yield Many([Read(blob_key(digest), MANIFEST_LIMIT) for digest in some])
            for digest, stored in zip(some, found, strict=True):
                if stored is None:
                    raise BlobMissingError(self.url, f"manifest {digest} of {absent[digest]}")
                self._take(parse_manifest(stored.data, digest))

    def costs(self, sizes: dict[str, int]) -> tuple[RefCost, ...]:
        """What each name keeps alone and with others, given the *sizes* of blobs by their digest."""
        users: dict[str, int] = {}
        for manifest in self.refs.values():
            for digest in set(self.needed[manifest]):
                users[digest] = users.get(digest, 0) + 1
        costs = []
        for name, manifest in sorted(self.refs.items()):
            digests = set(self.needed[manifest])
            alone = sum(sizes.get(digest, 0) for digest in digests if users[digest] == 1)
            costs.append(RefCost(name, alone, sum(sizes.get(digest, 0) for digest in digests) - alone))
        return tuple(costs)


def survey(url: str, keep: Collection[str] = ()) -> Program[CollectReport]:
    """Tell what a collection would condemn, without owning or writing anything.

    Ages are not looked at: what nothing needs and is not on the list counts as young.
    """
    stored: Stored | None = yield Read(CONDEMNED_KEY, CONDEMNED_LIMIT)
    condemned = Condemned.parse(stored.data if stored else None, url)
    sizes = yield from _list_blobs()
    marker = Marker(url)
    live = (yield from marker.mark()) | set(keep)
    garbage = {digest: info for digest, info in sizes.items() if digest not in live}
    listed = {digest: info for digest, info in garbage.items() if digest in condemned}
    return CollectReport(
        len(sizes) - len(garbage),
        sum(info.size for digest, info in sizes.items() if digest in live),
        len(garbage) - len(listed),
        len(listed),
        sum(info.size for info in listed.values()),
        0,
        0,
        marker.costs({digest: info.size for digest, info in sizes.items()}),
        True,
    )


def collect(
    url: str, grace: float, *, clock: Callable[[], float], keep: Collection[str] = (), owner: str = ""
) -> Program[CollectReport]:
    """One run of garbage collection.  Stopped anywhere it leaves a store that the next run goes on with.

    Args:
        clock: monotonic, in seconds.
        keep: digests of blobs that are kept though no name needs them.
        owner: tells this run from others; new if not given.

    Raises:
        StoreBusyError: another run is at work, or has taken over.
        StoreFormatError, DigestMismatchError, BlobMissingError: it cannot be told what a name needs; nothing was
            deleted since.
    """
    run = _Run(url, grace, clock, frozenset(keep), owner or str(uuid.uuid4()))
    yield from run.own()
    now = yield from run.time()
    blobs = yield from _list_blobs()
    live = yield from run.mark()
    young = yield from run.condemn(blobs, live, now)
    deleted = yield from run.sweep(now)
    yield from run.release(deleted)
    sizes = {digest: info.size for digest, info in blobs.items()}
    return run.report(sizes, live, young, deleted)


def _list_blobs() -> Program[dict[str, BlobInfo]]:
    listed: list[BlobInfo] = yield List(_BLOBS)
    return {f"sha256:{info.key.removeprefix(_BLOBS)}": info for info in listed}


@dataclass(slots=True)
class _Run:
    url: str
    grace: float
    clock: Callable[[], float]
    keep: frozenset[str]
    owner: str
    condemned: Condemned = field(default_factory=Condemned)
    version: str | None = None
    marker: Marker = field(default_factory=lambda: Marker(""))

    # -- the list ------------------------------------------------------------------------------

    def own(self) -> Program[None]:
        """Make this run the owner of the list."""
        self.marker.url = self.url
        for _ in range(_ATTEMPTS):
            stored: Stored | None = yield Read(CONDEMNED_KEY, CONDEMNED_LIMIT)
            found = Condemned.parse(stored.data if stored else None, self.url)
            modified = stored.modified if stored else 0.0
            if found.owner and found.owner != self.owner:
                now = yield from self.time()
                if now - modified <= self.grace + _RESOLUTION:
                    raise StoreBusyError(self.url, found.owner, format_time(modified))
            # What has no time was put there when the list was last written, or before.
            latest = modified + _RESOLUTION
            stamped = {name: latest if since is None else since for name, since in found.blobs.items()}
            self.version = stored.version if stored else None
            if (yield from self._write(Condemned(self.owner, stamped))):
                return
        raise StoreBusyError(self.url, "of somebody else", "just now")

    def _write(self, condemned: Condemned) -> Program[bool]:
        """Swap the list; False if somebody else has changed it."""
        data = condemned.encode()
        for _ in range(_ATTEMPTS):
            outcome: object = yield Swap(CONDEMNED_KEY, data, self.version)
            if isinstance(outcome, str):
                self.condemned, self.version = condemned, outcome
                return True
            # The answer of an earlier try may have been lost: then what is there is ours.
            stored: Stored | None = yield Read(CONDEMNED_KEY, CONDEMNED_LIMIT)
            if stored is not None and stored.data == data and isinstance(outcome, PreconditionError):
                self.condemned, self.version = condemned, stored.version
                return True
            if (stored.version if stored else None) != self.version:
                return False
        return False

    def _write_own(self, condemned: Condemned) -> Program[None]:
        if not (yield from self._write(condemned)):
            raise StoreBusyError(self.url, "that has taken over", "just now")

    def time(self) -> Program[float]:
        """Now, by the clock of the store."""
        yield Put(CLOCK_KEY, b"\n")
        info: BlobInfo | None = yield Head(CLOCK_KEY)
        if info is None:
            raise StoreFormatError(f"{self.url}/{CLOCK_KEY}", "what was just written is not there")
        return info.modified

    # -- steps ---------------------------------------------------------------------------------

    def mark(self) -> Program[set[str]]:
        live = yield from self.marker.mark()
        return live | self.keep

    def condemn(self, blobs: dict[str, BlobInfo], live: set[str], now: float) -> Program[int]:
        """Put what nothing needs on the list; returns how many blobs are too young for it."""
        kept = {name: since for name, since in self.condemned.blobs.items() if f"sha256:{name}" not in live}
        young = 0
        for digest, info in blobs.items():
            name = digest.removeprefix("sha256:")
            if digest in live or name in kept:
                continue
            if info.modified < now - self.grace:
                kept[name] = None
            else:
                young += 1
        yield from self._write_own(replace(self.condemned, blobs=kept))
        return young

    def sweep(self, now: float) -> Program[set[str]]:
        """Delete what has been on the list for the grace time; returns the digests."""
        due = {
            f"sha256:{name}"
            for name, since in self.condemned.blobs.items()
            if since is not None and since <= now - self.grace
        }
        deleted: set[str] = set()
        while due:
            begun = self.clock()
            yield from self._write_own(self.condemned)
            due -= yield from self.mark()
            for batch in _batches(sorted(due)):
                if self.clock() - begun > self.grace / 3:
                    break
                yield Delete(tuple(blob_key(digest) for digest in batch))
                deleted.update(batch)
                due.difference_update(batch)
        return deleted

    def release(self, deleted: set[str]) -> Program[None]:
        """Take what was deleted off the list, and give up owning it."""
        left = {name: since for name, since in self.condemned.blobs.items() if f"sha256:{name}" not in deleted}
        yield from self._write_own(Condemned("", left))

    def report(self, sizes: dict[str, int], live: set[str], young: int, deleted: set[str]) -> CollectReport:
        present = [digest for digest in sizes if digest in live]
        waiting = [f"sha256:{name}" for name in self.condemned.blobs]
        return CollectReport(
            len(present),
            sum(sizes[digest] for digest in present),
            young,
            len(waiting),
            sum(sizes.get(digest, 0) for digest in waiting),
            len(deleted & sizes.keys()),
            sum(sizes.get(digest, 0) for digest in deleted),
            self.marker.costs(sizes),
        )


def _batches(digests: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for digest in digests:
        batch.append(digest)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

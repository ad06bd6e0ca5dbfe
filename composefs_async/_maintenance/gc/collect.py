"""Garbage collection: removes names that lead nowhere and objects that no name needs, beside running importers.

Owns the order of things.  What is needed is found under the shared lock, while importers go on (`survey`).  Then the
exclusive lock is taken for short slices; in each, what has been named since is looked for first, then names go, and
only when they are durably gone, objects.  So a name never leads to an object that gc has deleted, whenever it is
stopped, by whatever.

Only what was garbage when it was looked for is deleted: what comes later stays, though nothing names it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

from ..._log import logger
from ..._repo.publish import Category
from ..._repo.state import RepoState
from ..._repo.threads import Threads
from ..._sys import files, locks
from ...digest import ObjectId
from ...errors import ReachUnknownError, ReadOnlyRepositoryError
from ...naming import referrers_first
from ...progress import CollectProgress, Message, ProgressCallback, ProgressEvent
from ...results import GcResult
from .. import leases, reachability, spools
from ..mounted import mounted_images
from ..reach_cache import ReachCache
from ..repair import quarantine
from . import shards
from .candidates import Survey, leftovers
from .idset import IdSet

__all__ = ["gc"]

_log = logger("gc")

_SLICE = 0.08
"""Seconds of work under the exclusive lock, after which others get a chance."""
_PAUSE = 2 * locks.LOCK_POLL
_PATIENCE = 1.0
"""Seconds to wait for others before it is told."""
_FOLLOWED = 64
"""Streams and images between two events."""
_BATCH = 512
"""Objects that are removed between two looks at the clock."""

Check = Callable[[], object]


def gc(
    state: RepoState,
    additional_roots: Iterable[str] = (),
    *,
    dry_run: bool = False,
    ignore_mounts: bool = False,
    timeout: float | None = None,
    quarantine_older: float | None = None,
    progress: ProgressCallback | None = None,
    check: Check | None = None,
) -> GcResult:
    """Remove what no name needs.  Blocks; names that are removed are durably gone, objects may come back as garbage.

    Stopped at any point, it leaves the repository whole, and the next run does the rest.

    Args:
        additional_roots: first-level names that are kept with all they need, though no reference leads to them; those
            that are not there are ignored and told.
        ignore_mounts: do not keep what is mounted in this mount namespace and has no reference.
        dry_run: only tell what would be removed; needs neither the exclusive lock nor permission to write.
        timeout: how many seconds in all to wait for others who use the repository; 0 waits for nobody.
        quarantine_older: also delete what repairs put aside so many seconds ago, or before.
        progress: gets an event for about a thousand objects; while it works others may wait.
        check: called now and then; what it raises ends the run.

    Raises:
        RepositoryInUseError: the time is over; what has been removed until then stays removed.
        ReachUnknownError: something that is needed is damaged; nothing has been removed.
        OSError: something could not be read, so that nothing has been removed; or a removal failed, which ends it.
        ReadOnlyRepositoryError
    """
    if not dry_run:
        state.require_writable()
    collection = _Collection(state, tuple(additional_roots), ignore_mounts, progress or _ignore, check or _nothing)
    with files.whole_paths(state.path):
        with state.shared():
            collection.mark()
        if not dry_run:
            collection.sweep(timeout)
            spools.expire(state)
        kept = () if quarantine_older is None else quarantine.expire(state, quarantine_older, dry_run=dry_run)
    result = replace(collection.result(), quarantines=tuple(kept))
    verb = "would collect" if dry_run else "collected"
    _log.info("%s: %s %d objects of %d bytes", state.path, verb, result.objects_removed, result.objects_bytes)
    return result


def _nothing() -> None:
    pass


def _ignore(event: ProgressEvent) -> None:
    pass


class _Collection:
    def __init__(
        self,
        state: RepoState,
        additional: tuple[str, ...],
        ignore_mounts: bool,
        progress: ProgressCallback,
        check: Check,
    ) -> None:
        self._state, self._additional, self._ignore_mounts = state, additional, ignore_mounts
        self._progress, self._check = progress, check
        self._width = state.algorithm.digest_size
        self._reached = reachability.Reached()
        self._late: set[bytes] = set()  # ids that became needed after the survey
        self._pruned: list[tuple[Category, str]] = []
        self._removed = self._bytes = 0
        self._has_waited = False

    def mark(self) -> None:
        """Find what is needed, and what is not."""
        state, live = self._state, IdSet(self._width)
        self._roots = self._find_roots(None)
        self._roots.require_all()
        self._leases = leases.all_leases(state)
        with ReachCache.open(state) as cache:
            for number, ids in enumerate(self._follow(cache), 1):
                live.add(ids)
                if number % _FOLLOWED == 0:
                    self._report("follow", len(self._reached.seen), 0)
            self._report("follow", len(self._reached.seen), len(self._reached.seen))
            with contextlib.suppress(ReadOnlyRepositoryError, OSError):  # a full disk, for example
                state.require_writable()
                cache.save(state)
        since = min((lease.started for lease in self._leases), default=None)
        self._survey = Survey.make(state, live, since, self._compared())
        self._leftovers = leftovers(state) + self._survey.leftovers
        self._spare()
        named = {object_id for links in self._roots.links.values() for object_id in links.values()}
        self._staying = {object_id for object_id in named if not self._goes(object_id)}
        self._pruned = self._doomed()
        self._removed, self._bytes = self._foreseen()

    def _find_roots(self, known: reachability.Roots | None) -> reachability.Roots:
        mounted = () if self._ignore_mounts else mounted_images(self._state)
        return reachability.roots(self._state, self._additional, known, mounted)

    def _foreseen(self) -> tuple[int, int]:
        """How many objects and bytes are to go."""
        if not self._late:
            return self._survey.count, self._survey.size
        sizes = [
            size
            for ids, all_sizes in zip(self._survey.garbage, self._survey.sizes, strict=True)
            for object_id, size in zip(shards.pieces(ids, self._width), all_sizes, strict=True)
            if object_id not in self._late
        ]
        return len(sizes), sum(sizes)

    def _report(self, stage: str, done: int, total: int) -> None:
        self._progress(CollectProgress(stage, done, total))

    def _compared(self) -> Check:
        """Report progress, after each directory of objects."""
        done = count(1)

        def check() -> None:
            self._check()
            self._report("compare", next(done), shards.SHARDS)

        return check

    def _follow(self, cache: ReachCache | None) -> Iterator[bytes]:
        """Ids of all that is needed and has not been given before, some of it several times."""
        for object_id, node in reachability.visit(self._state, self._roots.ids, cache, self._reached):
            self._check()
            yield object_id + node.objects
        yield b"".join(self._reached.missing)
        yield from self._follow_spared((each for lease in self._leases for each in lease.layers.values()), cache)

    def _follow_spared(self, spared: Iterable[ObjectId], cache: ReachCache | None) -> Iterator[bytes]:
        """Follow what stays although no reference leads to it; yields ids, one after the other."""
        reached = reachability.Reached(self._reached.seen)
        for spared_id in sorted(set(spared)):
            # What is missing or damaged there was never finished.
            with contextlib.suppress(ReachUnknownError):
                for object_id, node in reachability.visit(self._state, [spared_id], cache, reached):
                    yield object_id + node.objects
        self._reached.seen -= reached.missing

    def _spare(self) -> None:
        """Names that stay lead to what is whole: of an import, say, that stopped before its references."""
        named = {object_id for links in self._roots.links.values() for object_id in links.values()}
        spared = (each for each in named - self._reached.seen if not self._goes(each))
        for ids in self._follow_spared(spared, None):
            self._late.update(shards.pieces(ids, self._width))

    def _doomed(self) -> list[tuple[Category, str]]:
        """First-level names that lead to what is not there or will be gone, and that no reference means.

        Names of what refers to others come before those of the others, so that stopping leaves nothing for fsck.
        """
        kept = self._roots.names
        return [*self._roots.lost] + [
            (category, name)
            for category, links in self._roots.links.items()
            for name, object_id in sorted(links.items(), key=lambda link: referrers_first(link[0]))
            if object_id not in self._staying and (category, name) not in kept and self._goes(object_id)
        ]

    def _goes(self, object_id: ObjectId) -> bool:
        try:
            with files.naming(self._state.path):
                mode = os.stat(f"objects/{object_id.path}", dir_fd=self._state.fd, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return True
        if not stat.S_ISREG(mode):
            return True
        needed = object_id in self._reached.seen or object_id in self._late
        return not needed and self._survey.is_garbage(object_id)

    # -- removing ------------------------------------------------------------------------------

    def sweep(self, timeout: float | None) -> None:
        """Remove what `mark` found, as far as it is still garbage, a slice at a time."""
        if not (self._removed or self._pruned or self._leftovers):
            return
        end = None if timeout is None else time.monotonic() + timeout
        self._pruned = []
        self._removed = self._bytes = 0
        with contextlib.closing(self._work()) as work:
            while True:
                left = None if end is None else max(0.0, end - time.monotonic())
                with self._state.exclusive("garbage collection", left, self._waiting()):
                    if self._slice(work):
                        return
                time.sleep(_PAUSE)

    def _waiting(self) -> Check:
        """Make what is called now and then while others keep this from working: it says so, once."""
        since = time.monotonic()

        def check() -> None:
            self._check()
            if not self._has_waited and time.monotonic() - since > _PATIENCE:
                self._has_waited = True
                holders = locks.lock_holders(self._state.fd)
                names = f": {', '.join(holders)}" if holders else ""
                self._progress(Message(f"waiting for others who use the repository{names}"))

        return check

    def _slice(self, work: Iterator[None]) -> bool:
        """True when all is done."""
        until = time.monotonic() + _SLICE
        self._look_again()
        self._prune()
        for _ in work:
            self._check()
            if time.monotonic() >= until:
                return False
        return True

    def _look_again(self) -> None:
        """Find what has been named since."""
        roots, held = self._find_roots(self._roots), leases.all_leases(self._state)
        if roots is self._roots and held == self._leases:
            return
        roots.require_all()
        self._roots, self._leases = roots, held
        for ids in self._follow(None):
            self._late.update(shards.pieces(ids, self._width))
        self._spare()

    def _prune(self) -> None:
        """Remove names, durably, before any object goes that they lead to."""
        touched: set[Category] = set()
        for category, name in self._doomed():
            with files.naming(self._state.path), contextlib.suppress(FileNotFoundError):
                os.unlink(f"{category}/{name}", dir_fd=self._state.fd)
                self._pruned.append((category, name))
                touched.add(category)
        with files.naming(self._state.path):
            for category in touched:
                files.fsync_directory(category, dir_fd=self._state.fd)

    def _work(self) -> Generator[None]:
        """The removals that follow those of names; may be left for a while at each step."""
        removed: list[str] = []
        for path in self._leftovers:
            with files.naming(self._state.path), contextlib.suppress(FileNotFoundError):
                os.unlink(path, dir_fd=self._state.fd)
                removed.append(path)
            yield
        self._leftovers = removed
        leases.expire(self._state)
        batches, done, total = self._batches(), 0, self._survey.count
        with Threads(shards.WORKERS) as pool:
            while group := list(islice(batches, shards.WORKERS)):
                errors = [
                    self._count(removed, sizes) for removed, sizes in pool.map(self._remove, *zip(*group, strict=True))
                ]
                for error in errors:
                    if error is not None:
                        raise error
                done += sum(len(sizes) for _, sizes in group)
                self._report("remove", done, total)
                yield

    def _batches(self) -> Iterator[tuple[bytes, Sequence[int]]]:
        """What is to be removed, ids and sizes, a part of one directory at a time."""
        for ids, sizes in zip(self._survey.garbage, self._survey.sizes, strict=True):
            for at in range(0, len(sizes), _BATCH):
                yield ids[at * self._width : (at + _BATCH) * self._width], sizes[at : at + _BATCH]

    def _remove(self, ids: bytes, sizes: Sequence[int]) -> tuple[tuple[bytes, OSError | None], Sequence[int]]:
        """Remove objects in a worker thread."""
        if self._late:
            kept = [
                pair for pair in zip(shards.pieces(ids, self._width), sizes, strict=True) if pair[0] not in self._late
            ]
            ids, sizes = b"".join(object_id for object_id, _ in kept), [size for _, size in kept]
        return shards.remove(self._state.objects_fd, ids, self._width), sizes

    def _count(self, removal: tuple[bytes, OSError | None], sizes: Sequence[int]) -> OSError | None:
        statuses, error = removal
        self._removed += sum(statuses)
        self._bytes += sum(size for size, removed in zip(sizes, statuses, strict=False) if removed)
        if error is not None:
            error.filename = os.path.join(self._state.path, error.filename)
        return error

    # -- what came of it -----------------------------------------------------------------------

    def result(self) -> GcResult:
        pruned = {f"{category}/{name}" for category, name in self._pruned}
        known = {name for _, name in self._roots.additional}
        referred = {each.object_id for each in self._roots.references}
        return GcResult(
            objects_removed=self._removed,
            objects_bytes=self._bytes,
            images_pruned=sum(category == "images" for category, _ in self._pruned),
            streams_pruned=sum(category == "streams" for category, _ in self._pruned),
            pruned=tuple(sorted(pruned)),
            leftovers=tuple(sorted(self._leftovers)),
            objects_leased=self._survey.young,
            mounted=tuple(image.hex() for image in self._roots.mounted if image not in referred),
            objects_missing=self._survey.missing,
            unknown_roots=tuple(each for each in self._additional if each not in known),
            notes=(
                *(note for note in self._roots.notes if note.path not in pruned),
                *self._reached.notes,
                *self._survey.notes,
            ),
        )

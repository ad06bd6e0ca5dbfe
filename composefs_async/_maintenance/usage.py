"""What each name costs: the objects that it keeps, alone or together with others.

Owns counting.  Does not own what is reachable (`graph`), so that its answers are those of gc.

Each stream and image that is reached is read once, and each object gets a class: the set of those that list it.
Classes are few, so that the rest is done with them and not with objects: which names reach a class and, after one look
at each file, how much is in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .._repo.state import RepoState
from .._sys.beneath import IN_THE_WAY, open_beneath
from ..digest import ObjectId
from ..errors import ReachUnknownError
from ..results import NameUsage, Space, Usage
from . import leases, reachability, spools
from .mounted import mounted_images
from .reach_cache import ReachCache
from .reachability import Roots
from .repair.quarantine import QUARANTINE

__all__ = ["usage"]

_KEY = 24
"""So many bytes of an id tell objects apart; the rest would only cost memory."""
_BLOCK = 512  # what st_blocks counts in, whatever the blocks of the file system are (stat(2))
_SHARD = re.compile(r"[0-9a-f]{2}")
_LEASE = 0
"""The bit of all leases in masks."""
_UNLISTED = 0
"""The class of objects that nothing lists."""


def usage(state: RepoState) -> Usage:
    """Read all streams and images that have a reference, and look at each object's size.  Blocks; writes nothing.

    What gc remembers of streams and images is not read again.  Takes about 120 bytes of memory an object.  What is
    stored or removed meanwhile may be counted or not.

    Raises:
        ReachUnknownError: something is damaged, so that it cannot be told what is needed; fsck tells more.
    """
    with state.shared():
        roots, held = reachability.roots(state), leases.all_leases(state)
        roots.require_all()
        leased = [stream_id for lease in held for stream_id in lease.layers.values()]
        owners = _Owners(state, roots, [*leased, *mounted_images(state)])
        since = min((lease.started for lease in held), default=None)
        old, young, leftovers = _measure(state, owners, since)
        sets = _Sets(owners.masks(), old, young)
        return Usage(
            tuple(_name_usages(roots, owners.targets, sets)),
            _total([*old, *young]).space,
            sets.old(0).space,
            _total([sets.young(0), sets.both(1 << _LEASE)]).space,
            _total([leftovers, _measure_tree(state, spools.DIRECTORY)]).space,
            _measure_tree(state, QUARANTINE).space,
        )


class _Sum:
    """A `Space` in the making."""

    __slots__ = ("blocks", "objects", "size")

    def __init__(self) -> None:
        self.objects = self.size = self.blocks = 0

    def add(self, other: _Sum) -> None:
        self.objects += other.objects
        self.size += other.size
        self.blocks += other.blocks

    def count(self, status: os.stat_result) -> None:
        self.objects += 1
        self.size += status.st_size
        self.blocks += status.st_blocks

    @property
    def space(self) -> Space:
        return Space(self.objects, self.size, self.blocks * _BLOCK)


def _total(sums: Iterable[_Sum]) -> _Sum:
    total = _Sum()
    for each in sums:
        total.add(each)
    return total


class _Sets:
    """What is kept by each set of targets: objects that a lease would keep anyway because they are young, and old."""

    def __init__(self, masks: Sequence[int], old: Sequence[_Sum], young: Sequence[_Sum]) -> None:
        self.masks: set[int] = set(masks)
        self._old, self._young = ({mask: _Sum() for mask in masks} for _ in range(2))
        for mask, old_sum, young_sum in zip(masks, old, young, strict=True):
            self._old[mask].add(old_sum)
            self._young[mask].add(young_sum)

    def old(self, mask: int) -> _Sum:
        return self._old.get(mask, _Sum())

    def young(self, mask: int) -> _Sum:
        return self._young.get(mask, _Sum())

    def both(self, mask: int) -> _Sum:
        return _total([self.old(mask), self.young(mask)])


class _Remembered:
    """What gc has remembered, and nothing more: holding all that was read would cost as much as the result."""

    def __init__(self, cache: ReachCache) -> None:
        self.get = cache.get

    def put(self, object_id: ObjectId, node: reachability.Node, /) -> None:
        pass


class _Owners:
    """Which streams and images list which objects, and from which targets of references these are reached."""

    def __init__(self, state: RepoState, roots: Roots, leased: Sequence[ObjectId]) -> None:
        self.targets: dict[ObjectId, int] = {}
        """What references lead to, with the bit that stands for it in a mask."""
        self.classes: dict[bytes, int] = {}
        """By the beginning of an object's id."""
        self._made: list[tuple[int, int]] = [(_UNLISTED, -1)]
        """Of each class, the class before the last node listed it too, and that node."""
        self._nodes: dict[ObjectId, int] = {}
        self._named: list[tuple[ObjectId, ...]] = []
        self._leased = leased
        for reference in roots.references:
            if reference.object_id is not None:
                self.targets.setdefault(reference.object_id, 1 + _LEASE + len(self.targets))
        with ReachCache.open(state) as cache:
            self._read(state, list(self.targets), cache)
            for stream_id in leased:
                with contextlib.suppress(ReachUnknownError):  # as gc does
                    self._read(state, [stream_id], cache)

    def _read(self, state: RepoState, ids: list[ObjectId], cache: ReachCache) -> None:
        width = state.algorithm.digest_size
        pending = [object_id for object_id in ids if object_id not in self._nodes]
        for object_id, node in reachability.visit(state, pending, _Remembered(cache), reachability.Reached()):
            if object_id not in self._nodes:
                self._list(node.objects + object_id, width)
                self._nodes[object_id] = len(self._named)
                self._named.append(tuple(target for _, target in node.named))

    def _list(self, ids: bytes, width: int) -> None:
        node, first = len(self._named), len(self._made)
        classes, made, moved = self.classes, self._made, dict[int, int]()
        for at in range(0, len(ids), width):
            key = ids[at : at + _KEY]
            before = classes.get(key, _UNLISTED)
            if before >= first:  # listed twice
                continue
            after = moved.get(before)
            if after is None:
                after = moved[before] = len(made)
                made.append((before, node))
            classes[key] = after

    @property
    def class_count(self) -> int:
        return len(self._made)

    def masks(self) -> list[int]:
        """The targets that reach each class."""
        reaching = self._reaching()
        masks = [0]
        for before, node in self._made[1:]:
            masks.append(masks[before] | reaching[node])
        return masks

    def _reaching(self) -> list[int]:
        reaching = [0] * len(self._named)
        for target, bit in [*self.targets.items(), *((stream_id, _LEASE) for stream_id in self._leased)]:
            pending = [target]
            while pending:
                node = self._nodes.get(pending.pop())
                if node is not None and not reaching[node] >> bit & 1:
                    reaching[node] |= 1 << bit
                    pending.extend(self._named[node])
        return reaching


def _name_usages(roots: Roots, targets: Mapping[ObjectId, int], sets: _Sets) -> Iterator[NameUsage]:
    shared: defaultdict[int, _Sum] = defaultdict(_Sum)
    for mask in sets.masks:
        rest = mask if mask.bit_count() > 1 else 0
        while rest:
            bit = rest.bit_length() - 1
            shared[bit].add(sets.both(mask))
            rest ^= 1 << bit
    leading = Counter(reference.object_id for reference in roots.references)
    for reference in roots.references:
        if reference.object_id is None:
            continue
        bit = targets[reference.object_id]
        frees = sets.old(1 << bit).space if leading[reference.object_id] == 1 else Space()
        below = reference.path.removeprefix(f"{reference.category}/refs/")
        own = sets.both(1 << bit).space
        yield NameUsage(reference.category, below, reference.name, own, shared[bit].space, frees)


# -- looking at files --------------------------------------------------------------------------


def _measure(state: RepoState, owners: _Owners, since: int | None) -> tuple[list[_Sum], list[_Sum], _Sum]:
    """What is in each class, stored before *since* (in nanoseconds) and later; the files that are no objects."""
    old, young = ([_Sum() for _ in range(owners.class_count)] for _ in range(2))
    others = _Sum()
    width = 2 * state.algorithm.digest_size - 2
    class_of, key_of = owners.classes.get, bytes.fromhex
    for shard in _shards(state):
        with _listing(state, f"objects/{shard}") as entries:
            for entry in entries:
                name = entry.name
                try:
                    key = key_of(shard + name)[:_KEY] if len(name) == width else b""
                except ValueError:
                    key = b""
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed meanwhile
                    continue
                sums = old if since is None or status.st_ctime_ns < since else young
                found = sums[class_of(key, _UNLISTED)] if key else others
                found.objects += 1
                found.size += status.st_size
                found.blocks += status.st_blocks
    return old, young, others


def _shards(state: RepoState) -> list[str]:
    with _listing(state, "objects") as entries:
        return sorted(entry.name for entry in entries if _SHARD.fullmatch(entry.name))


@contextlib.contextmanager
def _listing(state: RepoState, directory: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What is in *directory*, nothing if it is none."""
    try:
        top, _, below = directory.partition("/")
        if top == "objects":
            fd = open_beneath(below or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=state.objects_fd)
        else:
            fd = open_beneath(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=state.fd)
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT):
            raise
        yield iter(())
        return
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def _measure_tree(state: RepoState, top: str) -> _Sum:
    found, pending = _Sum(), [top]
    while pending:
        directory = pending.pop()
        with _listing(state, directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{directory}/{entry.name}")
                else:
                    with contextlib.suppress(FileNotFoundError):
                        found.count(entry.stat(follow_symlinks=False))
    return found

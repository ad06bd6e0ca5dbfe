"""What is re-used, what is packed together, and what is asked for in one request; values in, values out, no I/O.

Owns the rules that decide how many requests and bytes a transfer costs.  Does not own making requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .documents import Descriptor
from .table import Table

__all__ = ["Base", "Member", "Place", "Range", "choose_reuse", "plan_ranges", "slices"]

REUSE_SHARE = 0.25
"""A blob is re-used only if the image uses that share of its stored bytes, so that old blobs can die."""
REUSE_LIMIT = 1024
"""Blobs of others in one image."""

MAX_GAP = 512 << 10
"""Unwanted bytes between two members that are fetched rather than another request made."""
WHOLE_SHARE = 0.7
"""A blob of which that share is wanted is fetched whole."""
RANGE_SIZE = 8 << 20
"""Ranges are cut at the first end of a member from here on."""

SLICE_RAW = 40 << 20
"""Bytes of objects that are packed one after the other, in one worker."""


# -- publishing --------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a member is in a blob."""

    offset: int
    stored: int
    size: int
    coding: int


@dataclass(frozen=True, slots=True)
class Base:
    """An artifact of the store whose blobs may be re-used."""

    blobs: Sequence[Descriptor]
    table: Table


class Reuse(NamedTuple):
    """A blob of the store as a part of another image."""

    blob: Descriptor
    members: dict[bytes, Place]
    """By key."""


def choose_reuse(
    keys: Collection[bytes],
    bases: Iterable[Base],
    *,
    condemned: Callable[[str], bool] = lambda digest: False,
    limit: int = REUSE_LIMIT,
    share: float = REUSE_SHARE,
) -> list[Reuse]:
    """The blobs of *bases* that are worth being used again for the objects *keys*, each object in one of them.

    Those of which the most bytes are used come first; what they do not have is left for new packs.
    """
    wanted = keys if isinstance(keys, set | frozenset | dict) else set(keys)
    found: dict[str, Reuse] = {}
    for base in bases:
        _gather(base, wanted, found, condemned)
    used = {digest: sum(place.stored for place in each.members.values()) for digest, each in found.items()}
    chosen: list[Reuse] = []
    taken: set[bytes] = set()
    for digest in sorted(found, key=lambda each: (-used[each], each)):
        blob, members = found[digest]
        left = {key: place for key, place in members.items() if key not in taken}
        size = sum(place.stored for place in left.values())
        if left and size >= share * blob.size:
            chosen.append(Reuse(blob, left))
            taken.update(left)
        if len(chosen) == limit:
            break
    return chosen


def _gather(base: Base, wanted: Collection[bytes], found: dict[str, Reuse], condemned: Callable[[str], bool]) -> None:
    usable = [None if condemned(blob.digest) else found.setdefault(blob.digest, Reuse(blob, {})) for blob in base.blobs]
    for at, number in enumerate(base.table.blob_numbers):
        key, reuse = base.table.key(at), usable[number]
        if reuse is not None and key in wanted:
            entry = base.table.entry(at)
            reuse.members[key] = Place(entry.offset, entry.stored, entry.size, entry.coding)


def slices(sizes: Sequence[int], *, pack_size: int, raw: int = SLICE_RAW) -> Iterator[range]:
    """Cut a sequence of objects of these sizes into runs that are packed independently of each other.

    The same objects always give the same runs, so that two publishers of one image make the same packs.  An object
    larger than a pack is a run of its own.
    """
    start, total = 0, 0
    for at, size in enumerate(sizes):
        if size > pack_size:
            if at > start:
                yield range(start, at)
            yield range(at, at + 1)
            start, total = at + 1, 0
        elif total + size > raw and at > start:
            yield range(start, at)
            start, total = at, size
        else:
            total += size
    if start < len(sizes):
        yield range(start, len(sizes))


# -- fetching ----------------------------------------------------------------------------------


class Member(NamedTuple):
    """A wanted member of a blob."""

    entry: int
    """Its number in the table."""
    offset: int
    stored: int


class Range(NamedTuple):
    """One request: a part of a blob, and the wanted members in it, by offset."""

    blob: int
    start: int
    length: int
    members: tuple[Member, ...]


def plan_ranges(
    table: Table,
    wanted: Iterable[int],
    blob_sizes: Sequence[int],
    *,
    gap: int = MAX_GAP,
    size: int = RANGE_SIZE,
    whole: float = WHOLE_SHARE,
) -> list[Range]:
    """The requests that bring the entries *wanted*, blob by blob in the order of the table."""
    by_blob: dict[int, list[Member]] = {}
    for index in sorted(wanted):
        by_blob.setdefault(table.blob_numbers[index], []).append(
            Member(index, table.offsets[index], table.stored[index])
        )
    ranges: list[Range] = []
    for blob, members in sorted(by_blob.items()):
        all_wanted = sum(member.stored for member in members) >= whole * blob_sizes[blob]
        ranges += _ranges_of(blob, members, blob_sizes[blob] if all_wanted else gap, size)
    return ranges


def _ranges_of(blob: int, members: Sequence[Member], gap: int, size: int) -> Iterator[Range]:
    some: list[Member] = []
    for member in members:
        if some:
            end = some[-1].offset + some[-1].stored
            if member.offset - end > gap or end - some[0].offset >= size:
                yield _range(blob, some)
                some = []
        some.append(member)
    if some:
        yield _range(blob, some)


def _range(blob: int, members: Sequence[Member]) -> Range:
    end = members[-1].offset + members[-1].stored
    return Range(blob, members[0].offset, end - members[0].offset, tuple(members))


def totals(ranges: Iterable[Range], sizes: Mapping[int, int] | Sequence[int]) -> tuple[int, int, int]:
    """Objects, bytes of objects, and bytes on the wire that the *ranges* bring; *sizes* are of the entries."""
    objects = size = wire = 0
    for each in ranges:
        objects += len(each.members)
        size += sum(sizes[member.entry] for member in each.members)
        wire += each.length
    return objects, size, wire

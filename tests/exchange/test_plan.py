"""What is re-used, packed together and asked for at once."""

from __future__ import annotations

import pytest

from composefs_async.digest import Algorithm
from composefs_async.exchange.documents import PACK_TYPE, Descriptor
from composefs_async.exchange.plan import Base, Place, choose_reuse, plan_ranges, slices, totals
from composefs_async.exchange.table import Entry, Table, decode_table, encode_table

MIB = 1 << 20


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def table(*blobs: tuple[int, list[tuple[int, int, int]]]) -> Table:
    """A table of blobs: size, and of each member the number of its key, offset and stored size."""
    entries = [
        Entry(key(number), blob, offset, stored, stored, 0, 0)
        for blob, (_, members) in enumerate(blobs)
        for number, offset, stored in members
    ]
    sizes = [size for size, _ in blobs]
    raw = encode_table(Algorithm.SHA256, len(blobs), entries)
    return decode_table(raw, "t", algorithm=Algorithm.SHA256, blob_sizes=sizes)


def blob(number: int, size: int) -> Descriptor:
    return Descriptor(PACK_TYPE, f"sha256:{number:064x}", size)


def base(*blobs: tuple[int, int, list[tuple[int, int, int]]]) -> Base:
    return Base(
        [blob(number, size) for number, size, _ in blobs], table(*((size, members) for _, size, members in blobs))
    )


def chosen(*numbers: int, bases: list[Base], **options: object) -> dict[int, list[int]]:
    found = choose_reuse({key(number) for number in numbers}, bases, **options)  # type: ignore[arg-type]
    return {int(each.blob.digest[7:], 16): sorted(int.from_bytes(found) for found in each.members) for each in found}


def test_a_blob_is_used_again_from_a_quarter_of_its_bytes_on() -> None:
    bases = [base((1, 100, [(1, 0, 25), (2, 25, 75)]), (2, 100, [(3, 0, 24), (4, 24, 76)]))]
    assert chosen(1, 3, bases=bases) == {1: [1]}


def test_the_blob_that_has_most_comes_first_and_the_rest_only_gives_what_is_left() -> None:
    bases = [base((1, 100, [(1, 0, 50), (2, 50, 50)])), base((2, 60, [(2, 0, 30), (3, 30, 30)]))]
    assert chosen(1, 2, 3, bases=bases) == {1: [1, 2], 2: [3]}


def test_condemned_blobs_are_not_used() -> None:
    bases = [base((1, 100, [(1, 0, 100)]), (2, 100, [(1, 0, 100)][:0] or [(2, 0, 100)]))]
    assert chosen(1, 2, bases=bases, condemned=lambda digest: digest.endswith("1")) == {2: [2]}


def test_no_more_blobs_are_used_than_allowed() -> None:
    bases = [base(*((at, 10, [(at, 0, 10)]) for at in range(1, 6)))]
    assert len(chosen(1, 2, 3, 4, 5, bases=bases, limit=2)) == 2


def test_members_stand_where_the_base_says() -> None:
    [found] = choose_reuse({key(2)}, [base((7, 100, [(1, 0, 25), (2, 25, 75)]))])
    assert (found.blob, found.members) == (blob(7, 100), {key(2): Place(25, 75, 75, 0)})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [range(1)]),
        ([30, 30, 30, 30], [range(3), range(3, 4)]),
        ([30, 200, 30], [range(1), range(1, 2), range(2, 3)]),
        ([200, 200], [range(1), range(1, 2)]),
        ([100, 1], [range(1), range(1, 2)]),
    ],
)
def test_runs_of_objects_are_cut_by_their_sizes_alone(sizes: list[int], expected: list[range]) -> None:
    assert list(slices(sizes, pack_size=100, raw=100)) == expected


RANGES: dict[str, tuple[list[tuple[int, int, int]], int, list[int], list[tuple[int, int]]]] = {
    "neighbours are one": ([(0, 0, 10), (1, 10, 10), (2, 1000, 10)], 2000, [0, 1], [(0, 20)]),
    "a small gap is fetched": ([(0, 0, 10), (1, 500, 10)], 2 * MIB, [0, 1], [(0, 510)]),
    "a large gap is not": ([(0, 0, 10), (1, 10 + 513 * 1024, 10)], 2 * MIB, [0, 1], [(0, 10), (10 + 513 * 1024, 10)]),
    "most of a blob is one whatever the gaps": (
        [(0, 0, 3 * MIB), (1, 4 * MIB, 3 * MIB)],
        7 * MIB,
        [0, 1],
        [(0, 7 * MIB)],
    ),
    "ranges end at members": (
        [(0, 0, 5 * MIB), (1, 5 * MIB, 5 * MIB), (2, 10 * MIB, 5 * MIB)],
        15 * MIB,
        [0, 1, 2],
        [(0, 10 * MIB), (10 * MIB, 5 * MIB)],
    ),
    "nothing": ([(0, 0, 10)], 10, [], []),
}


@pytest.mark.parametrize("case", RANGES)
def test_ranges(case: str) -> None:
    members, size, wanted, expected = RANGES[case]
    found = plan_ranges(table((size, members)), wanted, [size])
    assert [(each.start, each.length) for each in found] == expected
    assert [member.entry for each in found for member in each.members] == wanted
    assert totals(found, [stored for _, _, stored in members]) == (
        len(wanted),
        sum(members[at][2] for at in wanted),
        sum(length for _, length in expected),
    )

"""The table of an image: its bytes, and that nothing else is accepted."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async._zstd import zstd
from composefs_async.digest import Algorithm
from composefs_async.errors import StoreFormatError
from composefs_async.exchange.table import Entry, decode_table, encode_table

KEYS = [hashlib.sha256(bytes([at])).digest()[:16] for at in range(3)]
ENTRIES = [
    Entry(KEYS[0], 0, 0, 40, 100, 1, 1),
    Entry(KEYS[1], 0, 50, 10, 10, 0, 0),
    Entry(KEYS[2], 1, 0, 7, 7, 3, 0),
]
SIZES = [60, 7]


def decode(raw: bytes, sizes: list[int] | None = None, limit: int = 1 << 20) -> list[Entry]:
    sizes = SIZES if sizes is None else sizes
    table = decode_table(raw, "table", algorithm=Algorithm.SHA512, blob_sizes=sizes, limit=limit)
    return [table.entry(at) for at in range(len(table))]


def unpacked(number: int) -> bytes:
    """The table above as the specification lays it out, byte for byte."""
    header = b"CFSTABLE" + struct.pack("<IHHQIIQQ", 1, number, 12, 3, 2, 0, 117, 57) + bytes(16)
    columns = b"".join(KEYS) + struct.pack("<3Q", 0, 50, 0) + struct.pack("<3Q", 40, 10, 7)
    columns += struct.pack("<3Q", 100, 10, 7) + struct.pack("<3I", 0, 0, 1) + bytes(4)
    return header + columns + bytes([1, 0, 3]) + bytes(5) + bytes([1, 0, 0]) + bytes(5)


def packed(content: bytes) -> bytes:
    return zstd.ZstdCompressor(3).compress(content, zstd.ZstdCompressor.FLUSH_FRAME)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_the_bytes_are_those_of_the_specification(algorithm: Algorithm) -> None:
    raw = encode_table(algorithm, 2, list(reversed(ENTRIES)))
    assert zstd.decompress(raw) == unpacked(algorithm.number)
    assert len(unpacked(1)) == 64 + 3 * 16 + 3 * 24 + 16 + 8 + 8
    assert zstd.get_frame_info(raw).decompressed_size == len(unpacked(1))


def test_a_table_comes_back_with_and_without_salt() -> None:
    plain, salted = encode_table(Algorithm.SHA512, 2, ENTRIES), encode_table(Algorithm.SHA512, 2, ENTRIES, b"s" * 16)
    assert salted == plain + struct.pack("<II", 0x184D2A50, 16) + b"s" * 16
    assert decode(plain) == decode(salted) == ENTRIES
    assert decode(encode_table(Algorithm.SHA512, 0, []), []) == []


def changed(**columns: object) -> bytes:
    entry = ENTRIES[1]._replace(**columns)
    return encode_table(Algorithm.SHA512, 2, [ENTRIES[0], entry, ENTRIES[2]])


def patched(offset: int, data: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        content = bytearray(unpacked(2))
        content[offset : offset + len(data)] = data
        return packed(bytes(content))

    return make


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "no zstd frame"),
    "noise": (lambda: b"\xff" * 90, "no zstd frame"),
    "cut": (lambda: encode_table(Algorithm.SHA512, 2, ENTRIES)[:-1], "cut short"),
    "trailing": (lambda: encode_table(Algorithm.SHA512, 2, ENTRIES) + b"x", "no skippable frame"),
    "two frames": (lambda: encode_table(Algorithm.SHA512, 2, ENTRIES) * 2, "no skippable frame"),
    "short": (lambda: packed(b"CFSTABLE"), "less than its header"),
    "magic": (patched(0, b"X"), "version 1"),
    "version": (patched(8, b"\2"), "version 1"),
    "algorithm": (patched(12, b"\1"), "another algorithm"),
    "block size": (patched(14, b"\x10"), "another algorithm"),
    "more entries": (patched(16, b"\4"), "do not make"),
    "endless entries": (patched(16, b"\xff" * 8), "do not make"),
    "blobs": (patched(24, b"\3"), "3 blobs"),
    "flags": (patched(28, b"\1"), "reserved"),
    "sum of sizes": (patched(32, b"\1"), "sums"),
    "sum of stored": (patched(40, b"\1"), "sums"),
    "reserved": (patched(63, b"\1"), "reserved"),
    "padding": (patched(64 + 48 + 72 + 12, b"\1"), "padding"),
    "key twice": (lambda: changed(key=KEYS[0]), "twice"),
    "kind": (lambda: changed(kind=4), "unknown kind"),
    "coding": (lambda: changed(coding=2), "unknown"),
    "overlap": (lambda: changed(offset=39), "overlaps"),
    "behind the end": (lambda: changed(offset=51), "behind the end"),
    "far behind the end": (lambda: changed(offset=(1 << 64) - 11), "behind the end"),
    "no such blob": (lambda: changed(blob=7, offset=0), "not there"),
    "raw of another size": (lambda: changed(stored=9), "cannot be stored"),
    "larger than it can be": (lambda: encode_table(Algorithm.SHA512, 2, [Entry(KEYS[0], 0, 0, 60, 0, 0, 0)]), "cannot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_rule_is_refused(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(StoreFormatError, match=reason):
        decode(make())


def test_a_table_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    bomb = packed(bytes(1 << 20))
    with pytest.raises(StoreFormatError, match="more than the limit of 1000"):
        decode(bomb, limit=1000)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_an_error_or_another_valid_table(data: st.DataObject) -> None:
    content = bytearray(unpacked(2))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(packed(bytes(content)))
    except StoreFormatError:
        return
    for entry in found:
        assert entry.offset + entry.stored <= SIZES[entry.blob]


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_refused_with_our_error(raw: bytes) -> None:
    with pytest.raises(StoreFormatError):
        decode(raw)
    with pytest.raises(StoreFormatError):
        decode(packed(raw))

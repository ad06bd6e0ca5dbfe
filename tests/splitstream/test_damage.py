"""Files that are wrong: each is refused by a typed error, and none costs more memory than it has bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, SplitstreamError
from composefs_async.splitstream import OCI_CONFIG, OCI_LAYER, BytesSource, SplitstreamReader, SplitstreamWriter
from composefs_async.splitstream.sections import MAX_NAMED_REFS, MAX_REFS

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
ID_A, ID_B = (ObjectId(bytes([n]) * 32) for n in (1, 2))
MIB = 1 << 20


def read_all(data: bytes, **expected: Any) -> tuple[Any, ...]:
    reader = SplitstreamReader(BytesSource(data), **expected)
    merged = b"".join(reader.cat(lambda object_id: [object_id]))
    return tuple(reader.object_refs), reader.named_refs, merged


REFUSED_HEADERS: dict[str, tuple[dict[str, Any], str, int]] = {
    "magic": ({"magic": b"splitstream"}, "lacks the magic value 'SplitStream'", 0),
    "version": ({"version": 1}, "version 1 is unknown", 11),
    "algorithm": ({"number": 3}, "fs-verity algorithm 3 is unknown", 14),
    "block size": ({"lg_blocksize": 16}, "block size 2^16 is unknown", 15),
    "negative info": ({"info_range": (113, 112)}, "the info section ends at 112, before its start at 113", 16),
    "info past the end": ({"info_range": (32, 4096)}, "the info section ends at 4096, but the file at 130", 16),
    "small info": ({"info_range": (32, 111)}, "the info section has 79 of 80 bytes", 32),
    "empty info far away": ({"info_range": (2**40, 2**40)}, "the info section has 0 of 80 bytes", 2**40),
}
REFUSED_SECTIONS: dict[str, tuple[dict[str, Any], str, int]] = {
    "negative range": ({"ranges": {"stream": (2**64 - 1, 0)}}, "the stream section ends at 0, before its start", 64),
    "past the end": ({"ranges": {"named_refs": (121, 131)}}, "the named_refs section ends at 131, but", 80),
    "far past the end": ({"ranges": {"object_refs": (0, 2**40)}}, "the object_refs section ends at 1099", 48),
    "body past the end": ({"ranges": {"stream": (121, 2**40)}}, "the stream section ends at 1099511627776, but", 64),
    "odd stream refs": ({"stream_refs": bytes(33)}, "stream reference section has 33 bytes", 112),
    "odd object refs": ({"object_refs": bytes(31)}, "object reference section has 31 bytes", 112),
    "content type": ({"content_type": OCI_CONFIG}, "of type ociconfg, expected ocilayer", 96),
}
REFUSED_NAMES: dict[str, tuple[dict[str, Any], str, int]] = {
    "no frame": ({"packed_names": b""}, "section ends inside a zstd frame", 144),
    "junk": ({"packed_names": b"no zstd at all"}, "section cannot be unpacked", 158),
    "junk behind a frame": ({"packed_names": b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00junk"}, "cannot be unpacked", 157),
    "trailing junk": ({"names": b"0:a\0junk"}, "does not end in NUL", 8),
    "no colon": ({"names": b"0:a\x000b\0"}, "lacks the colon", 4),
    "empty record": ({"names": b"0:a\0\0"}, "lacks the colon", 4),
    "no index": ({"names": b":a\0"}, "is no number", 0),
    "only a sign": ({"names": b"+:a\0"}, "is no number", 0),
    "negative index": ({"names": b"-0:a\0"}, "is no number", 0),
    "spaces": ({"names": b" 0:a\0"}, "is no number", 0),
    "other digits": ({"names": "٠:a\0".encode()}, "is no number", 0),
    "index of 64 bits and more": ({"names": b"18446744073709551616:a\0"}, "but there are 1", 0),
    "index of 5000 digits": ({"names": b"1" * 5000 + b":a\0"}, "is no number", 0),
    "out of bounds": ({"names": b"0:a\x001:b\0"}, "'b' means stream 1, but there are 1", 4),
    "not UTF-8": ({"names": b"0:\xff\0"}, "is not UTF-8", 0),
}


@pytest.mark.parametrize("case", REFUSED_HEADERS | REFUSED_SECTIONS)
def test_wrong_frame_of_the_file_is_refused(case: str, craft: Any) -> None:
    changes, message, offset = (REFUSED_HEADERS | REFUSED_SECTIONS)[case]
    data = craft(**({"content_type": OCI_LAYER} | changes))
    with pytest.raises(SplitstreamError) as caught:
        SplitstreamReader(BytesSource(data), SHA256, OCI_LAYER, name="layer")
    assert message in caught.value.reason
    assert (caught.value.offset, caught.value.name) == (offset, "layer")


@pytest.mark.parametrize("case", REFUSED_NAMES)
def test_wrong_names_are_refused(case: str, craft: Any) -> None:
    changes, message, offset = REFUSED_NAMES[case]
    with pytest.raises(SplitstreamError) as caught:
        SplitstreamReader(BytesSource(craft(stream_refs=ID_A, **changes)))
    assert message in caught.value.reason
    assert caught.value.offset == offset


def chunk_bytes(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


REFUSED_BODIES: dict[str, tuple[bytes, str, int]] = {
    "seven bytes": (chunk_bytes(0) + bytes(7), "ends inside the header of a chunk", 15),
    "one byte": (b"\xff", "ends inside the header of a chunk", 1),
    "index out of range": (chunk_bytes(-1) + b"x" + chunk_bytes(1), "reference 1 is out of range: there are 1", 9),
    "largest index": (chunk_bytes(2**63 - 1), "is out of range", 0),
    "smallest number": (chunk_bytes(-(2**63)) + b"x", "an inline chunk of 2^63 bytes cannot be", 0),
    "inline cut short": (chunk_bytes(-5) + b"abc", "ends 2 bytes before the end of its last inline chunk", 11),
    "huge inline": (chunk_bytes(-(2**40)) + b"abc", "ends 1099511627773 bytes before", 11),
}


@pytest.mark.parametrize("case", REFUSED_BODIES)
def test_wrong_body_is_refused_where_it_is_read(case: str, craft: Any) -> None:
    body, message, offset = REFUSED_BODIES[case]
    reader = SplitstreamReader(BytesSource(craft(object_refs=ID_A, body=body)))
    with pytest.raises(SplitstreamError) as caught:
        list(reader.chunks())
    assert message in caught.value.reason
    assert caught.value.offset == offset


@pytest.mark.parametrize("packed", [b"", b"\x28\xb5\x2f\xfd", b"junk", b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00junk"])
def test_body_that_cannot_be_unpacked_is_refused_when_read(packed: bytes, craft: Any) -> None:
    reader = SplitstreamReader(BytesSource(craft(packed_body=packed)))
    with pytest.raises(SplitstreamError, match="the stream section"):
        list(reader.chunks())


def test_stream_of_the_other_algorithm_is_told_apart(craft: Any) -> None:
    with pytest.raises(AlgorithmMismatchError) as caught:
        SplitstreamReader(BytesSource(craft(algorithm=SHA512)), SHA256, name="layer")
    assert (caught.value.what, caught.value.expected, caught.value.found) == ("splitstream layer", "sha256", "sha512")


def test_stream_without_a_header_is_named_as_old(pack: Any) -> None:
    for data in (pack(bytes(8)), b"\x28\xb5\x2f\xfd"):
        with pytest.raises(SplitstreamError, match=r"written before 2026-01, in a form that cannot be read"):
            SplitstreamReader(BytesSource(data))


def small_stream() -> bytes:
    writer = SplitstreamWriter(SHA256, OCI_LAYER)
    writer.add_named_stream_ref("name", ID_B)
    writer.write_body([b"inline", ID_A, b"more of it"], 32)
    return writer.done()


def test_stream_cut_anywhere_is_refused() -> None:
    data = small_stream()
    assert read_all(data)[2] == b"inline" + ID_A + b"more of it"
    for size in range(len(data)):
        with pytest.raises(SplitstreamError):
            read_all(data[:size])


def test_body_cut_anywhere_is_refused_or_shorter_than_it_says(craft: Any) -> None:
    body = chunk_bytes(-6) + b"inline" + chunk_bytes(0) + chunk_bytes(-4) + b"tail"
    whole = []
    for size in range(len(body)):
        try:
            merged = read_all(craft(object_refs=ID_A, body=body[:size], stream_size=42))[2]
        except SplitstreamError:
            continue
        assert len(merged) < 42
        whole.append(size)
    assert whole == [0, 14, 22]


class ShrinkingFile:
    """A file that loses its end behind the reader's back."""

    def __init__(self, data: bytes, end: int) -> None:
        self.size, self.data = len(data), data[:end]

    def pread(self, size: int, offset: int, /) -> bytes:
        return self.data[offset : offset + size]


def test_file_that_shrinks_meanwhile_is_refused() -> None:
    data = small_stream()
    for end in range(len(data)):
        with pytest.raises(SplitstreamError, match="the file ends inside"):
            list(SplitstreamReader(ShrinkingFile(data, end)).chunks())


class HugeFile:
    """A sparse file: zeros without end behind its data."""

    def __init__(self, data: bytes) -> None:
        self.size, self.data = 2**50, data

    def pread(self, size: int, offset: int, /) -> bytes:
        assert size <= MIB
        return self.data[offset : offset + size].ljust(size, b"\0")


@pytest.mark.parametrize("section", ["stream_refs", "object_refs"])
def test_table_larger_than_any_stream_is_refused(section: str, craft: Any) -> None:
    data = craft(ranges={section: (112, 112 + 2**40)})
    with pytest.raises(SplitstreamError, match=f"more than the {MAX_REFS} that are read"):
        SplitstreamReader(HugeFile(data))


def test_claims_cost_no_memory(craft: Any) -> None:
    claims = [chunk_bytes(-(2**40)), chunk_bytes(-(2**63)), chunk_bytes(-(2**63) + 1), chunk_bytes(2**63 - 1)]
    tracemalloc.start()
    try:
        for claim in claims:
            data = craft(body=claim + b"x")
            for read in (
                lambda r: list(r.chunks()),
                lambda r: r.read_inline_exact(2**40),
                lambda r: r.read_exact(2**39, 2**40),
            ):
                with pytest.raises(SplitstreamError):
                    read(SplitstreamReader(BytesSource(data)))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_unpacking_costs_no_more_memory_than_a_piece() -> None:
    writer = SplitstreamWriter(SHA256, 0)
    writer.write_inline(bytes(64 * MIB))
    data = writer.done()
    del writer
    tracemalloc.start()
    try:
        assert sum(map(len, SplitstreamReader(BytesSource(data)).chunks())) == 64 * MIB
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_writing_keeps_no_more_than_the_open_run() -> None:
    block, names = bytes(MIB), [ObjectId(bytes([n]) * 32) for n in range(64)]
    tracemalloc.start()
    try:
        writer = SplitstreamWriter(SHA256, 0)
        for name in names:
            writer.write_body([block, name], 0)
        assert len(writer.done()) < MIB
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_names_that_unpack_to_too_much_are_refused(craft: Any) -> None:
    names = b"0:a\0" * (MAX_NAMED_REFS // 4)
    assert SplitstreamReader(BytesSource(craft(stream_refs=ID_A, names=names))).named_refs == {"a": ID_A}
    with pytest.raises(SplitstreamError, match=f"unpack to more than {MAX_NAMED_REFS} bytes"):
        SplitstreamReader(BytesSource(craft(stream_refs=ID_A, names=names + b"0:b\0")))


# -- properties --------------------------------------------------------------------------------


@st.composite
def contents(draw: st.DrawFn) -> tuple[Algorithm, list[bytes | ObjectId], dict[str, ObjectId]]:
    algorithm = draw(st.sampled_from(Algorithm))
    width = algorithm.digest_size
    ids = st.sampled_from([ObjectId(bytes([n]) * width) for n in range(5)])
    names = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
    return algorithm, draw(st.lists(st.binary(max_size=40) | ids)), draw(st.dictionaries(names, ids, max_size=5))


def merge(items: list[bytes | ObjectId]) -> list[bytes | ObjectId]:
    merged: list[bytes | ObjectId] = []
    for item in items:
        if isinstance(item, ObjectId) or not merged or isinstance(merged[-1], ObjectId):
            merged += [item] if item else []
        else:
            merged[-1] += item
    return merged


@given(contents())
def test_what_is_written_is_read(content: tuple[Algorithm, list[bytes | ObjectId], dict[str, ObjectId]]) -> None:
    algorithm, items, names = content
    writer = SplitstreamWriter(algorithm, OCI_LAYER)
    for name, stream_id in names.items():
        writer.add_named_stream_ref(name, stream_id)
    writer.write_body(items, 7)
    reader = SplitstreamReader(BytesSource(writer.done()), algorithm, OCI_LAYER)
    assert list(reader.chunks()) == merge(items)
    assert reader.named_refs == names
    assert set(reader.stream_refs) == set(names.values())
    assert reader.object_refs == tuple(dict.fromkeys(item for item in items if isinstance(item, ObjectId)))
    assert reader.stream_size == 7 + sum(len(item) for item in items if not isinstance(item, ObjectId))


def fails_as_documented(call: Callable[[], object]) -> SplitstreamError | AlgorithmMismatchError | None:
    """The typed error of *call* if it raises one; any other exception fails the test."""
    try:
        call()
    except (SplitstreamError, AlgorithmMismatchError) as error:
        return error
    return None


@settings(max_examples=400)
@given(
    where=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    algorithm=st.sampled_from([None, SHA256]),
    cut=st.integers(0, 8),
)
def test_damaged_file_raises_only_typed_errors(
    where: list[tuple[int, int]], algorithm: Algorithm | None, cut: int, craft: Any
) -> None:
    body = chunk_bytes(-6) + b"inline" + chunk_bytes(0) + chunk_bytes(-4) + b"tail" + chunk_bytes(1)
    data = bytearray(craft(stream_refs=ID_B, object_refs=ID_A + ID_B, names=b"0:a\x000:b\0", body=body))
    for at, value in where:
        data[at % len(data)] = value
    del data[len(data) - cut :]
    error = fails_as_documented(lambda: read_all(bytes(data), algorithm=algorithm))
    assert error is None or str(error)


@settings(max_examples=400)
@given(
    items=st.lists(st.integers(-20, 3).map(chunk_bytes) | st.binary(max_size=20), max_size=8),
    calls=st.lists(st.tuples(st.sampled_from("iep"), st.integers(0, 30), st.integers(0, 30)), max_size=8),
)
def test_any_body_raises_only_typed_errors(items: list[bytes], calls: list[tuple[str, int, int]], craft: Any) -> None:
    body = b"".join(items)
    reader = SplitstreamReader(BytesSource(craft(object_refs=ID_A + ID_B, body=body)))

    def read_it() -> None:
        for how, size, padding in calls:
            if how == "i":
                reader.read_inline_exact(size)
            elif how == "e":
                reader.read_exact(size, size + padding)
            else:
                next(reader.chunks(), None)
        list(reader.chunks())

    error = fails_as_documented(read_it)
    assert error is None or (isinstance(error, SplitstreamError) and error.offset <= len(body))


@settings(max_examples=300)
@given(junk=st.binary(max_size=80))
def test_any_sections_raise_only_typed_errors(junk: bytes, craft: Any, pack: Any) -> None:
    for part in ({"packed_names": junk}, {"packed_body": junk}, {"names": junk}, {"packed_body": pack(b"") + junk}):
        data = craft(stream_refs=ID_A, **part)
        error = fails_as_documented(lambda data=data: read_all(data))
        assert error is None or isinstance(error, SplitstreamError)

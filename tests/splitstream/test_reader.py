"""Reading: chunks, the primitives for tar, and all that is accepted although no writer makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import SplitstreamError
from composefs_async.splitstream import OCI_LAYER, BytesSource, SplitstreamReader, SplitstreamWriter

SHA256 = Algorithm.SHA256
ID_A, ID_B, ID_C = (ObjectId(bytes([n]) * 32) for n in (1, 2, 3))


def read(data: bytes, **expected: Any) -> SplitstreamReader:
    return SplitstreamReader(BytesSource(data), **expected)


def stream(*items: bytes | ObjectId) -> SplitstreamReader:
    writer = SplitstreamWriter(SHA256, OCI_LAYER)
    writer.write_body(items, 0)
    return read(writer.done())


class ShortReads:
    """A file that answers with one byte less than it could, as reads may."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def pread(self, size: int, offset: int, /) -> bytes:
        return self.data[offset : offset + max(1, size - 1)]


def test_short_reads_are_continued(golden: Any) -> None:
    data = golden["g4-sha512-v1-layer-0.splitstream"]["data"]
    reader, whole = SplitstreamReader(ShortReads(data)), read(data)
    assert reader.object_refs == whole.object_refs
    assert list(reader.chunks()) == list(whole.chunks())


def test_long_inline_chunk_comes_in_bounded_pieces() -> None:
    content = bytes(3_000_000) + b"end"
    pieces = list(stream(content, ID_A, b"x").chunks())
    assert pieces[-2:] == [ID_A, b"x"]
    assert b"".join(pieces[:-2]) == content
    assert max(map(len, pieces)) <= 128 * 1024


def test_tables_can_be_looked_up() -> None:
    writer = SplitstreamWriter(SHA256, 0)
    writer.write_body([ID_A, ID_B], 0)
    writer.add_named_stream_ref("name", ID_C)
    reader = read(writer.done())
    assert [reader.lookup_external_ref(index) for index in (-1, 0, 1, 2)] == [None, ID_A, ID_B, None]
    assert [reader.lookup_named_ref(name) for name in ("name", "other")] == [ID_C, None]
    assert reader.object_refs[-1:] == (ID_B,)
    assert (len(reader.object_refs), ID_B in reader.object_refs, ID_C in reader.object_refs) == (2, True, False)
    assert reader.object_refs != reader.stream_refs
    with pytest.raises(IndexError):
        reader.object_refs[2]


def test_cat_opens_objects_when_it_comes_to_them() -> None:
    opened: list[ObjectId] = []

    def open_object(object_id: ObjectId) -> Iterator[bytes]:
        opened.append(object_id)
        yield object_id[:2]
        yield object_id[:1]

    pieces = stream(b"head", ID_A, ID_B, b"tail").cat(open_object)
    assert (next(pieces), opened) == (b"head", [])
    assert list(pieces) == [b"\1\1", b"\1", b"\2\2", b"\2", b"tail"]
    assert opened == [ID_A, ID_B]


def test_payload_is_bounded() -> None:
    reader = stream(b"12345", ID_A)
    with pytest.raises(SplitstreamError, match="larger than the 7 bytes expected"):
        reader.payload(lambda object_id: [b"678"], limit=7)
    assert stream(b"12345", ID_A).payload(lambda object_id: [b"678"], limit=8) == b"12345678"


def test_reading_as_tar_does() -> None:
    reader = stream(b"h" * 512, b"small".ljust(512, b"\0"), b"H" * 512, ID_A, bytes(412) + b"E" * 512, ID_B, b"Z" * 512)
    assert reader.read_inline_exact(512) == b"h" * 512
    assert reader.read_exact(5, 512) == b"small"
    assert reader.read_inline_exact(512) == b"H" * 512
    assert reader.read_exact(100, 512) == ID_A
    assert reader.read_inline_exact(512) == b"E" * 512
    assert reader.read_exact(512, 512) == ID_B
    assert reader.read_inline_exact(500) == b"Z" * 500
    assert list(reader.chunks()) == [b"Z" * 12]
    assert reader.read_inline_exact(512) is None


def test_nothing_is_read_for_an_empty_file_at_the_end() -> None:
    reader = stream(b"header")
    assert reader.read_inline_exact(6) == b"header"
    assert (reader.read_exact(0, 0), reader.read_inline_exact(0), reader.read_inline_exact(1)) == (b"", b"", None)


MISREADS = {
    "inline where an object is": ([ID_A], lambda r: r.read_inline_exact(1), "external reference where inline", 0),
    "more than the chunk has": ([b"abc"], lambda r: r.read_inline_exact(4), "4 bytes are needed", 8),
    "over an object": ([b"abc", ID_A, b"d"], lambda r: r.read_inline_exact(4), "chunk has only 3 left", 8),
    "content at the end": ([], lambda r: r.read_exact(1, 512), "ends where content of 512 bytes", 0),
    "content larger than the chunk": ([b"abc"], lambda r: r.read_exact(2, 4), "only 1 left", 10),
    "padding at the end": ([ID_A], lambda r: r.read_exact(1, 512), "the stream ends where padding of 511", 8),
    "padding in an object": ([ID_A, ID_B], lambda r: r.read_exact(1, 512), "external reference where padding", 8),
    "padding too short": ([ID_A, b"ab"], lambda r: r.read_exact(1, 4), "3 bytes are needed", 16),
}


@pytest.mark.parametrize("case", MISREADS)
def test_content_of_another_shape_is_an_error(case: str) -> None:
    items, call, message, offset = MISREADS[case]
    with pytest.raises(SplitstreamError) as caught:
        call(stream(*items))
    assert message in caught.value.reason
    assert caught.value.offset == offset


def test_content_cannot_be_longer_than_its_place() -> None:
    for actual, stored in ((2, 1), (-1, 0)):
        with pytest.raises(ValueError, match="cannot be stored in"):
            stream(b"abc").read_exact(actual, stored)


def accepted(craft: Any, chunk: Any, pack: Any) -> dict[str, bytes]:
    """Streams that all hold ``ab``, the object A, ``c`` and the stream B named ``n``."""
    body = chunk(-2) + b"ab" + chunk(0) + chunk(-1) + b"c"
    same: dict[str, Any] = {"stream_refs": ID_B, "object_refs": ID_A, "names": b"0:n\0", "body": body}
    empty = pack(b"")
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00xyz"
    apart = chunk(-1) + b"a" + chunk(-1) + b"b" + body[10:]
    cut = [pack(body[at : at + 5]) for at in range(0, len(body), 5)]
    plain = craft(**same)
    return {
        "as written": plain,
        "flags": craft(**same, flags=0xFFFF),
        "larger info": craft(**same, info_extra=b"more of it"),
        "false stream size": craft(**same, stream_size=2**64 - 1),
        "sections in another order": craft(**same, order=("stream", "named_refs", "object_refs", "stream_refs")),
        "bytes behind the last section": craft(**same, tail=b"behind"),
        "adjacent inline chunks": craft(**(same | {"body": apart})),
        "repeated and unused objects": craft(**(same | {"object_refs": ID_A + ID_A + ID_C})),
        "overlapping sections": craft(
            **(same | {"stream_refs": b"", "object_refs": ID_B + ID_A, "body": body.replace(chunk(0), chunk(1))}),
            ranges={"stream_refs": (112, 144)},
        ),
        "index with sign and zeros": craft(**(same | {"names": b"+" + b"0" * 5000 + b":n\0"})),
        "repeated name": craft(**(same | {"stream_refs": ID_C + ID_B, "names": b"0:n\0001:n\0"})),
        "concatenated frames": craft(**same, packed_body=b"".join(cut), packed_names=pack(b"0:") + pack(b"n\0")),
        "empty and skippable frames": craft(**same, packed_body=empty + skippable + pack(body) + skippable + empty),
    }


CASES = list(accepted(lambda **_: b"", lambda _: bytes(8), lambda _: b""))


@pytest.mark.parametrize("case", CASES)
def test_unusual_stream_is_accepted(case: str, craft: Any, chunk: Any, pack: Any) -> None:
    reader = read(accepted(craft, chunk, pack)[case], algorithm=SHA256)
    assert reader.named_refs == {"n": ID_B}
    merged: list[bytes] = []
    for piece in reader.chunks():
        if merged and not isinstance(piece, ObjectId) and not isinstance(merged[-1], ObjectId):
            merged[-1] += piece
        else:
            merged.append(piece)
    assert merged == [b"ab", ID_A, b"c"]


def test_empty_table_may_be_anywhere(craft: Any) -> None:
    far = 2**64 - 1
    reader = read(craft(ranges={"object_refs": (far, far), "stream_refs": (0, 0)}))
    assert (reader.object_refs, reader.stream_refs, list(reader.chunks())) == ((), (), [])


def test_any_content_type_is_accepted_unless_one_is_expected(craft: Any) -> None:
    data = craft(content_type=12345)
    assert read(data).content_type == 12345
    assert read(data, content_type=12345).header.flags == 0

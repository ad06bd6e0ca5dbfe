"""The writer's byte rules, pending references and misuse."""

from __future__ import annotations

import random
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, InvalidNameError
from composefs_async.splitstream import OCI_LAYER, BytesSource, SplitstreamReader, SplitstreamWriter

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
ID_A, ID_B, ID_C = (ObjectId(bytes([n]) * 32) for n in (1, 2, 3))


def read(data: bytes) -> SplitstreamReader:
    return SplitstreamReader(BytesSource(data))


def test_inline_content_makes_one_chunk_up_to_a_reference(craft: Any, chunk: Any) -> None:
    writer = SplitstreamWriter(SHA256, 7)
    for piece in (b"", b"ab", b"", bytearray(b"c")):
        writer.write_inline(piece)
    writer.write_reference(ID_A)
    writer.write_inline(b"")
    writer.write_reference(ID_B)
    writer.write_reference(ID_A)
    writer.write_inline(b"d")
    body = chunk(-3) + b"abc" + chunk(0) + chunk(1) + chunk(0) + chunk(-1) + b"d"
    assert writer.done() == craft(content_type=7, stream_size=4, object_refs=ID_A + ID_B, body=body)


def test_sizes_come_from_inline_and_stored_content_and_what_the_caller_adds(make_sink: Any) -> None:
    writer = SplitstreamWriter(make_sink(SHA256), 0)
    writer.write_inline(b"12")
    writer.write_external(b"345")
    writer.write_reference(ID_A)
    assert writer.stream_size == 5
    writer.add_external_size(100)
    assert read(writer.done()).stream_size == 105


def test_objects_that_are_only_kept_alive_have_an_index(craft: Any, chunk: Any) -> None:
    writer = SplitstreamWriter(SHA256, 0)
    assert writer.lookup_object_ref(ID_B) is None
    assert [writer.add_object_ref(i) for i in (ID_B, ID_A, ID_B)] == [0, 1, 0]
    writer.write_reference(ID_C)
    writer.write_reference(ID_A)
    assert [writer.lookup_object_ref(i) for i in (ID_A, ID_B, ID_C)] == [1, 0, 2]
    assert writer.done() == craft(object_refs=ID_B + ID_A + ID_C, body=chunk(2) + chunk(1))


def test_names_are_sorted_and_their_streams_are_not(craft: Any) -> None:
    writer = SplitstreamWriter(SHA256, 0)
    for name, stream_id in (("é", ID_C), ("b:c", ID_A), ("b", ID_C), ("", ID_A), ("b", ID_B)):
        writer.add_named_stream_ref(name, stream_id)
    data = writer.done()
    assert data == craft(stream_refs=ID_C + ID_A + ID_B, names="1:\0002:b\0001:b:c\0000:é\0".encode())
    assert read(data).named_refs == {"": ID_A, "b": ID_B, "b:c": ID_A, "é": ID_C}


@pytest.mark.parametrize("name", ["a\0b", "\0", "\udc80"])
def test_name_that_the_file_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        SplitstreamWriter(SHA256, 0).add_named_stream_ref(name, ID_A)


def test_ids_of_the_other_algorithm_are_refused() -> None:
    writer = SplitstreamWriter(SHA512, 0)
    other = ObjectId(bytes(32))
    for call in (writer.write_reference, writer.add_object_ref):
        with pytest.raises(AlgorithmMismatchError):
            call(other)
    with pytest.raises(AlgorithmMismatchError):
        writer.add_named_stream_ref("a", other)
    with pytest.raises(AlgorithmMismatchError):
        writer.write_body([b"in", other], 0)
    writer.write_inline(b"line")
    assert list(read(writer.done()).chunks()) == [b"in", b"line"]


def test_large_body_is_one_frame_that_does_not_depend_on_pieces(craft: Any, chunk: Any) -> None:
    content = random.Random(1).randbytes(300_000) + bytes(300_000)
    writer = SplitstreamWriter(SHA256, 0)
    for at in range(0, len(content), 1000):
        writer.write_inline(content[at : at + 1000])
    writer.write_reference(ID_A)
    writer.write_inline(content)
    body = chunk(-len(content)) + content + chunk(0) + chunk(-len(content)) + content
    assert writer.done() == craft(object_refs=ID_A, body=body, stream_size=2 * len(content))


def random_items(seed: int, count: int = 3000) -> list[bytes | ObjectId]:
    rng = random.Random(seed)
    ids = [ObjectId(rng.randbytes(32)) for _ in range(50)]
    return [rng.choice(ids) if rng.random() < 0.4 else rng.randbytes(rng.choice((0, 1, 512))) for _ in range(count)]


def write_singly(items: list[bytes | ObjectId]) -> bytes:
    writer = SplitstreamWriter(SHA256, OCI_LAYER)
    for item in items:
        if isinstance(item, ObjectId):
            writer.write_reference(item)
        else:
            writer.write_inline(item)
    writer.add_external_size(12345)
    return writer.done()


@pytest.mark.parametrize("step", [1, 7, 1000, 3000])
def test_bulk_writing_makes_the_same_bytes(step: int) -> None:
    items = random_items(2)
    writer = SplitstreamWriter(SHA256, OCI_LAYER)
    for at in range(0, len(items), step):
        writer.write_body(items[at : at + step], 12345 if at == 0 else 0)
    assert writer.done() == write_singly(items)


@pytest.mark.parametrize("seed", range(4))
def test_pending_references_may_be_resolved_in_any_order(seed: int) -> None:
    rng, items = random.Random(seed), random_items(seed)
    writer = SplitstreamWriter(SHA256, OCI_LAYER)
    open_places = []
    for at, item in enumerate(items):
        if isinstance(item, ObjectId) and rng.random() < 0.5:
            open_places.append((writer.reserve_reference(), item))
        else:
            writer.write_body([item], 0)
        if open_places and rng.random() < 0.2 + at / len(items):
            place, object_id = open_places.pop(rng.randrange(len(open_places)))
            place.resolve(object_id)
    rng.shuffle(open_places)
    for place, object_id in open_places:
        place.resolve(object_id)
    writer.add_external_size(12345)
    assert writer.done() == write_singly(items)


def test_parallel_content_is_handed_out_once_and_freed_when_resolved(make_sink: Any) -> None:
    sink = make_sink(SHA256)
    writer, straight = SplitstreamWriter(SHA256, 0), SplitstreamWriter(sink, 0)
    for content in (b"one", bytearray(b"two"), b"one"):
        writer.write_inline(b"-")
        writer.write_external_parallel(content)
        straight.write_inline(b"-")
        straight.write_external(content)
    taken = writer.take_pending()
    assert [place.data for place in taken] == [b"one", b"two", b"one"]
    assert writer.take_pending() == []
    assert writer.lookup_object_ref(sink.ensure_object(b"one").id) is None
    for place in reversed(taken):
        place.resolve(sink.ensure_object(place.data or b"").id)
    assert [place.data for place in taken] == [None] * 3
    assert writer.stream_size == 12
    assert writer.done() == straight.done()


def test_done_needs_every_pending_reference() -> None:
    writer = SplitstreamWriter(SHA256, 0)
    first, second = writer.write_external_parallel(b"a"), writer.reserve_reference()
    second.resolve(ID_A)
    with pytest.raises(ValueError, match="1 pending references have not been resolved"):
        writer.done()
    with pytest.raises(ValueError, match="pending"):
        writer.add_object_ref(ID_C)
    first.resolve(ID_B)
    with pytest.raises(ValueError, match="only once"):
        first.resolve(ID_B)
    assert list(read(writer.done()).chunks()) == [ID_B, ID_A]


def test_reference_resolved_to_the_other_algorithm_stays_pending() -> None:
    writer = SplitstreamWriter(SHA512, 0)
    place = writer.reserve_reference(b"content")
    with pytest.raises(AlgorithmMismatchError):
        place.resolve(ID_A)
    assert (place.id, place.data) == (None, b"content")


def test_finished_writer_refuses_more() -> None:
    writer = SplitstreamWriter(SHA256, 0)
    writer.done()
    for call in (
        writer.done,
        writer.reserve_reference,
        lambda: writer.write_inline(b""),
        lambda: writer.write_reference(ID_A),
        lambda: writer.write_body([], 0),
        lambda: writer.add_object_ref(ID_A),
        lambda: writer.add_named_stream_ref("a", ID_A),
    ):
        with pytest.raises(ValueError, match="has been finished"):
            call()


def test_misuse_is_refused_before_anything_is_written(craft: Any) -> None:
    writer = SplitstreamWriter(SHA256, 0)
    with pytest.raises(ValueError, match="without a sink"):
        writer.write_external(b"content")
    for size in (-1, 2**64):
        with pytest.raises(ValueError, match="unsigned number of 64 bits"):
            writer.add_external_size(size)
    assert writer.done() == craft()
    for content_type in (-1, 2**64):
        with pytest.raises(ValueError, match="content type"):
            SplitstreamWriter(SHA256, content_type)
